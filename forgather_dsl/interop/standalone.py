"""A model as one file that needs torch alone: its source, proven before it is handed out, and weights beside it.

What is proven: in a process that has torch alone the file loads the weights strictly and gives the same logits (whole,
by documents, token by token with a cache), the same loss and gradients with dropout, and the same first weights, all bit
for bit. A model too large for that is proven by a small twin whose file is the same but for the numbers it is built with.
"""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn

import codegen
from codegen.stamp import stamped

from ..dsl import Lazy
from ..errors import UserError
from ..models.init import initialise, tie_weights
from ..specs import Experiment
from .tracing import ALSO, Traced, told, traced
from .twin import same_code, twin_of

if TYPE_CHECKING:
    from .outgoing import Outgoing

TEXT, WEIGHTS = "model.py", "model.safetensors"
MOST_PARAMETERS = 2**25  # that are tried as they are: two copies, their gradients and a file of all of them
LENGTH = 72  # tokens of a row that is tried
PROVEN = "proven: "  # how the first line of what was proven begins, unless it was proven by a twin
CALLS = {  # by the argument of forward that they try
    "documents": "result = model(tokens, (torch.arange(tokens.shape[1]) // 7).expand(2, -1))",
    "cache": (
        "cache = KVCache()\n"
        "with torch.inference_mode():\n"
        "    result = [model(piece, None, cache) for piece in (tokens[:, :9], tokens[:, 9:10], tokens[:, 10:])]"
    ),
}
FIRST_WEIGHTS = "fresh = build()\ndraw_weights(fresh, 5)\nresult = list(fresh.state_dict().values())"


def source_of(experiment: Experiment) -> codegen.Source:
    """The source of an experiment's model, not yet proven. Raises UserError where it has none that stands alone."""
    return traced(experiment.model).source


def write_text(experiment: Experiment, into: str, proof: bool = True) -> list[str]:
    """Write model.py into a folder, proven with first weights; what was proven, for users."""
    found = traced(experiment.model)
    lines = _proven(experiment.model, found, None) if proof else _unproven()
    _write(found.source, into)
    return lines


def write_standalone(weights: Outgoing, into: str, proof: bool = True) -> list[str]:
    """Write model.py and the weights of a checkpoint, one tensor in memory at a time; what was proven, for users.

    Raises UserError where the model has no source that stands alone, or its source is not the model.
    """
    from .folder import write_tensors

    model = weights.experiment.model
    found = traced(model)
    whole = {name: entry._replace(file=WEIGHTS) for name, entry in weights.stored.items()}
    write_tensors(into, whole, weights.tensors())
    lines = _proven(model, found, os.path.join(into, WEIGHTS)) if proof else _unproven()
    _write(found.source, into)
    return lines


def _write(source: codegen.Source, into: str) -> None:
    with open(os.path.join(into, TEXT), "w", encoding="utf-8", newline="") as file:
        file.write(stamped(source.text))


def _unproven() -> list[str]:
    return ["not proven: --no-proof"]


def _proven(model: Lazy[Any], found: Traced, weights: str | None) -> list[str]:
    """Try the source, whole or by its twin; `weights` is a file of the model's."""
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in found.build().parameters())
    if parameters <= MOST_PARAMETERS:
        return [f"{PROVEN}{check(model, found, weights)}"]
    twin = twin_of(model)
    other = None if twin is None else traced(twin)
    if twin is None or other is None or not same_code(found.source, other.source):
        why = "has no small twin" if twin is None else "has other code than its small twin"
        raise UserError(
            f"a model of {parameters:,} parameters is too large to be tried here, and {why}; --no-proof writes it as it is"
        )
    small = sum(parameter.numel() for parameter in other.build().parameters())
    return [
        f"proven by a twin of {small:,} parameters, whose file differs in the numbers it is built with alone: "
        f"{check(twin, other, None)}",
        f"not tried: the model itself, whose {parameters:,} parameters are too many to hold twice",
    ]


def check(model: Lazy[Any], found: Traced, weights: str | None) -> codegen.Report:
    """Compare an emitted file with its model. Raises UserError naming what differs first, and by how much."""
    case = check_of(model, found, weights)
    try:
        return codegen.verify(
            case.source, case.model, case.build, inputs=case.inputs, calls=case.calls, also=case.also, weights=weights
        )
    except codegen.CodegenError as error:
        raise UserError(told(error)) from error


def check_of(model: Any, found: Traced, weights: str | None = None) -> codegen.Check:
    """What is compared: a model with the weights of a file, or with random ones."""
    live: Any = found.build()
    if weights is None:
        randomise(live)
    else:
        _load(live, weights)
    tokens = torch.randint(0, model.vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    takes = inspect.signature(live.forward).parameters
    calls = {name: f"tokens = inputs[0][0]\n{text}" for name, text in CALLS.items() if name in takes}
    calls["first weights"] = FIRST_WEIGHTS
    return codegen.Check(found.source, live, found.build, (tokens,), calls, ALSO)


@torch.no_grad()
def randomise(model: Any) -> None:
    """Large weights, and norms and biases that are not ones and zeros: small differences show."""
    initialise(model, 1)
    draw = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.add_(torch.empty(parameter.shape).normal_(0.0, 0.1, generator=draw))


def _load(model: nn.Module, weights: str) -> None:
    from safetensors import safe_open

    parameters = dict(model.named_parameters())
    with safe_open(weights, framework="pt") as file, torch.no_grad():
        for name in file.keys():  # noqa: SIM118  it is no mapping
            parameters[name].copy_(file.get_tensor(name))
    tie_weights(model)
