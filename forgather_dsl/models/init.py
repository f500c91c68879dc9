"""First weights: a model and a seed in, every parameter filled in place.

A value depends on the seed and the parameter's full name alone: each tensor is drawn by a generator of its own, on the
CPU and in fp32, a chunk at a time that is copied to where the parameter lives. So a model cut into stages starts with the
same numbers as the whole one, and an embedding of half a billion needs no second copy. `initialise` checks and places,
`draw_weights` draws.
"""

from __future__ import annotations

import copy
import hashlib
import math
from typing import Any

import torch
import torch.nn as nn

from forgather_dsl.models.parts import part_of

CHUNK = 1 << 23  # numbers drawn at a time, 32 MiB: a multiple of 16, which torch draws together, so it changes no bit
_RESIDUAL_OUTPUTS = ("o_proj", "down_proj")  # what a layer adds to the residual stream


class NormalInit:
    """Normal values of mean 0 and standard deviation `std`."""

    def __init__(
        self,
        std: float,
        depth_scaled: bool,  # so that the sum of all layers' outputs keeps its size whatever the depth
    ) -> None:
        if std <= 0:
            raise ValueError(
                f"std={std} would start all weights equal: write a small positive number, such as std=0.02"
            )
        self.std = std
        self.depth_scaled = depth_scaled

    def fill(self, name: str, flat: Any, num_layers: int, generator: torch.Generator) -> None:
        """Give the weight called `name` (such as `model.layers.0.mlp.up_proj.weight`) its values, drawn in fp32 on the CPU.

        `flat`: its numbers in one dimension, of any format and device; a chunk at a time is copied to them.
        """
        std = self.std
        if self.depth_scaled and name.split(".")[-2] in _RESIDUAL_OUTPUTS:
            std /= math.sqrt(2 * num_layers)  # GPT-2, section 2.3
        ends = [*range(CHUNK, len(flat) - 15, CHUNK), len(flat)]  # a rest too short to be drawn alike joins the last
        for start, end in zip([0, *ends], ends):
            flat[start:end].copy_(torch.empty(end - start, dtype=torch.float32).normal_(0.0, std, generator=generator))


@torch.no_grad()
def initialise(model: Any, seed: int, device: torch.device | str | None = None) -> None:
    """Fill every parameter of `model`, or of the parts of it that were not dropped; first move it to `device` if given.

    Raises `ValueError` for what would be left unfilled: a parameter on the meta device, a module without
    `reset_parameters`; and for a `reset_parameters` that spans the layers, which a pipeline stage holds only in part.
    """
    _check_fillable(model, getattr(model, "init", None) is not None)
    _place(model, device)
    tie_weights(model)
    draw_weights(model, seed)
    _draw_tied(model, seed)


@torch.no_grad()
def initialise_part(model: Any, part: nn.Module, seed: int | None, device: torch.device) -> None:
    """Move one part of `model` from the meta device to `device` and fill it, or with no seed leave what is there; the rest may
    be anywhere, cut by rows too.

    Raises `ValueError` as `initialise`.
    """
    _check_fillable(model, getattr(model, "init", None) is not None)
    part.to_empty(device=device)
    tie_weights(model)
    if seed is not None:
        draw_weights(model, seed, frozenset(part.modules()))


@torch.no_grad()
def draw_weights(model: Any, seed: int, within: frozenset[nn.Module] | None = None) -> None:
    """Fill every parameter of `model` for the first time, or those of the modules `within`.

    Linear and embedding weights come from `model.init.fill`, their biases are 0. Any other module (and every module
    of a model without `init`) is filled by its own `reset_parameters`, after its children, from a generator seeded by
    its name. A shared weight is drawn once, under its first name.
    """
    init = getattr(model, "init", None)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for path, module in reversed(list(model.named_modules())):  # children come before what holds them
        if within is not None and module not in within:
            continue
        if init is not None and _is_plain(module):
            name = names.pop(id(module.weight), None)
            if name is not None:
                generator = torch.Generator("cpu").manual_seed(generator_seed(seed, name))
                init.fill(name, module.weight.view(-1), len(model.layers), generator)
            if getattr(module, "bias", None) is not None:
                module.bias.zero_()
        elif hasattr(module, "reset_parameters"):
            _reset(module, generator_seed(seed, path))


def _draw_tied(model: Any, seed: int) -> None:
    """Draw weights that have another name here than in the whole model: a stage may hold the head of a tied pair alone."""
    if getattr(model, "init", None) is None:
        return
    owners, names = tied_names(model), {id(parameter): name for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owner = owners.get(name)
        if owner is not None and names[id(parameter)] != owner:
            generator = torch.Generator("cpu").manual_seed(generator_seed(seed, owner))
            model.init.fill(owner, parameter.view(-1), len(model.layers), generator)


def tie_weights(model: Any) -> None:
    """Make the head's weight the embedding's Parameter again, if the model is tied and holds both.

    Needed after `to_empty`, which gives each of the two a Parameter of its own.
    """
    if getattr(model, "tied", False):
        embed, head = part_of(model, "embed"), part_of(model, "head")
        if embed is not None and head is not None:
            head.weight = embed.weight


def tied_names(model: Any) -> dict[str, str]:
    """The names in `model` that stand for the Parameter of another name, also where a stage holds one of them only.

    Raises `ValueError` when a tied model has no `tied_weights`.
    """
    if not getattr(model, "tied", False):
        return {}
    if not hasattr(model, "tied_weights"):
        raise ValueError(
            f"{type(model).__name__} is tied but does not name its tied weights: give it a property tied_weights, such "
            'as {"lm_head.weight": "model.embed_tokens.weight"} (the head\'s name, then the embedding\'s)'
        )
    return model.tied_weights


def _is_plain(module: nn.Module) -> bool:
    """A linear or embedding layer, or a subclass that does not bring its own first weights."""
    return (isinstance(module, nn.Linear) and type(module).reset_parameters is nn.Linear.reset_parameters) or (
        isinstance(module, nn.Embedding) and type(module).reset_parameters is nn.Embedding.reset_parameters
    )


def generator_seed(seed: int, name: str) -> int:
    """Of the generator that draws the parameter called `name`."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "big")


def _place(model: nn.Module, device: torch.device | str | None) -> None:
    meta = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    if device is not None:
        model.to_empty(device=device) if meta else model.to(device)
    elif meta:
        raise ValueError(
            f"{meta[0]} (of {len(meta)} tensors) is on the meta device and has no memory to fill: write "
            "initialise(model, seed, device=...), or call model.to_empty(device=...) first"
        )


def _check_fillable(model: Any, has_init: bool) -> None:
    resetting: list[str] = []
    for path, module in model.named_modules():
        if has_init and _is_plain(module):
            continue
        if hasattr(module, "reset_parameters"):
            if any(child is model.layers for child in module.modules()):
                raise ValueError(
                    f"{type(module).__name__}.reset_parameters would fill all layers at once, but a pipeline stage "
                    "holds only some of them: move it into the modules that own the parameters"
                )
            resetting.append(path)
        owned = [key for key, _ in module.named_parameters(recurse=False)]
        owned += [key for key, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        if owned and not any(path == above or path.startswith(f"{above}.") for above in resetting):
            raise ValueError(
                f"nothing fills {f'{path}.{owned[0]}'.lstrip('.')}: give {type(module).__name__} a method "
                "reset_parameters() that sets its parameters and buffers"
            )


def _reset(module: Any, generator_seed: int) -> None:
    """Run `reset_parameters` on a copy of the module in fp32 on the CPU, as GPUs draw other numbers; copy the results."""
    scratch = copy.deepcopy(module).to("cpu").float()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator_seed)  # torch.manual_seed would reseed the GPUs too
        scratch.reset_parameters()
    filled = dict(scratch.named_parameters()) | dict(scratch.named_buffers())
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        tensor.copy_(filled[name])
