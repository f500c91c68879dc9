"""How the gradients of a step reach the weights: after the backward pass, in it, or on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import attrs

from ..dsl import Lazy
from .optimizers import AdamW
from .parallel import DDP, Pipeline
from .validators import positive

if TYPE_CHECKING:
    from .experiment import Experiment

__all__ = ["AfterBackward", "InBackward", "OnHost", "Update"]

Problem = tuple[str, str]
"""A field, and what is wrong with it."""


class Update(Lazy[Any], abstract=True):
    """When and where the optimizer steps. `clip_rms` limits each tensor by itself: its learning rate is divided by the root
    mean square of gradient over the square root of AdamW's second moment, where that exceeds `clip_rms`
    (StableAdamW, https://arxiv.org/abs/2304.13013; 1.0 is usual). It needs nothing of other tensors.
    """

    clip_rms: float | None = attrs.field(default=None, validator=positive)

    def __refused__(self, experiment: Experiment) -> Iterator[Problem]:
        """What cannot be exact with the rest of the experiment."""
        if self.clip_rms is not None and type(experiment.optimizer).__target__ != AdamW.__target__:
            name = type(experiment.optimizer).__name__
            yield (
                "update.clip_rms",
                f"it is defined by AdamW's second moment, which {name} has not; leave it out, or write optimizer=AdamW()",
            )
        if self.clip_rms is not None and getattr(experiment.optimizer, "states", "fp32") == "8bit":
            yield (
                "update.clip_rms",
                "it reads the second moment, which 8-bit states hold in blocks; leave it out, or write "
                "optimizer=AdamW(states='fp32')",
            )


class AfterBackward(Update):
    """One update at the end of the step, when all gradients are there: clipped by their global norm, or skipped."""


class InBackward(Update):
    """Each layer is updated as soon as its last gradient of the step is there, and its gradients are freed: on one rank with
    one microbatch no more than one layer's are alive. Nothing can be clipped by a global norm, and a step that is not
    finite cannot be skipped: it ends the run (exit code 4).
    """

    def __refused__(self, experiment: Experiment) -> Iterator[Problem]:
        """A global norm, replicas, and what takes updates back."""
        yield from super().__refused__(experiment)
        if experiment.clip_norm is not None:
            yield (
                "update",
                "InBackward updates before the global norm is known, so clip_norm cannot be exact; write clip_norm = None "
                "(and update = InBackward(clip_rms=1.0) to limit each tensor by itself), or update = AfterBackward()",
            )
        yield from _not_with(
            experiment.parallel,
            "InBackward",
            replicas="replicas add up their gradients before any update",
            post_validation="post_validation takes back a whole update",
            torch="torch's runtime does not tell when a layer's gradients are complete",
        )


class OnHost(Update):
    """The optimizer runs on the host: its state and fp32 masters are in the host's memory, and weights come back layer by layer
    while the next step begins. With `gradients="host"` each layer's gradient leaves the device as soon as a microbatch's
    backward of it is done, and is added up on the host in fp32; with "device" they stay there until the end of the step.
    """

    gradients: Literal["device", "host"] = "device"

    def __refused__(self, experiment: Experiment) -> Iterator[Problem]:
        """What takes updates back, what rounds masters, and gradients that would have to come back to be added up."""
        yield from super().__refused__(experiment)
        yield from _not_with(
            experiment.parallel, "OnHost", post_validation="post_validation takes back an update on the device"
        )
        if self.gradients == "host":
            yield from _not_with(
                experiment.parallel,
                "OnHost(gradients='host')",
                "OnHost(gradients='device')",
                replicas="replicas add up their gradients on the devices",
                torch="torch's runtime does not tell when a layer's gradients are complete",
            )
        rounding = getattr(experiment.precision, "rounding", "exact")
        if rounding != "exact":
            yield (
                "update",
                f"OnHost keeps exact fp32 masters on the host, so nothing is left to round in a way of its own; write "
                f"BF16() without rounding={rounding!r}, or update = AfterBackward()",
            )


def _not_with(parallel: Any, name: str, instead: str = "AfterBackward()", **reasons: str) -> Iterator[Problem]:
    """Of the options named in `reasons`, those that a strategy has."""
    if not isinstance(parallel, (Pipeline, DDP)):  # of FSDP2 see sharding.py
        return
    has = {
        "replicas": parallel.replicas > 1,
        "post_validation": isinstance(parallel, Pipeline) and parallel.post_validation,
        "torch": isinstance(parallel, Pipeline) and parallel.engine == "torch",
    }
    written = {"replicas": "parallel.replicas=1", "post_validation": "post_validation=False", "torch": "engine='own'"}
    for option, why in reasons.items():
        if has[option]:
            yield "update", f"{name} does not go with this: {why}; write {written[option]}, or update = {instead}"
