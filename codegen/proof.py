"""Proof that an emitted file does what the model does: tried in a process that has torch alone, compared bit for bit."""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from . import weights as files
from .attempt import flags
from .compare import unwrapped
from .errors import CodegenError, Problem
from .inputs import Inputs, as_sets
from .isolation import foreign_imports
from .leaves import difference
from .observe import StepFailed, observe, undisturbed
from .process import Verifier
from .source import Source

_MOST_NAMED = 5  # further differences in a message


@dataclass(frozen=True)
class Check:
    """An emitted source and the model that it has to be.

    `inputs`: a tuple of arguments, a dict, or a list of several such; guessed when the model begins with an embedding.
    `calls`: {name: text}, run on both sides with `model`, `inputs` (the list), `build`, `torch` and the functions and classes
    of `also`; what it assigns to `result` (or its value, as an expression) is compared.
    `build` builds an equal model anew; without it fresh initialisation is not compared.
    """

    source: Source
    model: nn.Module
    build: Callable[[], nn.Module] | None = None
    inputs: Inputs | list[Inputs] | None = None
    calls: Mapping[str, str] = field(default_factory=dict)
    also: Sequence[Any] = ()
    train: bool = True  # also compare training mode, loss and gradients
    name: str = "model.py"  # of the file, in messages


@dataclass(frozen=True)
class Report:
    """What was compared and found the same."""

    compared: dict[str, int]
    seconds: float

    def __str__(self) -> str:
        return f"{', '.join(f'{count} {what}' for what, count in self.compared.items())}: the same bit for bit"


def verify(
    source: Source,
    model: nn.Module,
    build: Callable[[], nn.Module] | None = None,
    *,
    inputs: Inputs | list[Inputs] | None = None,
    calls: Mapping[str, str] | None = None,
    also: Sequence[Any] = (),
    train: bool = True,
    timeout: float = 300.0,
    weights: str | None = None,
) -> Report:
    """Compare an emitted file with its model; see `Check`. `weights` is a file of the model's weights, if there is one.

    Raises CodegenError with what differs first, and by how much. The model is left as it was.
    """
    check = Check(source, unwrapped(model), build, inputs, calls or {}, also, train)
    with Verifier(workers=1) as verifier:
        result = _settled(verifier, check, _submitted(verifier, check, timeout, weights))
    if isinstance(result, CodegenError):
        raise result
    return result


def verify_many(checks: Iterable[Check], *, workers: int = 2, timeout: float = 120.0) -> list[Report | CodegenError]:
    """One result for each check, in order. Torch is imported once for all of them; each has its own process."""
    with Verifier(workers) as verifier:
        unwrapping = (replace(check, model=unwrapped(check.model)) for check in checks)
        waiting = [(check, _submitted(verifier, check, timeout, None)) for check in unwrapping]
        return [_settled(verifier, check, submitted) for check, submitted in waiting]


@dataclass(frozen=True)
class _Submitted:
    folder: str
    began: float
    seen: Mapping[str, Any]
    again: Callable[[], Mapping[str, Any]]


def _submitted(verifier: Verifier, check: Check, timeout: float, weights: str | None) -> _Submitted | CodegenError:
    """Observes the original and hands both to the process that tries the emitted one."""
    folder, began = verifier.folder(), time.monotonic()
    source = check.source
    try:
        _require_imports(check)
        _require_values(check.model)
        device = str(next((parameter.device for parameter in check.model.parameters()), "cpu"))
        sets = as_sets(check.inputs, check.model)
        plan = {"seed": 20, "inputs": sets, "calls": dict(check.calls), "train": check.train, "device": device}
        named = {each.__name__: each for each in check.also}
        again = lambda: _original(check, named, plan)  # noqa: E731
        seen = again()
        torch.save({"plan": plan, "seen": seen}, os.path.join(folder, "original.pt"))
        text = os.path.join(folder, "model.py")
        with open(text, "w", encoding="utf-8", newline="") as file:
            file.write(source.text)
        if weights is None:
            weights = os.path.join(folder, "model.safetensors")
            files.save(weights, files.untied(check.model.state_dict()))
    except CodegenError as error:
        return error
    names = {name: source.also[name] for name in named if name in source.also}
    job = {"folder": folder, "text": text, "weights": weights, "timeout": timeout, "flags": flags(), "names": names}
    job |= {"build": source.build, "load": source.load, "requirements": list(source.requirements)}
    verifier.submit(job | {"fresh": check.build is not None})
    return _Submitted(folder, began, seen, again)


def _original(check: Check, named: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Any]:
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]), undisturbed(check.model):
            return dict(observe(lambda: check.model, check.build, named, plan))
    except StepFailed as failure:
        hint = "pass inputs= that it takes, or train=False if it cannot train" if "forward" in failure.step else ""
        raised = f"{type(failure.__cause__).__name__}: {failure.__cause__}"
        raise CodegenError([Problem(f"the model itself fails in {failure.step}: {raised}", hint)]) from failure


def _require_imports(check: Check) -> None:
    lines = check.source.text.split("\n")
    try:
        ast.parse(check.source.text)
    except SyntaxError as error:
        line = error.lineno or 0
        raise CodegenError(
            [Problem(f"the emitted text is none: {error.msg}", "", check.name, line, error.text or "")]
        ) from None
    found = foreign_imports(check.source.text, check.source.requirements)
    problems = [
        Problem(f"the emitted file imports {name}, which is neither torch nor the standard library",
                "allow= keeps it as an import that is listed", check.name, line, lines[line - 1])
        for line, name in found
    ]  # fmt: skip
    if problems:
        raise CodegenError(problems)


def _require_values(model: nn.Module) -> None:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, tensor in tensors if isinstance(tensor, (nn.UninitializedParameter, nn.UninitializedBuffer))]
    if lazy:
        hint = "run the model once on a batch, so that its lazy modules are settled"
        raise CodegenError([Problem(f"{lazy[0]} has no shape yet", hint)])
    empty = [name for name, tensor in tensors if tensor.is_meta]
    if empty:
        which = f"{empty[0]}, one of {len(empty)} such tensors," if len(empty) > 1 else empty[0]
        raise CodegenError(
            [Problem(f"{which} is on the meta device: no values to compare", "build the model with memory")]
        )


def _settled(verifier: Verifier, check: Check, submitted: _Submitted | CodegenError) -> Report | CodegenError:
    if isinstance(submitted, CodegenError):
        return submitted
    result = verifier.result(submitted.folder)
    with contextlib.suppress(OSError):
        shutil.rmtree(submitted.folder)
    if "differences" in result and not result["differences"]:
        return Report(result["compared"], time.monotonic() - submitted.began)
    return CodegenError([_refusal(check, submitted, result)])


def _refusal(check: Check, submitted: _Submitted, result: Mapping[str, Any]) -> Problem:
    if "died" in result:
        log = result.get("log", "")
        return Problem(f"the process that tried the emitted file {result['died']}", log, check.name)
    if "failed" in result:
        line = result["line"]
        text = check.source.text.split("\n")[line - 1] if line else ""
        return Problem(f"the emitted model fails in {result['failed']}: {result['error']}", "", check.name, line, text)
    (key, how), *more = result["differences"]
    hint = f"{len(more)} more differ: " + ", ".join(name for name, _ in more[:_MOST_NAMED]) if more else ""
    if unsteady := _unsteady(submitted):
        return Problem(
            f"the model itself is not repeatable: {unsteady}", "no proof is possible before it is", check.name
        )
    return Problem(f"the emitted model is another one: {key}: {how}", hint, check.name)


def _unsteady(submitted: _Submitted) -> str | None:
    """The first value of the original that is another one when it is observed again."""
    again = submitted.again()
    return next(
        (f"{key}: {how}" for key, leaf in submitted.seen.items() if (how := difference(leaf, again[key]))), None
    )
