"""What a run tells while it trains, and what it keeps: loggers, samples of text, checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import attrs

from ..dsl import Lazy
from .validators import at_least, positive

if TYPE_CHECKING:
    import forgather_dsl  # noqa: F401  type checkers resolve the paths in the strings

T = TypeVar("T")


class Logger(Lazy[T], abstract=True):
    """Gets each record of `metrics.jsonl` as a dict: an object with `log(record)` and `close()`, made on rank 0.

    If it has `start(about)` too, it is first told the run's folder, settings and the step that it begins at.
    """

    __needs__: ClassVar[tuple[str, str] | None] = None  # a package, and the extra that brings it


class Console(Logger["forgather_dsl.train.console.Console"]):
    """A progress line on a terminal, plain lines elsewhere."""


class TensorBoard(Logger["forgather_dsl.train.tensorboard.TensorBoardLogger"]):
    """Event files for TensorBoard, in `tensorboard/` of the run unless told otherwise. Extra: tb."""

    __needs__ = ("tensorboard", "tb")

    folder: str | None = None


class Trackio(Logger["forgather_dsl.train.trackio.TrackioLogger"]):
    """Trackio, which keeps its data on this machine unless a Space is named. Extra: trackio."""

    __needs__ = ("trackio", "trackio")

    project: str = "forgather_dsl"
    space: str | None = None  # a Hugging Face Space that shows it, user/name


class WandB(Logger["forgather_dsl.train.wandb.WandBLogger"]):
    """Weights & Biases. Extra: wandb."""

    __needs__ = ("wandb", "wandb")

    project: str = "forgather_dsl"
    entity: str | None = None
    mode: Literal["online", "offline"] | None = None  # None: as the environment says, WANDB_MODE


class Sampling(Lazy[Any]):
    """Text written by the model before, during and after training."""

    prompt: str = "class Node:\n    def __init__(self"
    max_new_tokens: int = attrs.field(default=64, validator=at_least(1))
    temperature: float = attrs.field(default=0.7, validator=attrs.validators.ge(0.0))  # 0: the likeliest token
    top_k: int | None = attrs.field(default=50, validator=at_least(1))


class Watchdog(Lazy[Any]):
    """How long a run may stand still before it is ended as hung. None: for ever, as when a debugger stops it."""

    seconds: float | None = attrs.field(default=120.0, validator=positive)  # between two actions, batches, ...
    first_step_seconds: float | None = attrs.field(default=600.0, validator=positive)  # the same before the first step,
    # where kernels are compiled, and for each file of a checkpoint


class Checkpoints(Lazy[Any]):
    """Which checkpoints stay on disk, and how they are written."""

    keep_last: int = attrs.field(default=2, validator=attrs.validators.ge(1))
    keep_every: int | None = attrs.field(default=None, validator=at_least(1))  # steps: every n-th stays for ever
    keep_best: int = attrs.field(default=0, validator=attrs.validators.ge(0))  # by eval loss, of those just evaluated
    background: bool = True  # training goes on while they are written
