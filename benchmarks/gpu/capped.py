"""Runs held to what a card of 24 GB leaves an allocator, on one large card: every rank a process with its own share.

In: an experiment of any number of ranks, a directory. Out: the run, and what each rank's allocator has seen at the most.
`python capped.py RUN_DIR` is one rank.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from report import GIB

from forgather_dsl import Experiment
from forgather_dsl.parallel.launch import end_process, launch
from forgather_dsl.runs.run import Run
from forgather_dsl.specs.experiment import world_size
from forgather_dsl.train import directory
from forgather_dsl.train.prepare import prepare
from forgather_dsl.train.trainer import Trainer

__all__ = ["CAP_GIB", "cap", "capped_run", "seen"]

CAP_GIB = 23  # of each rank's allocator: what a card of 24 GB leaves it beside the context


class _Capped(Trainer):
    """Ranks are this file."""

    def _launch(self, path: str, world: int, changes: list[str]) -> None:
        if code := launch([sys.executable, __file__, path], world, self._environment(path)):
            raise RuntimeError(f"the ranks ended with {code}")

    def alone(self) -> Run:
        """One rank, in a process of its own all the same: its peak is nobody else's."""
        path, changes = self._directory()
        prepare(self.experiment)
        directory.write(self.experiment, path, None, None)
        self._launch(path, 1, changes)
        return Run(path)


def capped_run(experiment: Experiment, out: Path) -> tuple[Run, list[dict[str, Any]]]:
    """Train it, on one rank or several, and save nothing; the run, and what each rank tells (see `rank`)."""
    trainer = _Capped(experiment, out=str(out), model=False)
    run = trainer.alone() if world_size(experiment) == 1 else trainer.fit()
    ranks = json.loads((out / "plan.json").read_text())["ranks"]
    return run, [json.loads((out / f"told-{rank['rank']}.json").read_text()) for rank in ranks]


def cap() -> None:
    """Hold this process's allocator to its share of the card; nothing without one."""
    import torch

    if torch.cuda.is_available():
        share = CAP_GIB * GIB / torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(share)


def seen() -> dict[str, Any]:
    """GiB at the most, allocated and reserved, since the last reset; how often the allocator had to free its own store."""
    import torch

    if not torch.cuda.is_available():
        return {}
    stats = torch.cuda.memory_stats()
    return {
        "allocated": stats["allocated_bytes.all.peak"] / GIB,
        "reserved": stats["reserved_bytes.all.peak"] / GIB,
        "retries": stats["num_alloc_retries"],
    }


def rank(path: str) -> int:
    """One rank: as forgather_dsl.train.rank, within its share; writes what it has seen beside the run."""
    started = time.monotonic()
    from forgather_dsl.train import rank as ours
    from forgather_dsl.train.session import Session

    cap()
    found: dict[str, Any] = {}
    build = Session.__init__

    def timed(self: Session, *arguments: Any, **named: Any) -> None:
        found["seconds_before"] = time.monotonic() - started
        begun = time.monotonic()
        build(self, *arguments, **named)
        found["seconds_to_build"] = time.monotonic() - begun

    Session.__init__ = timed  # type: ignore[method-assign]
    Session.save = lambda self, wait=False: ""  # type: ignore[method-assign]  # 54 GB that nobody reads
    code = ours.main([path, "never"])
    Path(path, f"told-{os.environ['RANK']}.json").write_text(json.dumps(found | seen()))
    return code


if __name__ == "__main__":
    end_process(rank(sys.argv[1]))
