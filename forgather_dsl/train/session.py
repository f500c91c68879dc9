"""One rank's live state of a run: its stages, optimizer, data and place in them; built from the experiment, saved and restored.

`run_session` is what a single process, a launched rank and a rank of torchrun all call.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from ..data.loader import Loader
from ..dsl import ConfigError, build
from ..errors import Interrupted, UserError
from ..models.init import initialise
from ..parallel.group import Mesh, World, join, leave, make_mesh
from ..parallel.interpreter import Pipeline
from ..parallel.progress import PROGRESS, on_disk
from ..parallel.shard import HeadShard
from ..parallel.stage import Stage
from ..plan.layout import Layout
from ..specs import Experiment
from ..specs.experiment import world_size
from . import checkpoint
from .agreement import Ranks, Said
from .assembly import make_model, make_optimizer, make_shard, make_stage
from .directory import read_layout
from .master import ExactMaster
from .optimizers import named_states
from .prepare import Prepared, prepare
from .watching import Watch


class Session:
    """Everything one rank needs to train."""

    def __init__(self, experiment: Experiment, path: str, prepared: Prepared, world: World) -> None:
        self.experiment, self.path, self.prepared, self.world = experiment, path, prepared, world
        layout = read_layout(path)
        self.mesh = _mesh(experiment, layout, world)
        self.pipeline = _pipeline(experiment, layout, world, self.mesh)
        self.parameters = dict(self.pipeline.named_parameters())
        self.ranks = Ranks(world, list(self.parameters), first=self.mesh.replica == 0)
        self.optimizer: Any = make_optimizer(experiment, self.parameters)
        for group in self.optimizer.param_groups:
            group["peak_lr"] = group["lr"]
        self.lr_schedule = build(experiment.lr_schedule)
        self.loss_fn = build(experiment.loss)
        self.loader = self._loader(prepared.train, shuffle=True)
        self.held_out = self._loader(prepared.held_out, shuffle=False) if prepared.held_out else None
        self.step = 0  # optimizer steps done
        self.tokens = 0  # trained on
        self.seconds = 0.0  # of training, over all starts
        self.skipped = 0  # steps in a row that were not finite
        self._since = time.monotonic()
        self.control: Any = None  # a Control, on rank 0 of a run

    def _loader(self, tokens: Any, *, shuffle: bool) -> Loader:
        e = self.experiment
        return Loader(
            tokens=tokens,
            seq_len=e.seq_len,
            batch_size=e.batch_size,
            seed=e.seed,
            shuffle=shuffle,
            eos_id=self.prepared.tokenizer.eos_id,
            documents=e.isolate_documents,
            rank=self.mesh.replica,
            replicas=self.mesh.replicas,
        )

    def elapsed(self) -> float:
        """Seconds of training so far, over all starts."""
        return self.seconds + time.monotonic() - self._since

    def num_parameters(self) -> int:
        """Of the whole model, each once."""
        return sum(self.ranks.gather(sum(p.numel() for p in self.parameters.values()) if self.ranks.first else 0))

    def peak_memory(self) -> int:
        """Bytes: of the GPU if this rank has one, else of the process."""
        if self.world.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.world.device)
        unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def gradients(self) -> dict[str, torch.Tensor | None]:
        """Of this rank's parameters, by name."""
        return {name: parameter.grad for name, parameter in self.parameters.items()}

    def said(self, loss_sum: float | None, stop: bool, save: bool) -> Said:
        """What this rank tells the others of the step it has run."""
        PROGRESS.mark("the end of the step")
        timing = self.pipeline.timing
        return Said(loss_sum, self.elapsed(), stop, save, self.peak_memory(), timing.busy, timing.span)

    @on_disk("saving a checkpoint")
    def save(self) -> str:
        """Write a checkpoint from the ranks of the first replica; returns its path. All ranks must call it."""
        tensors, scalars = self._state() if self.ranks.first else ({}, {})
        data = {
            **self.loader.state_dict(),
            "seq_len": self.loader.seq_len,
            "fingerprint": self.loader.tokens.fingerprint,
        }
        kind = type(self.experiment.optimizer).__name__
        state = {"data": data, "optimizer": kind, "tokens": self.tokens, "seconds": self.elapsed()}
        folder, keep = os.path.join(self.path, "checkpoints"), self.experiment.checkpoints.keep_last
        return checkpoint.save(folder, self.step, tensors, state, scalars, self.ranks, keep, self._slices(tensors))

    def _slices(self, keys: Iterable[str]) -> dict[str, checkpoint.Slice]:
        """Of which tensors this rank holds a slice: weight and optimizer state of a spread head."""
        shard = self.pipeline.shard
        if shard is None:
            return {}
        mine = checkpoint.Slice(shard.shape, (shard.rows.start, 0), (len(shard.rows), shard.dim))
        return {key: mine for key in keys if shard.name in (key.removeprefix("weights/"), _owner(key))}

    def _state(self) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
        """Weights and the optimizer's tensors by key, its other state by parameter."""
        exact = self.optimizer.masters() if isinstance(self.optimizer, ExactMaster) else ()
        masters = {name: master.cpu() for name, master in exact}  # one at a time: a GPU has no room for all
        tensors = {f"weights/{name}": masters.get(name, p) for name, p in self.parameters.items()}
        scalars: dict[str, dict[str, Any]] = {}
        for name, _, state in named_states(self.optimizer):
            tensors.update({f"optimizer/{name}/{k}": v for k, v in state.items() if isinstance(v, torch.Tensor)})
            scalars[name] = {k: v for k, v in state.items() if not isinstance(v, torch.Tensor)}
        return tensors, scalars

    def _set_weight(self, name: str, value: torch.Tensor) -> None:
        if isinstance(self.optimizer, ExactMaster) and self.parameters[name].requires_grad:
            self.optimizer.set_master(name, value)
        else:
            self.parameters[name].copy_(value)

    @on_disk("reading a checkpoint")
    @torch.no_grad()
    def restore(self, saved: checkpoint.Saved) -> None:
        """Go on from a verified checkpoint, whatever the number of stages that wrote it."""
        states = {name: (parameter, state) for name, parameter, state in named_states(self.optimizer)}
        weights = {f"weights/{name}": p for name, p in self.parameters.items()}
        same = saved.manifest["state"]["optimizer"] == type(self.experiment.optimizer).__name__
        ours = [k for k in saved.stored() if same and k.startswith("optimizer/") and _owner(k) in states]
        for key, tensor in saved.tensors([*weights, *ours], self._slices([*weights, *ours])):
            if key in weights:
                self._set_weight(key.removeprefix("weights/"), tensor)
                continue
            parameter, state = states[_owner(key)]
            on_host = tensor.ndim == 0  # AdamW keeps its step count on the host
            state[key.rpartition("/")[2]] = tensor if on_host else tensor.to(parameter.device)
        for name, (_, state) in states.items() if same else ():
            state.update(saved.manifest["scalars"].get(name, {}))
        if not same and self.ranks.rank == 0:  # only with --allow-change, as below
            print("warning: the optimizer changed; its state starts anew", file=sys.stderr)
        self.step = saved.step
        data = saved.manifest["state"]["data"]
        if data["fingerprint"] == self.loader.tokens.fingerprint and data["seq_len"] == self.loader.seq_len:
            self.loader.load_state_dict(data)
        elif self.ranks.rank == 0:
            print("warning: the data changed; it is read from its beginning", file=sys.stderr)
        self.tokens = saved.manifest["state"]["tokens"]
        self.seconds, self._since = saved.manifest["state"]["seconds"], time.monotonic()


def _owner(key: str) -> str:
    """The parameter that `optimizer/NAME/STATE` belongs to."""
    return key.removeprefix("optimizer/").rpartition("/")[0]


def _mesh(experiment: Experiment, layout: Layout, world: World) -> Mesh:
    needed = world_size(experiment)
    if world.size != needed:
        raise UserError(f"{type(experiment).__name__} runs on {needed} ranks, but {world.size} were started")
    return make_mesh(world, layout.schedule.num_ranks)


def _pipeline(experiment: Experiment, layout: Layout, world: World, mesh: Mesh) -> Pipeline:
    """This rank's stages of the model, initialised, and the interpreter of its schedule."""
    autocast = build(experiment.precision).autocast(world.device)
    stages: list[Stage | HeadShard] = []
    for index in layout.schedule.stages_of(mesh.place):
        stage = make_stage(experiment, make_model(experiment), layout, index, world.device, autocast)
        initialise(stage.model, experiment.seed)
        stages.append(stage)
    for index in layout.schedule.shards[mesh.place : mesh.place + 1]:
        shard = make_shard(experiment, layout, index, world.device, autocast)
        shard.initialise(experiment.seed)
        stages.append(shard)
    return _engine(experiment)(stages, layout.schedule, experiment.seed, mesh.pipeline, mesh.replica)


def _engine(experiment: Experiment) -> type[Pipeline]:
    if getattr(experiment.parallel, "engine", "own") == "own":
        return Pipeline
    from ..parallel.torch_engine import TorchPipeline

    return TorchPipeline


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
        watch.open(path)
        _train(experiment, path, prepare(experiment), world, resume, changes, watch)
        return path


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

    np.random.seed(experiment.seed % 2**32)  # for users' own code: ours draws from generators of its own
    torch.manual_seed(experiment.seed)
    PROGRESS.mark("building its part of the model")
    session = Session(experiment, path, prepared, world)
    session.control = watch.control
    saved = _checkpoint(session, resume)
    if saved is not None:
        session.restore(saved)
    train(session, resumed=saved, changes=changes)


def _checkpoint(session: Session, resume: str) -> checkpoint.Saved | None:
    if resume == "never":
        return None
    if resume == "auto":
        return checkpoint.newest(os.path.join(session.path, "checkpoints"), session.ranks)
    wrong = next((p for p in session.ranks.gather(checkpoint.problem(resume)) if p), None)
    if wrong:
        raise UserError(f"--resume {resume}: {wrong}; `ls` its run directory for others")
    return checkpoint.open_checkpoint(resume)
