"""Who this process is among its ranks: device, process group, and its place in the mesh of replicas and pipeline ranks.

In: the environment (RANK, WORLD_SIZE, LOCAL_RANK) from our launcher, which adds the path of a FileStore, or torchrun.
Out: `World`, and the `Mesh` with its groups. Messages up and down the ranks have a group each: under NCCL the messages of
a pair of ranks share a stream per group (pytorch #132852), and a receive posted early must not block a send. For the same
reason no `device_id` is given: an eager group runs all messages of a rank on one stream (pytorch #132900, #154132).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from forgather_dsl.errors import UserError
from forgather_dsl.parallel.host_allocator import keep_freed_memory
from forgather_dsl.parallel.launch import STORE
from forgather_dsl.parallel.lifeline import die_with_launcher
from forgather_dsl.parallel.meeting import choose_interface, not_met, require_reachable, several_machines, where
from forgather_dsl.parallel.progress import PROGRESS

__all__ = ["Mesh", "PipelineGroup", "World", "join", "leave", "make_mesh", "pipeline_group"]


@dataclass(frozen=True)
class World:
    """This process among all: one rank per process; `backend` is None when it is alone."""

    rank: int
    size: int
    device: torch.device
    backend: str | None


@dataclass(frozen=True)
class PipelineGroup:
    """The ranks of one pipeline, numbered from 0 in it, and the process groups between them."""

    rank: int
    size: int
    up: dist.ProcessGroup
    """Messages from a lower to a higher rank."""
    down: dist.ProcessGroup
    """Messages from a higher to a lower rank."""
    everyone: dist.ProcessGroup
    """Collectives."""
    wire: torch.device
    """Where a message has to lie: the rank's GPU under NCCL, host memory under gloo."""


@dataclass(frozen=True)
class Mesh:
    """A rank's place: replicas x pipeline ranks, the ranks of a pipeline consecutive."""

    replica: int
    """Which copy of the model."""
    replicas: int
    place: int
    """The rank within its pipeline; the same in every replica."""
    places: int
    pipeline: PipelineGroup | None
    """The ranks of this replica; None when it is one rank."""
    peers: dist.ProcessGroup | None
    """The ranks of this place, one for each replica: they hold the same parameters. None when there is one replica."""
    wire: torch.device
    """Where tensors have to lie to be exchanged."""


def join(device: str = "auto", timeout_seconds: float = 1800.0) -> World:
    """Join the ranks this process was launched with; alone when it was not launched.

    `device` is "auto" (a GPU if there is one) or "cpu". With fewer GPUs than ranks on this machine the ranks share
    them and messages go through host memory (NCCL allows one rank per GPU). Raises UserError when ranks on several
    machines do not find each other.
    """
    die_with_launcher()
    rank, local_rank = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    size = int(os.environ.get("WORLD_SIZE", 1))
    gpus = torch.cuda.device_count() if device == "auto" else 0
    place = torch.device("cuda", local_rank % gpus) if gpus else torch.device("cpu")
    if place.type == "cuda":
        torch.cuda.set_device(place)
    else:
        keep_freed_memory()
    if size == 1:
        return World(0, 1, place, None)
    backend = "nccl" if int(os.environ.get("LOCAL_WORLD_SIZE", size)) <= gpus else "gloo"
    timeout = timedelta(seconds=timeout_seconds)
    if STORE in os.environ:
        store = f"file://{os.environ[STORE]}"
        dist.init_process_group(backend, init_method=store, rank=rank, world_size=size, timeout=timeout)
    else:
        _meet(backend, timeout)
    return World(rank, size, place, backend)


def _meet(backend: str, timeout: timedelta) -> None:
    """By torchrun's environment; ranks may be on other machines."""
    choose_interface()
    if several_machines():
        PROGRESS.mark(f"meeting the other ranks ({where()})")
    try:
        store, rank, size = next(rendezvous("env://", timeout=timeout))
        if several_machines():
            require_reachable(PrefixStore("forgather/meeting", store))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise UserError(not_met(error), exit_code=4) from error


def pipeline_group(world: World, num_ranks: int) -> PipelineGroup | None:
    """The group of this rank's pipeline of `num_ranks` consecutive ranks; None for one rank. All ranks must call it.

    Raises ValueError when the ranks do not divide into pipelines.
    """
    if world.size % num_ranks:
        raise ValueError(f"{world.size} ranks do not divide into pipelines of {num_ranks}")
    mine = None
    for start in range(0, world.size, num_ranks) if num_ranks > 1 else ():
        ranks = list(range(start, start + num_ranks))
        groups = [dist.new_group(ranks) for _ in range(3)]  # every process makes every group, in order
        if world.rank in ranks:
            up, down, everyone = (cast(dist.ProcessGroup, group) for group in groups)
            wire = world.device if world.backend == "nccl" else torch.device("cpu")
            mine = PipelineGroup(world.rank - start, num_ranks, up, down, everyone, wire)
    return mine


def make_mesh(world: World, places: int) -> Mesh:
    """The place of this rank among pipelines of `places` ranks each. All ranks must call it.

    Raises ValueError when the ranks do not divide into pipelines.
    """
    pipeline = pipeline_group(world, places)
    replica, place = divmod(world.rank, places)
    replicas = world.size // places
    peers = None
    for other in range(places) if replicas > 1 else ():
        group = dist.new_group(list(range(other, world.size, places)))  # every process makes every group, in order
        if other == place:
            peers = cast(dist.ProcessGroup, group)
    wire = world.device if world.backend == "nccl" else torch.device("cpu")
    return Mesh(replica, replicas, place, places, pipeline, peers, wire)


def leave(world: World) -> None:
    """Leave the process group, if there is one."""
    if world.backend is not None:
        dist.destroy_process_group()
