"""Updating before all ranks have agreed gives the bits of agreeing first (validated_ranks.py has the cases)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from forgather_dsl import ConfigError
from forgather_dsl.dsl import check
from forgather_dsl.plan.schedules import gpipe, one_f_one_b, zero_bubble_v
from forgather_dsl.plan.warmup import warm_up

HERE = Path(__file__).parent


def run(folder: Path, *options: str, seconds: int = 900) -> dict[str, Any]:
    """{case: what is wrong, and what each rank undid} from one run of the script."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(HERE / "validated_ranks.py"), str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["codes"]) == {0}, done.stderr
    return result["cases"]


@pytest.mark.exhaustive
def test_losses_norms_weights_and_optimizer_are_those_of_agreeing_first_whether_guesses_hold_or_not(
    tmp_path: Path,
) -> None:
    cases = run(tmp_path)
    assert {name: case["wrong"] for name, case in cases.items()} == {name: [] for name in cases}
    mixed = cases["mixed tied 1F1B 2"]["undone"]
    assert len(mixed[0]) == len(mixed[1]) > 0  # both ranks ran their forwards again,
    assert True in mixed[0] + mixed[1]  # and at least one took an update back
    infinite = cases["infinite ZB-V 4"]["undone"]
    assert {True, False} <= {undid for rank in infinite for undid in rank}


@pytest.mark.exhaustive
def test_the_same_for_more_schedules_precisions_and_limits(tmp_path: Path) -> None:
    cases = run(tmp_path, "--all", seconds=900)
    assert {name: case["wrong"] for name, case in cases.items()} == {name: [] for name in cases}
    assert len(cases) == 10
    assert not any(cases["never 1F1B 2"]["undone"])
    assert cases["always 1F1B 2"]["undone"][0] == [False] * 6  # each rank's own part is over the limit: it waits
    assert all(any(rank) for rank in cases["mixed bf16 ZB-H2 2"]["undone"])
    replicas = [*cases["mixed tied 1F1B 2x2"]["undone"], *cases["infinite ZB-H2 2x2"]["undone"]]
    assert all(replicas)  # every rank of every replica ran its forwards again
    assert any(True in rank for rank in replicas)


def test_the_warm_up_is_the_forwards_that_wait_for_no_backward() -> None:
    assert warm_up(one_f_one_b(4, 8)) == (4, 3, 2, 1)
    assert warm_up(gpipe(2, 3)) == (3, 3)
    schedule = zero_bubble_v(2, 4)
    counts = warm_up(schedule)
    first = [next(i for i, action in enumerate(row) if action.kind != "F") for row in schedule.actions]
    assert all(0 < count <= most for count, most in zip(counts, first, strict=True))
    done = {(a.stage, a.microbatch) for row, count in zip(schedule.actions, counts, strict=True) for a in row[:count]}
    assert all(stage == 0 or (stage - 1, k) in done for stage, k in done)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "torch"}, "torch's runtime cannot run forwards again"),
        ({"spread_head": True}, "a head spread over the ranks is not run again"),
    ],
)
def test_what_cannot_be_run_again_is_refused(small: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(small.Small(parallel=small.Pipeline(stages=2, post_validation=True, **changes)))


def test_a_run_limited_by_seconds_is_refused(small: Any) -> None:
    with pytest.raises(ConfigError, match="limited by seconds agrees on the time after every step"):
        check(small.Small(seconds=5.0, parallel=small.Pipeline(stages=2, post_validation=True)))
