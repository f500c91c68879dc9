"""What a model is and does, as a series of named values.

The same code runs on the original and, in a process that has torch alone, on what was emitted.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from .leaves import Leaf, leaves, snapshot, walk

Plan = Mapping[str, Any]  # seed: int; inputs: list of tuples or dicts; calls: {name: text}; train: bool; device: str
Seen = Iterator[tuple[str, Leaf]]


class StepFailed(Exception):
    """A step of the observation raised; `step` says which, `__cause__` what."""

    def __init__(self, step: str) -> None:
        super().__init__(step)
        self.step = step


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """Gives what is raised inside the name of the step."""
    try:
        yield
    except StepFailed:
        raise
    except Exception as error:
        raise StepFailed(name) from error


def observe(
    load: Callable[[], nn.Module], build: Callable[[], nn.Module] | None, names: Mapping[str, Any], plan: Plan
) -> Seen:
    """Every value that original and emitted model must share, causes before effects.

    `load` gives the model with its weights, `build` a fresh one, `names` what the texts of plan["calls"] may use.
    Raises StepFailed.
    """
    if build is not None:
        yield from _built(build, plan)
        names = {"build": build, **names}
    with step("loading the weights"):
        model = load()
    yield from structure(model, "the loaded model's")
    yield from _state(model, "loaded")
    with undisturbed(model):
        model.eval()
        for index, inputs in enumerate(plan["inputs"]):
            yield from _evaluated(model, inputs, _numbered("eval", index, plan), plan)
        for name, text in plan["calls"].items():
            with undisturbed(model, weights=True):  # an initialiser may be what is called
                yield from _called(model, name, text, names, plan)
        if plan["train"]:
            model.train()
            for index, inputs in enumerate(plan["inputs"]):
                yield from _trained(model, inputs, _numbered("train", index, plan), plan)


def _numbered(mode: str, index: int, plan: Plan) -> str:
    return mode if len(plan["inputs"]) == 1 else f"{mode} {index}"


def seed(plan: Plan) -> None:
    """The same random numbers on both sides."""
    torch.manual_seed(plan["seed"])
    random.seed(plan["seed"])


def _built(build: Callable[[], nn.Module], plan: Plan) -> Seen:
    with step("building"):
        seed(plan)
        fresh = build()
        drawn = torch.get_rng_state()
    yield from structure(fresh, "the built model's")
    yield from _state(fresh, "initial")
    yield "initial random numbers drawn", drawn


def structure(model: nn.Module, whose: str) -> Seen:
    """Names in order, shapes, number formats, flags, and which tensors are one, a line each."""
    first: dict[int, str] = {}

    def line(name: str, tensor: Tensor, *flags: str) -> str:
        owner = first.setdefault(tensor.data_ptr() or id(tensor), name)
        shared = () if owner == name else (f"memory of {owner}",)
        return " ".join([name, str(tensor.dtype).removeprefix("torch."), str(list(tensor.shape)), *flags, *shared])

    kept = model.state_dict(keep_vars=True)
    yield f"{whose} modules", "\n".join(name for name, _ in model.named_modules(remove_duplicate=False))
    parameters = model.named_parameters(remove_duplicate=False)
    yield f"{whose} parameters", "\n".join(line(n, p, *[] if p.requires_grad else ["frozen"]) for n, p in parameters)
    buffers = model.named_buffers(remove_duplicate=False)
    yield f"{whose} buffers", "\n".join(line(n, b, *[] if n in kept else ["not persistent"]) for n, b in buffers)
    yield f"{whose} state dict", "\n".join(kept)


def _state(model: nn.Module, what: str) -> Seen:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        yield f"{what} value of {name}", snapshot(tensor)


def _evaluated(model: nn.Module, inputs: Any, mode: str, plan: Plan) -> Seen:
    with step(f"forward in {mode} mode"):
        seed(plan)
        with torch.no_grad():
            output = run(model, inputs, plan["device"])
    yield from ((f"{mode} output{path}", leaf) for path, leaf in leaves(output))


def _trained(model: nn.Module, inputs: Any, mode: str, plan: Plan) -> Seen:
    model.zero_grad(set_to_none=True)
    with step(f"forward in {mode} mode"):
        seed(plan)
        output = run(model, inputs, plan["device"])
    yield from ((f"{mode} output{path}", leaf) for path, leaf in leaves(output))
    with step(f"loss in {mode} mode"):
        loss = loss_of(output, inputs, plan)
    if loss is not None:
        yield f"{mode} loss", snapshot(loss)
        with step(f"backward in {mode} mode"):
            loss.backward()
        for name, parameter in model.named_parameters():
            gradient = parameter.grad
            yield f"{mode} gradient of {name}", "none" if gradient is None else snapshot(gradient)
    for name, buffer in model.named_buffers():
        yield f"{mode} buffer {name} afterwards", snapshot(buffer)


def _called(model: nn.Module, name: str, text: str, names: Mapping[str, Any], plan: Plan) -> Seen:
    """Runs a text that assigns `result`; a single expression is its own result."""
    inputs = [_copied(each, plan["device"]) for each in plan["inputs"]]
    scope = {**names, "torch": torch, "model": model, "inputs": inputs}
    with step(f"call {name!r}"):
        seed(plan)
        try:
            code = compile(text.strip(), f"<call {name}>", "eval")
        except SyntaxError:
            exec(compile(text, f"<call {name}>", "exec"), scope)
            result = scope["result"]
        else:
            result = eval(code, scope)
    yield from ((f"call {name!r} result{path}", leaf) for path, leaf in leaves(result))


def run(model: nn.Module, inputs: Any, device: str) -> Any:
    """The model's output for one set of inputs, of which it gets copies."""
    given = _copied(inputs, device)
    return model(**given) if isinstance(given, Mapping) else model(*given)


def _copied(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().to(device)
    if isinstance(value, Mapping):
        return {key: _copied(part, device) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(part, device) for part in value)
    return copy.copy(value)


def loss_of(output: Any, inputs: Any, plan: Plan) -> Tensor | None:
    """The model's own loss (its first number with a gradient), else cross entropy of the next tokens, else a fixed
    random projection of all that has a gradient; None when nothing has.
    """
    live = [tensor for _, tensor in walk(output) if isinstance(tensor, Tensor) and tensor.requires_grad]
    own = [tensor for tensor in live if tensor.dim() == 0 and tensor.is_floating_point()]
    if own:
        return own[0]
    given = [tensor for _, tensor in walk(inputs) if isinstance(tensor, Tensor)]
    tokens = next((t for t in given if t.dim() == 2 and t.dtype in (torch.int64, torch.int32)), None)
    logits = next((t for t in live if t.dim() == 3 and t.is_floating_point()), None)
    if tokens is not None and logits is not None and logits.shape[:2] == tokens.shape and tokens.shape[1] > 1:
        labels = tokens[:, 1:].long().remainder(logits.shape[-1]).flatten().to(logits.device)
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels)
    draw = torch.Generator().manual_seed(plan["seed"])
    parts = [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in live]
    terms = [(part * torch.randn(part.shape, generator=draw).to(part)).sum().double() for part in parts]
    return torch.stack(terms).sum() if terms else None


@contextlib.contextmanager
def undisturbed(model: nn.Module, *, weights: bool = False) -> Iterator[None]:
    """Gives modes, gradients, buffers, plain attributes and random numbers back as they were; on request weights too."""
    modules = list(model.modules())
    plain = [dict(module.__dict__) for module in modules]
    buffers = [(module._buffers, dict(module._buffers)) for module in modules]
    held = [*model.buffers(), *(model.parameters() if weights else ())]
    values = [(tensor, tensor.detach().clone()) for tensor in held]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    numbers, own = torch.get_rng_state(), random.getstate()
    for parameter, _ in gradients:
        parameter.grad = None  # so that what is given back has not been added to
    try:
        yield
    finally:
        for module, before in zip(modules, plain):
            module.__dict__.clear()
            module.__dict__.update(before)
        for registered, before in buffers:
            registered.clear()
            registered.update(before)
        with torch.no_grad():
            for tensor, value in values:
                tensor.copy_(value)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        torch.set_rng_state(numbers)
        random.setstate(own)
