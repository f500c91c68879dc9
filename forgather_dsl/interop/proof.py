"""Proof that transformers computes from a folder what our model computes from its checkpoint: part by part, on random tokens.

In: a folder that stock classes of transformers load, a model spec, a reader of our tensors. Out: a line that says what was seen,
or a refusal that names the first part that differs. Everything is computed in float32 from the numbers as they are stored.
Each of our parts gets what theirs got, so a difference is of that part; our own logits are compared at the end as well.
Ours is in memory one part at a time. Theirs is loaded whole where that fits, else part by part by hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..dsl import build
from ..errors import UserError
from ..plan.hardware import host_memory
from ..specs import SlidingWindow
from .folder import EMBEDDING, HEAD, Folder, open_folder

__all__ = ["BOUND", "prove"]

BOUND = 1e-5  # of the largest number that a part puts out: float32 sums of the same numbers in another order
SEQUENCES, LENGTH, LONGEST = 2, 32, 1024  # of random tokens; longer where a window would not be seen
MEMORY_SHARE = 0.6  # of what is free, for a whole model of theirs

Read = Callable[[Iterable[str]], Iterator[tuple[str, Tensor]]]


class _Seen(NamedTuple):
    """What a part of theirs was given and what it made of it."""

    given: Tensor
    made: Tensor


@torch.no_grad()
def prove(where: str, model: Any, read: Read, what: str, rows: int | None = None) -> str:
    """Compare; returns what was seen.

    Args:
        where: a folder that transformers loads without code of its own.
        model: our spec, and `read` our tensors by name; `what` they are, for a message.
        rows: of the vocabulary that both have, from the first; None: all.

    Raises:
        UserError: something differs by more than `BOUND`: the first part, and what in it; or is not finite.
    """
    folder = open_folder(where)
    theirs, whole = _load(folder)
    ours = _Parts(model, read)
    rows = int(model.vocab_size) if rows is None else rows
    tokens = _tokens(model, rows)
    seen = _run(theirs, list(ours.paths), tokens)
    x, exact = tokens, True
    for path, was in seen.items():
        made = ours.run(path, was.given)
        x = made if torch.equal(x, was.given) else ours.run(path, x)
        if path == "lm_head":
            made, x, was = made[..., :rows], x[..., :rows], _Seen(was.given, was.made[..., :rows])
        if not bool(made.isfinite().all()):
            raise UserError(
                f"{what} computes numbers that are not finite, from {path} on; take an earlier checkpoint, or write --no-proof"
            )
        exact = exact and torch.equal(made, was.made)
        if not _close(made, was.made):
            inner = _inside(theirs, ours, path, tokens, was)
            raise UserError(_refusal(type(theirs).__name__, what, path, inner, made, was.made))
    return _told(theirs, tokens, x, seen["lm_head"].made[..., :rows], exact, whole)


def _told(theirs: Any, tokens: Tensor, ours: Tensor, found: Tensor, exact: bool, whole: bool) -> str:
    import transformers

    how = "" if whole else ", read part by part, as there is no memory for all of it"
    head = f"{type(theirs).__name__} of transformers {transformers.__version__}{how}, on {tokens.numel()} random tokens"
    if exact:
        return f"{head}: the same logits, bit for bit"
    difference, largest = (ours - found).abs().max().item(), found.abs().max().item()
    return f"{head}: logits differ by at most {difference:.1e} of {largest:.3g}, each layer by less than {BOUND:.0e}"


def _refusal(name: str, what: str, part: str, inner: str, made: Tensor, wanted: Tensor) -> str:
    off = (made - wanted).abs().max().item()
    return (
        f"{name} of transformers does not compute what {what} does: {part} is the first part that differs, by up to "
        f"{off:.3g} where the largest number is {wanted.abs().max().item():.3g}{inner}; nothing was written"
    )


def _close(made: Tensor, wanted: Tensor) -> bool:
    return bool((made - wanted).abs().max() <= BOUND * wanted.abs().max())


def _tokens(model: Any, rows: int) -> Tensor:
    """Ids [sequences, length], the same each time; long enough to leave a window, if that is not too long."""
    window = model.attention.window if isinstance(model.attention, SlidingWindow) else 0
    length = window + LENGTH if window + LENGTH <= LONGEST else LENGTH
    return torch.randint(0, rows, (SEQUENCES, length), generator=torch.Generator().manual_seed(0))


class _Parts:
    """Our model, one part in memory at a time."""

    def __init__(self, model: Any, read: Read) -> None:
        with torch.device("meta"):
            self.model: Any = build(model)
        self.model.eval()
        self.read = read
        self.owners = self.model.tied_weights
        layers = [f"model.layers.{i}" for i in range(model.num_layers)]
        names = ["model.embed_tokens", *layers, "model.norm", "lm_head"]
        self.paths: dict[str, nn.Module] = {name: self.model.get_submodule(name) for name in names}
        if self.owners:
            self.model.lm_head.weight = nn.Parameter(self.model.lm_head.weight.detach())  # each part for itself

    def run(self, path: str, x: Tensor) -> Tensor:
        """What a part makes of `x`."""
        part = self.paths[path]
        _fill(part, path, self.read, self.owners)
        context = self.model.context(x.shape[1], 0, None, "cpu")
        made = part(x, context, None) if ".layers." in path else part(x)
        part.to("meta")
        return made


def _fill(part: nn.Module, path: str, read: Read, owners: dict[str, str]) -> None:
    """Give a part on the meta device memory and its weights, in float32."""
    part.to_empty(device="cpu").float()
    names = {owners.get(f"{path}.{key}", f"{path}.{key}"): parameter for key, parameter in part.named_parameters()}
    for name, tensor in read(names):
        names[name].copy_(tensor)


def _load(folder: Folder) -> tuple[Any, bool]:
    """Theirs, and whether it is in memory whole. Raises UserError: it does not take all tensors, or wants more."""
    import transformers

    size = 4 * sum(torch.Size(entry.shape).numel() for entry in folder.stored.values())
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if size > MEMORY_SHARE * _free_memory():
        config = transformers.AutoConfig.from_pretrained(folder.path, **options)
        return _on_demand(folder, config), False
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            folder.path, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True, **options
        )
    finally:
        transformers.logging.set_verbosity(level)
    model, report = loaded
    wrong = [f"{key}: {', '.join(sorted(map(str, report[key])))}" for key in report if report[key]]
    if wrong:
        raise UserError(f"{type(model).__name__} of transformers does not take these weights: {'; '.join(wrong)}")
    return model.eval(), True


def _on_demand(folder: Folder, config: Any) -> Any:
    """Theirs, each part in memory only while it works."""
    import transformers

    with torch.device("meta"):
        model: Any = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    rotary = model.model.rotary_emb
    model.model.rotary_emb = type(rotary)(config=model.config)  # its buffers are in no file
    owners = {HEAD: EMBEDDING} if HEAD not in folder.stored else {}
    parts = {"model.embed_tokens": model.model.embed_tokens, "model.norm": model.model.norm, "lm_head": model.lm_head}
    if model.lm_head.weight is model.model.embed_tokens.weight:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach())
    for path, part in {**parts, **{f"model.layers.{i}": p for i, p in enumerate(model.model.layers)}}.items():
        part.register_forward_pre_hook(lambda part, _, path=path: _fill(part, path, folder.tensors, owners))
        part.register_forward_hook(lambda part, *_: part.to("meta") and None)
    return model.eval()


def _run(theirs: Any, paths: list[str], tokens: Tensor) -> dict[str, _Seen]:
    """What each of these parts of theirs was given and made, in the order in which they worked."""
    seen: dict[str, _Seen] = {}
    hooks = []
    for path in paths:

        def keep(_: nn.Module, args: Any, kwargs: Any, made: Any, path: str = path) -> None:
            given = args[0] if args else next(iter(kwargs.values()))
            seen[path] = _Seen(given, made[0] if isinstance(made, tuple) else made)

        hooks.append(theirs.get_submodule(path).register_forward_hook(keep, with_kwargs=True))
    try:
        theirs(input_ids=tokens, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _inside(theirs: Any, ours: _Parts, path: str, tokens: Tensor, was: _Seen) -> str:
    """Which module within a part of both is the first to differ, for a message."""
    part = ours.paths[path]
    shared = {name for name, _ in theirs.get_submodule(path).named_modules() if name}
    names = [name for name, _ in part.named_modules() if name in shared]
    if not names:
        return ""
    wanted = _run(theirs, [f"{path}.{name}" for name in names], tokens)
    found: dict[str, Tensor] = {}
    hooks = []
    for name in names:

        def keep(_: nn.Module, __: Any, made: Any, name: str = f"{path}.{name}") -> None:
            found[name] = made[0] if isinstance(made, tuple) else made

        hooks.append(part.get_submodule(name).register_forward_hook(keep))
    ours.run(path, was.given)
    for hook in hooks:
        hook.remove()
    for name, seen in wanted.items():
        if name in found and not _close(found[name].reshape(seen.made.shape), seen.made):
            return f" ({name} is the first module in it)"
    return ""


def _free_memory() -> int:
    """Bytes that a process can have."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable"):
                    return min(int(line.split()[1]) * 1024, host_memory())
    except (OSError, ValueError):
        pass
    return host_memory() // 2
