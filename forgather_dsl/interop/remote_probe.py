"""What transformers has to know of an emitted model: found by running it once on the meta device, which costs no memory.

In: the text of `model.py`. Out: where its embedding, head and layers are, which arguments its forward takes, what is tied,
which buffers no checkpoint holds; or every reason why it is no causal language model.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn as nn
from torch import Tensor

from codegen import Source

from ..errors import UserError

BATCH, LENGTH = 2, 5
NAME = "network"  # of the model in the class of transformers; parameters keep their names without it in files


class Facts(NamedTuple):
    """What the files for transformers say of the model; names of modules are paths from the root."""

    root: str  # name of the model's class
    vocab_size: int
    hidden_size: int
    embedding: str
    head: str | None  # the linear layer whose output is the logits
    layers: str | None  # the list of layers that each take and give `[batch, seq, hidden]`
    num_layers: int
    cache: bool  # forward takes `cache`, and its layers call update() on it
    documents: bool  # forward takes `documents`
    tied: dict[str, str]  # parameter -> the one whose tensor it shares
    buffers: tuple[str, ...]  # that are not in the state dict
    initialise: str | None  # function of the text that fills the weights of (model, seed)


def facts_of(source: Source) -> Facts:
    """Run the text on the meta device. Raises UserError with every reason why it cannot be remote code."""
    with _imported(source.text) as module, torch.device("meta"):
        model: nn.Module = getattr(module, source.build)()
    parameters = inspect.signature(model.forward).parameters
    reasons = list(_not_callable(parameters))
    if reasons:
        raise _refusal(source, reasons)
    seen = _Seen(model)
    try:
        logits = seen.run({})
    except Exception as error:
        raise _refusal(source, [f"forward of int64 tokens [batch, seq] fails: {error}"]) from error
    embedding, head = seen.embedding(), seen.head(logits)
    reasons = list(_no_language_model(model, logits, embedding))
    if reasons or embedding is None:
        raise _refusal(source, reasons)
    hidden_size = int(model.get_submodule(embedding).embedding_dim)  # type: ignore[arg-type]
    layers = seen.layers(hidden_size)
    return Facts(
        root=source.root,
        vocab_size=logits.shape[2],
        hidden_size=hidden_size,
        embedding=embedding,
        head=head,
        layers=layers,
        num_layers=1 if layers is None else len(model.get_submodule(layers)),  # type: ignore[arg-type]
        cache="cache" in parameters and seen.takes_cache(),
        documents="documents" in parameters,
        tied=_tied(model),
        buffers=tuple(_not_stored(model)),
        initialise=source.also.get("draw_weights"),
    )


@contextlib.contextmanager
def _imported(text: str) -> Iterator[types.ModuleType]:
    """The text as a module; dataclasses look for theirs by name while they are made."""
    module = types.ModuleType("_emitted_model")
    sys.modules[module.__name__] = module
    try:
        exec(compile(text, "model.py", "exec"), module.__dict__)
        yield module
    finally:
        del sys.modules[module.__name__]


def _refusal(source: Source, reasons: list[str]) -> UserError:
    listed = "\n  ".join(reasons)
    return UserError(
        f"{source.root} cannot be remote code of transformers:\n  {listed}\n"
        "Write --to torch for the model as it is: model.py and its weights, without transformers"
    )


def _not_callable(parameters: Any) -> Iterator[str]:
    """What forward asks for beside the tokens."""
    if not parameters:
        yield "its forward takes no tokens"
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    for place, (name, parameter) in enumerate(parameters.items()):
        if place == 0 and parameter.kind not in positional:
            yield f"its forward takes no tokens: the first argument is {parameter}"
        elif (
            place
            and parameter.default is parameter.empty
            and parameter.kind
            not in (
                inspect.Parameter.VAR_POSITIONAL,
                inspect.Parameter.VAR_KEYWORD,
            )
        ):
            yield f"its forward cannot be called with tokens alone: {name} has no default"


def _no_language_model(model: nn.Module, logits: Any, embedding: str | None) -> Iterator[str]:
    """What transformers expects of every causal language model."""
    if not isinstance(logits, Tensor):
        yield f"forward returns {type(logits).__name__}, not the logits as one tensor [batch, seq, vocab]"
    elif logits.dim() != 3 or logits.shape[:2] != (BATCH, LENGTH) or not logits.is_floating_point():
        yield f"forward of tokens [{BATCH}, {LENGTH}] returns {logits.dtype} {list(logits.shape)}, not logits [batch, seq, vocab]"
    if embedding is None:
        yield "no nn.Embedding takes the tokens themselves, so nothing says what get_input_embeddings() is"
    clash = [name for name in model.state_dict() if name.startswith(NAME)]
    if clash:
        yield f"{clash[0]}: names that begin with {NAME!r} are taken here; call the module something else"
    for alias, owner in _tied(model).items():
        if not _is_head_tie(model, alias, owner):
            yield f"{alias} shares the tensor of {owner}: transformers ties the head with the embedding, nothing else"


def _is_head_tie(model: nn.Module, alias: str, owner: str) -> bool:
    embedding = model.get_submodule(owner.rpartition(".")[0])
    return isinstance(embedding, nn.Embedding) and isinstance(model.get_submodule(alias.rpartition(".")[0]), nn.Linear)


def _tied(model: nn.Module) -> dict[str, str]:
    """Each further name of a parameter, with its first one."""
    first: dict[int, str] = {}
    found = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = first.setdefault(id(parameter), name)
        if owner != name:
            found[name] = owner
    return found


def _not_stored(model: nn.Module) -> Iterator[str]:
    stored = set(model.state_dict())
    for name, _ in model.named_buffers():
        if name not in stored:
            yield name


class _Seen:
    """One forward, and what went through each module."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.tokens = torch.zeros(BATCH, LENGTH, dtype=torch.int64, device="meta")
        self.calls: list[tuple[str, nn.Module, tuple[Any, ...], Any]] = []

    def run(self, arguments: dict[str, Any]) -> Any:
        """The output; `calls` gets (path, module, inputs, output) in the order in which modules finish."""
        self.calls.clear()
        hooks = [module.register_forward_hook(self._hook(path)) for path, module in self.model.named_modules() if path]
        try:
            with torch.no_grad():
                return self.model.eval()(self.tokens, **arguments)
        finally:
            for hook in hooks:
                hook.remove()

    def _hook(self, path: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        return lambda module, inputs, output: self.calls.append((path, module, inputs, output))

    def embedding(self) -> str | None:
        """The nn.Embedding that is given the tokens."""
        for path, module, inputs, _ in self.calls:
            if isinstance(module, nn.Embedding) and inputs and inputs[0] is self.tokens:
                return path
        return None

    def head(self, logits: Any) -> str | None:
        """The linear layer that returned the logits."""
        for path, module, _, output in self.calls:
            if isinstance(module, nn.Linear) and output is logits:
                return path
        return None

    def layers(self, hidden_size: int) -> str | None:
        """The longest outermost nn.ModuleList all of whose modules took `[batch, seq, hidden]` once, and gave it."""
        shape = (BATCH, LENGTH, hidden_size)
        whole = {p for p, _, i, o in self.calls if i and all(getattr(t, "shape", None) == shape for t in (i[0], o))}
        lists = [(p, m) for p, m in self.model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
        fitting = [
            (len(m), -p.count("."), p)
            for p, m in lists
            if all(f"{p}.{i}" in whole and sum(c[0] == f"{p}.{i}" for c in self.calls) == 1 for i in range(len(m)))
        ]
        return max(fitting)[2] if fitting else None

    def takes_cache(self) -> bool:
        """Whether the layers keep keys and values in what is given as `cache`."""
        cache = _Recorder()
        try:
            self.run({"cache": cache})
        except Exception:
            return False
        return cache.updates > 0


class _Recorder:
    """An empty cache that counts."""

    length = 0

    def __init__(self) -> None:
        self.updates = 0

    def update(self, layer_index: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """What was given."""
        self.updates += 1
        return k, v
