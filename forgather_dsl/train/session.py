"""One rank's live state of a run: its stages, optimizer, data and place in them; built from the experiment, saved and restored.

`run_session` is what a single process, a launched rank and a rank of torchrun all call.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..dsl import ConfigError, build, digest
from ..errors import Interrupted, UserError
from ..parallel.failures import PeerLost
from ..parallel.group import Mesh, World, join, leave, make_mesh
from ..parallel.meeting import several_machines
from ..parallel.progress import PROGRESS, on_disk
from ..parallel.reducing import make_reducer
from ..plan.layout import Layout
from ..specs import Experiment
from ..specs.experiment import world_size
from . import saving
from .agreement import Ranks, Said
from .assembly import make_loss, make_optimizer
from .batches import make_loader
from .checkpoint import Saved
from .directory import read_layout
from .first_weights import begin_with
from .guards import Guards
from .lost_updates import LostUpdates
from .machines import require_same_data, require_shared
from .memory_report import MemoryReport, doing, process_peak
from .prepare import Prepared, prepare
from .repeatable import repeatable
from .strategy import make_owner, make_pipeline
from .update.applying import make_update
from .watching import Watch

FAILED_SECONDS = 30.0  # that a rank waits for a save under way when training has failed,
LOST_SECONDS = 0.5  # and when another rank is gone: its part may be there already


class Session:
    """Everything one rank needs to train."""

    def __init__(self, experiment: Experiment, path: str, prepared: Prepared, world: World) -> None:
        self.experiment, self.path, self.prepared, self.world = experiment, path, prepared, world
        layout = read_layout(path)
        self.mesh = _mesh(experiment, layout, world)
        self.pipeline = make_pipeline(experiment, layout, world, self.mesh)
        self.owner = make_owner(experiment, self.pipeline, self.mesh)
        self.parameters = dict(self.owner.named_parameters())
        self.ranks = Ranks(world, list(self.parameters), self.owner.counted())
        first_rows = {name: rows.start for name, rows in self.owner.rows().items()}
        self.optimizer = make_optimizer(experiment, self.parameters, first_rows)
        for group in self.optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        self.lr_schedule = build(experiment.lr_schedule)
        self.loss_fn = make_loss(experiment, world.device)
        place, eos = (self.mesh.replica, self.mesh.replicas), prepared.tokenizer.eos_id
        self.loader = make_loader(experiment, prepared.train, eos, *place, shuffle=True)
        sets = {"": prepared.held_out, **prepared.eval_sets}
        self.held_out = {
            name: make_loader(experiment, found, eos, *place) for name, found in sets.items() if found is not None
        }
        self.step = 0  # optimizer steps done
        self.tokens = 0  # trained on
        self.seconds = 0.0  # of training, over all starts
        self.peaks: list[int] = []  # bytes per rank, as of the last step
        self.guards = Guards(self)
        self.lost = LostUpdates(self)
        self.evaluated: tuple[int, float] = (-1, math.nan)  # at which step, with which loss
        self.saver = saving.make_saver(self)
        self.update = make_update(self)
        self.reducer = make_reducer(self.pipeline, self.mesh, self.owner.summed_later())
        self._since = time.monotonic()
        self.control: Any = None  # a Control, on rank 0 of a run

    def elapsed(self) -> float:
        """Seconds of training so far, over all starts."""
        return self.seconds + time.monotonic() - self._since

    def num_parameters(self) -> int:
        """Of the whole model, each once."""
        counted = self.ranks.counted
        return sum(self.ranks.gather(sum(p.numel() for name, p in self.parameters.items() if name in counted)))

    def peak_memory(self) -> int:
        """Bytes: of the GPU if this rank has one, else of the process."""
        if self.world.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.world.device)
        return process_peak()

    def said(self, loss_sum: float | None, stop: bool, save: bool) -> Said:
        """What this rank tells the others of the step it has run."""
        PROGRESS.mark("the end of the step")
        timing = self.pipeline.timing
        memory, saved = self.peak_memory(), self.saver.outcome()
        return Said(loss_sum, self.elapsed(), stop, save, memory, timing.busy, timing.span, saved)

    @property
    def eval_loss(self) -> float | None:
        """Nats per token of the held-out text, if it was evaluated at this step and is a number."""
        step, loss = self.evaluated
        return loss if step == self.step and math.isfinite(loss) else None

    @on_disk("saving a checkpoint")
    def save(self, wait: bool = False) -> str:
        """Write a checkpoint, beside training unless told otherwise; returns its path. All ranks must call it.

        Args:
            wait: until it is committed; then a failure is an error, and otherwise a warning at the next step.

        Raises:
            UserError: not written, and `wait`; or the third time in a row.
        """
        return self.saver.save(saving.contents(self), wait)

    @on_disk("saving a checkpoint")
    def finish_saving(self) -> str | None:
        """Wait until the save under way is committed; why it was not, or None. All ranks must call it."""
        return self.saver.finish()

    @on_disk("reading a checkpoint")
    def restore(self, saved: Saved) -> None:
        """Go on from a verified checkpoint, whatever the number of stages that wrote it.

        Raises UserError, before any parameter has changed, when it is of another model.
        """
        saving.restore(self, saved)
        self.owner.exchange_weights()

    @on_disk("reading the first weights")
    def begin_with(self, path: str) -> None:
        """Take the weights of a run, a checkpoint or a Hugging Face folder. All ranks must call it.

        Raises UserError, before any parameter has changed, when they are of another model.
        """
        begin_with(self, path)
        self.owner.exchange_weights()

    def count_seconds_from(self, seconds: float) -> None:
        """So many were trained before."""
        self.seconds, self._since = seconds, time.monotonic()


def _mesh(experiment: Experiment, layout: Layout, world: World) -> Mesh:
    needed = world_size(experiment)
    if world.size != needed:
        raise UserError(f"{type(experiment).__name__} runs on {needed} ranks, but {world.size} were started")
    return make_mesh(world, layout.schedule.num_ranks)


def run_session(experiment: Experiment, path: str, prepared: Prepared, *, resume: str, changes: list[str]) -> None:
    """Train as this rank, from the newest checkpoint or from the start, to the end.

    Raises:
        UserError: training failed (exit code 4). Interrupted: stopped and saved (130).
    """
    with Watch(experiment) as watch:
        watch.open(path)
        world = join(timeout_seconds=watch.timeout_seconds)
        with _leaving(world):
            _train(experiment, path, prepared, world, resume, changes, watch)


@contextmanager
def _leaving(world: World) -> Iterator[None]:
    """Leave the group at the end; not after a failure, where that waits for ranks that are gone and the process ends anyway."""
    try:
        yield
    except Interrupted:
        leave(world)
        raise
    leave(world)


def join_session(experiment: Experiment, resume: str, describe: Callable[[], tuple[str, list[str]]]) -> str:
    """The same as a rank that another launcher started: rank 0 alone makes the data and runs `describe`, the others wait.

    Args:
        describe: chooses and writes the run directory; returns its path and what changed since it was last written.

    Returns:
        The run directory.
    """
    with Watch(experiment) as watch, _leaving(world := join(timeout_seconds=watch.timeout_seconds)):
        ranks = Ranks(world, [])
        _require_one_experiment(ranks.gather(digest(experiment)))
        said: tuple[str, list[str], str | None] = ("", [], None)
        with PROGRESS.pause():  # one rank works, the others wait, as long as it takes
            if ranks.rank == 0:
                try:
                    prepare(experiment)
                    said = (*describe(), None)
                except (UserError, ConfigError) as error:
                    said = ("", [], str(error))
            path, changes, problem = ranks.gather(said)[0]
        if problem is not None:
            raise UserError(problem if ranks.rank == 0 else "")
        prepared = prepare(experiment)
        if several_machines():
            require_shared(ranks, path)
            require_same_data(ranks, prepared)
        watch.open(path)
        _train(experiment, path, prepared, world, resume, changes, watch)
        return path


def _require_one_experiment(digests: list[str]) -> None:
    """Raises UserError, on all ranks, where they were started with different ones."""
    others = [str(rank) for rank, found in enumerate(digests) if found != digests[0]]
    if others:
        raise UserError(
            f"ranks {', '.join(others)} were started with another experiment than rank 0; give all hosts the same files and "
            'settings, and with AutoParallel() name the cards, as in hardware = "8x24GB", for hosts may differ in theirs'
        )


def _train(
    experiment: Experiment,
    path: str,
    prepared: Prepared,
    world: World,
    resume: str,
    changes: list[str],
    watch: Watch,
) -> None:
    from .loop import train

    random.seed(experiment.seed)
    np.random.seed(experiment.seed % 2**32)  # for users' own code: ours draws from generators of its own
    torch.manual_seed(experiment.seed)
    with repeatable(experiment.deterministic, world.device), MemoryReport(experiment, path, world) as report:
        PROGRESS.mark("building its part of the model")
        with doing("building its part of the model"):
            report.session = session = Session(experiment, path, prepared, world)
        session.control = watch.control
        with doing("restoring a checkpoint"):
            saved = saving.find(session, resume)
            if saved is not None:
                session.restore(saved)
            elif experiment.init_from is not None:
                session.begin_with(experiment.init_from)
        try:
            train(session, resumed=saved, changes=changes)
        except Exception as error:  # what was being saved is not lost with the rest, if it can be had
            session.saver.settle(LOST_SECONDS if isinstance(error, PeerLost) else FAILED_SECONDS)
            raise
