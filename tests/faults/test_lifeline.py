"""Nothing outlives its launcher: not ranks, not what ranks have started, whichever of them is killed with -9."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from launched import Started, state

from forgather_dsl.parallel.cluster import adopt_slurm, first_host

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

RANK = """
import os, subprocess, sys, time
for session in (False, True):  # one in the rank's process group, one that has left it
    subprocess.Popen(['sleep', '300'], start_new_session=session)
if os.fork() == 0:
    os.setsid()  # and one that never was another program
    open(f"forked-{os.environ['RANK']}", 'w').close()
    time.sleep(300)
open(f"ready-{os.environ['RANK']}", 'w').close()
time.sleep(END)
"""
LAUNCH = (
    "import sys; from forgather_dsl.parallel.launch import launch; sys.exit(launch([sys.executable, '-c', RANK], 2))"
)
AGENT = """
import os, subprocess, sys, time
env = os.environ | {'TORCHELASTIC_RUN_ID': 'none', 'RANK': '0'}
code = "from forgather_dsl.parallel.lifeline import die_with_launcher; die_with_launcher()\\n" + RANK
subprocess.run([sys.executable, '-c', code], env=env, start_new_session=True)
time.sleep(300)
"""


def started(text: str, folder: Path, ranks: int, end: float = 300) -> Started:
    run = Started([sys.executable, "-c", f"RANK = {RANK.replace('END', str(end))!r}\n{text}"], folder)
    run.until(lambda: len([*folder.glob("ready-*"), *folder.glob("forked-*")]) == 2 * ranks)
    return run


def test_killing_the_launcher_ends_what_its_ranks_have_started(tmp_path: Path) -> None:
    with started(LAUNCH, tmp_path, 2) as run:
        assert len(run.alive()) >= 1 + 2 + 2 * 3
        run.process.kill()
        run.until_over(10.0)


def test_killing_a_rank_ends_the_rest_and_what_they_have_started(tmp_path: Path) -> None:
    with started(LAUNCH, tmp_path, 2) as run:
        os.kill(run.ranks()[1], signal.SIGKILL)
        run.until_over(10.0)
        assert run.code == 4
        assert "error: rank 1 was killed by SIGKILL" in run.said


def test_ranks_that_end_well_leave_nothing(tmp_path: Path) -> None:
    with started(LAUNCH, tmp_path, 2, end=0.2) as run:
        run.until_over(10.0)
        assert run.code == 0


def test_a_rank_of_torchrun_dies_with_its_agent_and_what_it_has_started_with_it(tmp_path: Path) -> None:
    for victim in ("agent", "rank"):
        folder = tmp_path / victim
        folder.mkdir()
        with started(AGENT, folder, 1) as run:
            rank = run.ranks()[0]
            # Those that have left the group: torchrun gives no mark to find them by.
            run.until(lambda rank=rank, run=run: len([p for p in run.alive() if os.getpgid(p) == rank]) == 2)
            mine = [pid for pid in run.alive() if os.getpgid(pid) == rank]
            os.kill(run.process.pid if victim == "agent" else rank, signal.SIGKILL)
            run.until(lambda mine=mine: all(state(pid) in "XZ" for pid in mine), 10.0)


def test_a_rank_that_was_started_by_hand_may_outlive_its_shell(tmp_path: Path) -> None:
    code = "from forgather_dsl.parallel.lifeline import die_with_launcher; die_with_launcher(); import time; open('ready-0', 'w').close(); time.sleep(300)"
    shell = f'RANK=0 WORLD_SIZE=2 {sys.executable} -c "{code}" & while ! [ -e ready-0 ]; do sleep 0.02; done'
    with Started(["sh", "-c", shell], tmp_path) as run:
        run.until(lambda: run.process.poll() is not None)
        assert len(run.alive()) == 1


SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "5",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1",
    "SLURM_STEP_NODELIST": "gpu[03-05]",
    "SLURM_JOB_NODELIST": "gpu[01-09]",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "2",
}


def test_a_task_of_srun_is_a_rank() -> None:
    env = dict(SLURM)
    assert adopt_slurm(env)
    found = {key: value for key, value in env.items() if key not in SLURM}
    port = int(found.pop("MASTER_PORT"))
    assert 1024 < port < 32768  # outside what systems hand out
    assert found == {
        "RANK": "3",
        "WORLD_SIZE": "5",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "gpu03",
    }
    other = {**SLURM, "SLURM_PROCID": "0", "MASTER_PORT": "7", "MASTER_ADDR": "here"}
    assert adopt_slurm(other)
    assert (other["MASTER_PORT"], other["MASTER_ADDR"]) == ("7", "here")
    assert adopt_slurm(next_step := {**SLURM, "SLURM_STEP_ID": "3"})
    assert next_step["MASTER_PORT"] != str(port)


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_STEP_NUM_TASKS": None},  # a script of sbatch, a shell of salloc
        {"SLURM_STEP_NUM_TASKS": "1"},  # srun --pty bash
        {"RANK": "0", "WORLD_SIZE": "2"},  # torchrun within a task
        {"SLURM_PROCID": None},
    ],
)
def test_who_is_no_rank_of_srun_launches_its_own(changes: dict[str, str | None]) -> None:
    env = {key: value for key, value in {**SLURM, **changes}.items() if value is not None}
    before = dict(env)
    assert not adopt_slurm(env)
    assert env == before


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu01", "gpu01"), ("gpu[03-05,9],login", "gpu03"), ("a[1,2]-ib", "a1-ib"), ("x,y", "x"), ("", "")],
)
def test_the_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first
