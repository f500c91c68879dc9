"""What runs a rank's part of the model, by the class of the experiment's `parallel`: one function a strategy.

In: an experiment, its layout, this rank's place. Out: a `Pipeline`, or an engine with its interface, over weights that hold
their first values. Raises UserError for what cannot run on this machine.
"""

from __future__ import annotations

from collections.abc import Callable

from ..dsl import build
from ..errors import UserError
from ..models.init import initialise
from ..parallel.compiled import require_compiler
from ..parallel.float8 import require_float8
from ..parallel.group import Mesh, World
from ..parallel.interpreter import Pipeline as Engine
from ..parallel.shard import HeadShard
from ..parallel.shared_state import Owner, SharedState
from ..parallel.stage import Stage
from ..plan.layout import Layout
from ..specs import DDP, FP8, FSDP2, Experiment, Parallel, Pipeline, Single
from .assembly import make_model, make_shard, make_stage

__all__ = ["make_owner", "make_pipeline"]

Make = Callable[[Experiment, Layout, World, Mesh], Engine]


def make_pipeline(experiment: Experiment, layout: Layout, world: World, mesh: Mesh) -> Engine:
    """The engine of the experiment's strategy."""
    if experiment.compile:
        require_compiler(world.device)
    if isinstance(experiment.precision, FP8):
        require_float8(world.device, experiment.precision.emulate)
    return next(make for kind, make in STRATEGIES.items() if isinstance(experiment.parallel, kind))(
        experiment, layout, world, mesh
    )


def make_owner(experiment: Experiment, pipeline: Engine, mesh: Mesh) -> Owner:
    """What this rank trains of what it computes with."""
    shares = isinstance(experiment.parallel, Pipeline) and experiment.parallel.shard_replicas
    return SharedState(pipeline, mesh) if shares and mesh.peers is not None else Owner(pipeline)


def _own(experiment: Experiment, layout: Layout, world: World, mesh: Mesh) -> Engine:
    """Our interpreter."""
    return Engine(
        _stages(experiment, layout, world, mesh), layout.schedule, experiment.seed, mesh.pipeline, mesh.replica
    )


def _pipelined(experiment: Experiment, layout: Layout, world: World, mesh: Mesh) -> Engine:
    """The same, or torch's runtime."""
    assert isinstance(experiment.parallel, Pipeline)
    if experiment.parallel.engine == "own":
        return _own(experiment, layout, world, mesh)
    _refuse_shared_cards(world, "parallel.engine: torch's runtime sends from the GPU", "leave it out")
    from ..parallel.torch_engine import TorchPipeline

    stages = [stage for stage in _stages(experiment, layout, world, mesh) if isinstance(stage, Stage)]
    return TorchPipeline(stages, layout.schedule, experiment.seed, mesh.pipeline, mesh.replica)


def _sharded(experiment: Experiment, layout: Layout, world: World, mesh: Mesh) -> Engine:
    """Torch's fully_shard; alone there is nothing to cut."""
    parallel = experiment.parallel
    assert isinstance(parallel, FSDP2)
    if world.size == 1:
        return _own(experiment, layout, world, mesh)
    _refuse_shared_cards(world, "parallel: FSDP2 gathers on the GPU", "write fewer shards")
    from ..parallel.sharded import Sharded, Sharding, make_mesh

    autocast = build(experiment.precision).autocast(world.device)
    stage = make_stage(experiment, make_model(experiment), layout, 0, world.device, autocast, hollow=True)
    how = Sharding(parallel.shards, parallel.replicas, parallel.reshard_after_forward, parallel.offload)
    return Sharded(stage, layout.schedule, experiment.seed, world.rank, how, make_mesh(world.device, how))


STRATEGIES: dict[type[Parallel], Make] = {Single: _own, DDP: _own, FSDP2: _sharded, Pipeline: _pipelined}


def _stages(experiment: Experiment, layout: Layout, world: World, mesh: Mesh) -> list[Stage | HeadShard]:
    """This rank's stages of the model, and its shard of a spread head."""
    autocast = build(experiment.precision).autocast(world.device)
    stages: list[Stage | HeadShard] = []
    for index in layout.schedule.stages_of(mesh.place):
        stage = make_stage(experiment, make_model(experiment), layout, index, world.device, autocast)
        initialise(stage.model, experiment.seed)
        if experiment.compile:
            stage.compile()
        stages.append(stage)
    for index in layout.schedule.shards[mesh.place : mesh.place + 1]:
        shard = make_shard(experiment, layout, index, world.device, autocast)
        shard.initialise(experiment.seed)
        stages.append(shard)
    return stages


def _refuse_shared_cards(world: World, why: str, instead: str) -> None:
    if world.device.type == "cuda" and world.backend == "gloo":
        raise UserError(
            f"{why}, which ranks that share one cannot; {instead}, or start no more ranks on this machine than it has GPUs"
        )
