"""The scripts of `run --print-launch`, started on two machines: namespaces with an address and a name of their own each.

The run is the one of a single machine, also when it stops and goes on; machines that do not share the run directory or the data
are refused before anything is trained, and machines that do not find each other say where they looked.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from launched import ROOT, Started, TwoHosts, project, run

missing = pytest.mark.skipif(
    not sys.platform.startswith("linux")
    or os.geteuid() != 0
    or subprocess.run(["sh", "-c", "ip netns list"], capture_output=True, check=False).returncode != 0,
    reason="makes network namespaces: needs root and iproute2",
)
pytestmark = [missing, pytest.mark.slow]
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return project(tmp_path)


def printed(place: Path, *more: str) -> None:
    """`launch.sh`."""
    command = [sys.executable, "-m", "forgather_dsl", "run", "exp.py:Two", "--out", "run", "--print-launch", "torchrun"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FORGATHER_CACHE": str(place / "cache")}
    done = subprocess.run(
        [*command, "--gpus-per-node", "1", *more], cwd=place, env=env, capture_output=True, text=True, check=True
    )
    (place / "launch.sh").write_text(done.stdout)


def started(hosts: TwoHosts, place: Path, before: tuple[str, str] = ("true", "true"), **env: str) -> list[Started]:
    """The script on both machines; `before` runs on each, in a mount namespace of its own."""
    agents = []
    for n, name in enumerate(hosts.names):
        words = f"hostname machine{n}; {before[n]}; exec ip netns exec {name} bash launch.sh {n} 10.77.0.1"
        agents.append(Started(["unshare", "--uts", "--mount", "sh", "-ec", words], place, f"host{n}", PATH=PATH, **env))
    return agents


def ended(agents: list[Started]) -> list[int | None]:
    for agent in agents:
        agent.until_over(120.0)
    return [agent.code for agent in agents]


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_two_machines_train_and_resume_as_one(place: Path) -> None:
    with TwoHosts() as hosts:
        for steps in (3, 6):
            printed(place, "--set", f"steps={steps}", "--set", "lr_schedule=Constant")
            agents = started(hosts, place)
            with agents[0], agents[1]:
                assert ended(agents) == [0, 0], agents[0].said + agents[1].said
    (place / "run").rename(place / "two")
    with run("Two", place, "--set", "steps=6", "--set", "lr_schedule=Constant") as one:
        one.until_over(120.0)
        assert one.code == 0, one.said
    assert losses(place / "two") == losses(place / "run")
    assert len(losses(place / "two")) == 6


@pytest.mark.parametrize("differs", [pytest.param("run", marks=pytest.mark.exhaustive), "corpus"])
def test_machines_that_share_too_little_are_refused(place: Path, differs: str) -> None:
    (place / "run").mkdir()
    (place / "cache1").mkdir()
    printed(place, "--set", "steps=3")
    text = (place / "launch.sh").read_text().replace(f"FORGATHER_CACHE={place}/cache", "FORGATHER_CACHE=$CACHE")
    (place / "launch.sh").write_text(text)
    change = f"mount -t tmpfs none {place}/{differs}"
    if differs == "corpus":
        change += f"; for i in 1 2 3 4 5 6; do seq 1 $((90 + i)) > {place}/corpus/$i.txt; done"
    with TwoHosts() as hosts:
        agents = started(hosts, place, (f"export CACHE={place}/cache", f"export CACHE={place}/cache1; {change}"))
        with agents[0], agents[1]:
            assert ended(agents) == [1, 1]
            said = [line for agent in agents for line in agent.errors if line != "error: "]
    assert len(said) == 1, said
    if differs == "run":
        assert said[0].startswith(
            f"error: the run directory is {place}/run on machine0, and machine1 ({place}/run) is not"
        )
    else:
        assert said[0].startswith(
            "error: rank 1 on machine1: other training or held-out tokens than rank 0 on machine0"
        )
    assert not (place / "run" / "metrics.jsonl").exists()


def test_ranks_that_do_not_find_each_other_say_where_they_looked(place: Path) -> None:
    printed(place, "--set", "steps=3", "--interface", "lo")
    with TwoHosts() as hosts:
        agents = started(hosts, place)
        with agents[0], agents[1]:
            assert ended(agents) == [1, 1]
            said = agents[0].said
            assert "machines do not reach each other" in agents[1].said
    assert "error: machines do not reach each other: rank 0 on machine0 does not reach rank 1 on machine1 at " in said
    assert "at 127.0.0.1 (lo), which is the address of a machine for itself: Connection refused" in said
    assert "docs/machines.md" in said
