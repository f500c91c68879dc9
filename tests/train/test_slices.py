"""Tensors that ranks hold in slices: saved by any number of ranks, loaded as a whole or in other slices."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from forgather_dsl.errors import UserError
from forgather_dsl.train import checkpoint
from forgather_dsl.train.checkpoint import Contents, Saver, Slice
from forgather_dsl.train.checkpoint.snapshot import source

WHOLE = torch.arange(7.0 * 3).view(7, 3)


class Threads:
    """Ranks that are threads of this process."""

    def __init__(self, rank: int, world: int, barrier: threading.Barrier, table: list) -> None:
        self.rank, self.world, self.barrier, self.table = rank, world, barrier, table

    def gather(self, value):
        self.table[self.rank] = value
        self.barrier.wait(10)
        everyone = list(self.table)
        self.barrier.wait(10)
        return everyone


def rows(start: int, stop: int) -> Slice:
    return Slice((7, 3), (start, 0), (stop - start, 3))


def saved_in(folder: Path, *cuts: tuple[int, int]) -> checkpoint.Saved:
    """A checkpoint of WHOLE, a rank for each range of its rows; `step` has no dimensions, `norm` is on the last rank."""
    barrier, table = threading.Barrier(len(cuts)), [None] * len(cuts)

    def save(rank: int) -> None:
        tensors = {"weights/head": WHOLE[slice(*cuts[rank])], "optimizer/head/step": torch.tensor(5.0)}
        if rank == len(cuts) - 1:
            tensors["weights/norm"] = torch.ones(3)
        mine = {key: rows(*cuts[rank]) for key in ("weights/head", "optimizer/head/step")}
        sources = [source(key, tensor) for key, tensor in tensors.items()]
        saver = Saver(str(folder), Threads(rank, len(cuts), barrier, table))
        saver.save(Contents(1, sources, slices=mine), wait=True)

    with ThreadPoolExecutor(len(cuts)) as pool:
        list(pool.map(save, range(len(cuts))))
    path = str(folder / "step-00000001")
    assert checkpoint.problem(path) is None
    return checkpoint.open_checkpoint(path)


@pytest.mark.parametrize("cuts", [[(0, 7)], [(0, 3), (3, 7)], [(0, 2), (2, 5), (5, 7)]])
@pytest.mark.parametrize("wanted", [(0, 7), (0, 4), (4, 7), (1, 6), (3, 4)])
def test_slices_load_as_a_whole_and_in_other_slices(tmp_path: Path, cuts, wanted) -> None:
    saved = saved_in(tmp_path, *cuts)
    keys = ["weights/head", "optimizer/head/step", "weights/norm"]
    assert sorted(set(saved.stored())) == sorted(keys)
    whole = dict(saved.tensors(keys))
    assert torch.equal(whole["weights/head"], WHOLE)
    part = dict(saved.tensors(keys, {key: rows(*wanted) for key in keys[:2]}))
    assert torch.equal(part["weights/head"], WHOLE[slice(*wanted)])
    for found in (whole, part):
        assert found["optimizer/head/step"] == 5.0
        assert torch.equal(found["weights/norm"], torch.ones(3))


def test_a_slice_that_nobody_stored_is_missed(tmp_path: Path) -> None:
    saved = saved_in(tmp_path, (0, 2), (3, 7))
    assert torch.equal(dict(saved.tensors(["weights/head"], {"weights/head": rows(3, 6)}))["weights/head"], WHOLE[3:6])
    with pytest.raises(UserError, match="lacks 1 tensors: weights/head"):
        dict(saved.tensors(["weights/head"]))


def test_slices_of_another_shape_are_refused(tmp_path: Path) -> None:
    saved = saved_in(tmp_path, (0, 3), (3, 7))
    with pytest.raises(UserError, match=r"shape \(7, 3\) is stored where \(9, 3\) is needed"):
        dict(saved.tensors(["weights/head"], {"weights/head": Slice((9, 3), (0, 0), (5, 3))}))
