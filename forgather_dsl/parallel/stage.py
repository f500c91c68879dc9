"""One stage of a pipeline: the part of a model that one rank holds, and how a microbatch goes through it.

In: a whole model on the meta device (protocol: `layers`, `context`, `tied`, and `embed`, `norm`, `head` as in
`models.parts`) and the layers to keep. Out: the same model with the rest set to None, materialised, its linear layers
deferred; parameters keep their full names. Dropout is reseeded before every layer, so it does not depend on the cut, the
schedule or recomputing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn as nn

from forgather_dsl.models.init import tie_weights
from forgather_dsl.models.parts import drop_part, largest_dropout, part_of
from forgather_dsl.parallel.compiled import compiled_layer, run_layer
from forgather_dsl.parallel.deferred import defer
from forgather_dsl.parallel.offload import Offload
from forgather_dsl.parallel.recompute import Keeping, Policy
from forgather_dsl.parallel.tiles import tile_mlp

__all__ = ["EMBED", "END", "Key", "Stage", "path_of"]

EMBED, END = -1, 1 << 30  # parts of a stage beside its layers: the embedding; the final norm and the head

Key = tuple[int, int, int]
"""(seed, step, global number of the microbatch): with the layer, what dropout is drawn from."""


class Stage:
    """Stage `index` of `num_stages`: the embedding if first, `layers`, the final norm and the head if last.

    `model` is taken over and cut; with its head set to None the last stage ends with the norm (see `shard`). Under `autocast`
    (a dtype or None) the residual stream has that dtype on every stage, so that sending it changes nothing. `recompute`,
    `offload` and `mlp_tiles` say what each layer keeps for the backward, and where (see the module `recompute`).
    Its weights hold no values before `initialise(stage.model, seed)` or a checkpoint fills them; those of a `hollow` stage
    have no memory either, until somebody places them.
    Raises ValueError when the model holds parameters outside its parts, or shared between stages.
    """

    def __init__(
        self,
        model: Any,
        index: int,
        num_stages: int,
        layers: range,
        device: torch.device,
        autocast: torch.dtype | None = None,
        recompute: Policy = "none",
        offload: bool = False,
        mlp_tiles: int = 1,
        hollow: bool = False,
    ) -> None:
        if not layers or layers[0] < 0 or layers[-1] >= len(model.layers):
            raise ValueError(f"stage {index} would hold {layers} of a model with {len(model.layers)} layers")
        self.model, self.index, self.num_stages, self.layers = model, index, num_stages, layers
        self.device, self.autocast = device, autocast
        self.first, self.last = index == 0, index == num_stages - 1
        self.tied: bool = model.tied
        self.dropout: float = largest_dropout(model)  # of the whole model
        embedding: nn.Parameter = part_of(model, "embed").weight
        self.dim: int = embedding.shape[1]
        self.dtype: torch.dtype = autocast or embedding.dtype  # of activations
        self.mirror_name = f"{path_of(model, part_of(model, 'head'))}.weight" if self.tied and self.last else None
        _check_parts(model, self.first, self.last, layers)
        self._cut()
        self._materialise(hollow)
        self.gradients = defer(model)
        self._run_layer = run_layer
        self.keeping = Keeping(recompute, self.gradients, Offload(device) if offload else None)
        for number in layers if mlp_tiles > 1 else ():
            tile_mlp(model.layers[number], mlp_tiles, self.gradients)
        self.needed: Callable[[int], None] | None = None
        """Called with a part (see `parts`) before its forward."""
        self.passed: Callable[[int], None] | None = None
        """Called, by a backward of what was run with this set or not, with a part whose gradients are all there."""
        self.tells = False  # whether forwards prepare for `passed`
        self._positions: tuple[int, Any] | None = None  # a length, and the context of all microbatches of that length

    def _cut(self) -> None:
        model: Any = self.model
        for number in set(range(len(model.layers))) - set(self.layers):
            model.layers[number] = None
        if not self.first:
            drop_part(model, "embed")
        if not self.last:
            drop_part(model, "norm")
            drop_part(model, "head")

    def _materialise(self, hollow: bool) -> None:
        model: Any = self.model
        lost = [name for name, buffer in model.named_buffers() if buffer.is_meta]
        if lost:
            raise ValueError(f"the buffer {lost[0]} has no values on the meta device: compute it in the forward")
        if hollow:
            return
        if any(parameter.is_meta for parameter in model.parameters()):
            model.to_empty(device=self.device)
        else:
            model.to(self.device)
        tie_weights(model)  # to_empty has made two of it

    @property
    def described(self) -> str:
        """For messages."""
        first, last = self.layers[0], self.layers[-1]
        layers = f"layers {first} to {last}" if len(self.layers) > 1 else f"layer {first}"
        return f"stage {self.index} of {self.num_stages} ({layers})"

    def compile(self) -> None:
        """From here on layers run compiled where gradients are taken. Evaluation runs them as written: its shapes differ."""
        compiled = compiled_layer()

        def run(layer: Any, x: torch.Tensor, context: Any) -> torch.Tensor:
            return (compiled if torch.is_grad_enabled() else run_layer)(layer, x, context)

        self._run_layer = run

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters to train, each once, under its full name; a tied head's weight is the embedding's to train."""
        seen = set()
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            if name != self.mirror_name and id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def parts(self) -> dict[int, list[tuple[str, nn.Parameter]]]:
        """Parameters to train by part, in the order of a forward: EMBED, the numbers of layers, END; without a tied weight."""
        model: Any = self.model
        names = {id(p): (name, p) for name, p in self.named_parameters() if p.requires_grad}
        if self.tied and self.first:
            names.pop(id(part_of(model, "embed").weight), None)
        modules = [(EMBED, part_of(model, "embed") if self.first else None)]
        modules += [(number, model.layers[number]) for number in self.layers]
        modules += [(END, part_of(model, part) if self.last else None) for part in ("norm", "head")]
        parts: dict[int, list[tuple[str, nn.Parameter]]] = {}
        for part, module in modules:
            found = [names.pop(id(p)) for p in (module.parameters() if module else ()) if id(p) in names]
            parts.setdefault(part, []).extend(found)
        return parts

    def forward(
        self, x: torch.Tensor, documents: torch.Tensor | None, key: Key, headless: bool = False
    ) -> torch.Tensor:
        """One microbatch: ids `[batch, seq]` (first stage) or `[batch, seq, dim]` to `[batch, seq, dim]` or logits.

        `documents [batch, seq]` are ids that attention does not cross, or None. `headless`: the last stage ends with the
        normed hidden states, for a loss that takes the head itself.
        """
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None, cache_enabled=False):
            context = self._context(x.shape[1], documents)
            x = self._embed(x)
            self.keeping.begin()
            for number in self.layers:
                x = self._layer(number, self._enter(number, x), context, key)
            return self._head(x, headless)

    def _enter(self, part: int, x: torch.Tensor) -> torch.Tensor:
        """The input of a part: its gradient is the last thing that the part's backward makes."""
        if self.needed is not None:
            self.needed(part)
        if self.tells and x.requires_grad:
            x.register_hook(lambda _: self.passed and self.passed(part))
        return x

    def _context(self, length: int, documents: torch.Tensor | None) -> Any:
        """One for all microbatches where none has documents of its own: each would keep its tables and masks until B."""
        if documents is not None:
            return self.model.context(length, 0, documents, self.device)
        if self._positions is None or self._positions[0] != length:
            self._positions = length, self.model.context(length, 0, None, self.device)
        return self._positions[1]

    def decode(self, x: torch.Tensor, offset: int, cache: Any) -> torch.Tensor:
        """New positions from `offset` on, for generation; keys and values go to `cache`.

        Last stage: logits `[batch, 1, vocab]` of the last position only. Call it under no_grad.
        """
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None, cache_enabled=False):
            context = self.model.context(x.shape[1], offset, None, self.device)
            x = self._embed(x)
            for number in self.layers:
                x = self.model.layers[number](self._enter(number, x), context, cache).to(self.dtype)
            return self._head(x[:, -1:] if self.last else x)

    def _embed(self, x: torch.Tensor) -> torch.Tensor:
        return part_of(self.model, "embed")(self._enter(EMBED, x)).to(self.dtype) if self.first else x

    def _head(self, x: torch.Tensor, headless: bool = False) -> torch.Tensor:
        if not self.last:
            return x
        x = self._enter(END, x)
        x, head = part_of(self.model, "norm")(x), part_of(self.model, "head")
        return x.to(self.dtype) if headless or head is None else head(x)

    def _layer(self, number: int, x: torch.Tensor, context: Any, key: Key) -> torch.Tensor:
        layer = self.model.layers[number]
        drops = self.dropout > 0 and self.model.training

        def run(x: torch.Tensor) -> torch.Tensor:
            if drops:
                _reseed(self.device, (*key, number))
            return self._run_layer(layer, x, context).to(self.dtype)

        # what draws random numbers is reseeded above, so a policy that runs the layer twice need keep no state of generators
        return self.keeping.run(run, x) if torch.is_grad_enabled() else run(x)


def _reseed(device: torch.device, key: tuple[int, ...]) -> None:
    """Set the global generator of `device` from a hash of (seed, step, microbatch, layer)."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    seed = int.from_bytes(digest[:8], "big") >> 1  # generators take 63 bits
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def path_of(model: nn.Module, module: nn.Module) -> str:
    """The name of a module in a model."""
    return next(path for path, candidate in model.named_modules(remove_duplicate=False) if candidate is module)


def _check_parts(model: Any, first: bool, last: bool, layers: range) -> None:
    """Every parameter belongs to one part, and no part of another stage shares one with ours, the tied weight apart."""
    parts = [(own, part_of(model, part)) for own, part in ((first, "embed"), (last, "norm"), (last, "head"))]
    parts += [(number in layers, layer) for number, layer in enumerate(model.layers)]
    ours: dict[int, str] = {}
    theirs: set[int] = set()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for own, part in parts:
        for parameter in part.parameters() if part is not None else ():  # a spread head is not a stage's
            if own:
                ours[id(parameter)] = names[id(parameter)]
            else:
                theirs.add(id(parameter))
    outside = [name for key, name in names.items() if key not in ours and key not in theirs]
    if outside:
        raise ValueError(f"{outside[0]} is in none of embed, layers, norm and head, so no stage would train it")
    tied = {id(part_of(model, "embed").weight)} if model.tied else set()
    shared = [ours[key] for key in sorted((ours.keys() & theirs) - tied)]
    if shared:
        raise ValueError(f"{shared[0]} is shared with another stage; only a tied embedding and head may be cut apart")
