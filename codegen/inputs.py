"""What a model is tried with: descriptions such as `int[2,16]<100`, and a guess for models that begin with an embedding."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .errors import CodegenError, Problem

Inputs = tuple[Any, ...] | Mapping[str, Any]  # positional arguments, or arguments by name
_FORM = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<kind>[a-z]\w*)\[(?P<shape>[\d,\s]*)\](?:<(?P<below>\d+))?")
_KINDS = {"int": torch.int64, "float": torch.float32, "bool": torch.bool, "complex": torch.complex64}
_HINT = "write them as int[2,16]<100 (below 100), float[2,8], bfloat16[2,8] or bool[2,16]; with a name, mask=bool[2,16]"


def described(words: Sequence[str], seed: int = 0) -> Inputs:
    """Tensors as words describe them, drawn under a seed: a tuple, or a dict when all words have names.

    Raises CodegenError for words that are none.
    """
    draw = torch.Generator().manual_seed(seed)
    named: list[tuple[str | None, Tensor]] = []
    problems: list[Problem] = []
    for word in words:
        match = _FORM.fullmatch(word.strip())
        dtype = match and (_KINDS.get(match["kind"]) or getattr(torch, match["kind"], None))
        if match is None or not isinstance(dtype, torch.dtype):
            problems.append(Problem(f"{word!r} describes no tensor", _HINT))
            continue
        shape = [int(size) for size in match["shape"].split(",") if size.strip()]
        named.append((match["name"], _drawn(dtype, shape, int(match["below"] or 0), draw)))
    if len({name is None for name, _ in named}) > 1:
        problems.append(Problem("inputs with and without names are mixed", "give all of them names, or none"))
    if problems:
        raise CodegenError(problems)
    if named and named[0][0] is not None:
        return {str(name): tensor for name, tensor in named}
    return tuple(tensor for _, tensor in named)


def _drawn(dtype: torch.dtype, shape: list[int], below: int, draw: torch.Generator) -> Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        wide = torch.complex64 if dtype.is_complex else torch.float32
        return torch.randn(shape, generator=draw, dtype=wide).to(dtype)
    return torch.randint(0, below or (2 if dtype == torch.bool else 10), shape, generator=draw).to(dtype)


def as_sets(inputs: Any, model: nn.Module) -> list[Inputs]:
    """What a caller gave, as a list of sets; guessed when nothing was given and the model begins with an embedding."""
    if inputs is None:
        return [_guessed(model)]
    sets = inputs if isinstance(inputs, list) else [inputs]
    wrong = [each for each in sets if not isinstance(each, (tuple, Mapping))]
    if wrong or not sets:
        what = type(wrong[0]).__name__ if wrong else "an empty list"
        raise CodegenError([Problem(f"inputs are {what}", "pass a tuple of arguments, a dict, or a list of such sets")])
    return sets


def _guessed(model: nn.Module) -> Inputs:
    first = next((module for module in model.modules() if not list(module.children())), None)
    if isinstance(first, nn.Embedding):
        return described([f"int[2,16]<{first.num_embeddings}"])
    begins = "" if first is None else f", which begins with {type(first).__name__},"
    hint = "pass inputs=, a tuple of arguments or a dict, or a list of several such"
    raise CodegenError([Problem(f"what {type(model).__name__}{begins} takes cannot be guessed", hint)])
