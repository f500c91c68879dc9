"""Real runs, killed, stopped, terminated and cut off: they end in time, say who and what, save what they should, leave nobody.

Fast: one run steered and terminated, and signals on one process. Slow: every fault that has a process of its own to kill.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from launched import ROOT, Started, TwoHosts, environ, project, run, script, torchrun, two_agents

from forgather_dsl import Trainer
from forgather_dsl.dsl.load import load_file
from forgather_dsl.errors import Interrupted
from forgather_dsl.parallel.failures import PeerLost
from forgather_dsl.parallel.launch import STORE
from forgather_dsl.train import control
from forgather_dsl.train.session import Session
from forgather_dsl.train.stopping import StopRequest, terminable

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
ONE_HOST_SECONDS, TWO_HOSTS_SECONDS = 2.0, 10.0
root = pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["ip", "netns", "list"], capture_output=True, check=False).returncode != 0
    if Path("/usr/sbin/ip").exists() or Path("/sbin/ip").exists()
    else True,
    reason="makes network namespaces",
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return project(tmp_path)


def steered(place: Path, verb: str) -> tuple[int, str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "forgather_dsl", "control", "run", verb]
    done = subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def saved_step(place: Path) -> int:
    found = control.last_checkpoint(str(place / "run"))
    assert found is not None
    return found[0]


@pytest.mark.slow
def test_a_run_is_asked_how_it_is_to_save_and_by_a_signal_to_one_rank_to_stop(place: Path) -> None:
    with run("Two", place) as r:
        r.until_step(2)
        assert control.status(str(place / "run"))["state"] == "running"
        answer = control.ask(str(place / "run"), "save", 60.0)
        first = saved_step(place)
        assert answer == {"step": first, "checkpoint": f"run/checkpoints/step-{first:08}"}
        r.until_step(first + 2)  # it goes on
        os.kill(r.ranks()[1], signal.SIGTERM)
        r.until_over()
        assert r.code == 130
        assert saved_step(place) == r.step() > first
        assert r.said.count(f"interrupted at step {r.step()}; saved run/checkpoints/step-{r.step():08}") == 1
    found = control.status(str(place / "run"))
    assert (found["state"], found["step"]) == ("stopped", r.step())


@pytest.fixture
def small(place: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(place)
    return load_file("exp.py").Small


def test_a_signal_during_a_save_lets_it_finish_and_stops_after_the_next_step(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, asked = Session.save, []

    def interrupted(session: Session, wait: bool = False) -> str:
        if not asked:
            asked.append(session.step)
            os.kill(os.getpid(), signal.SIGTERM)
        return save(session, wait)

    monkeypatch.setattr(Session, "save", interrupted)
    with pytest.raises(Interrupted, match="interrupted at step 4; saved") as caught:
        Trainer(small(save_every=3), out="run").fit()
    assert caught.value.exit_code == 130
    assert sorted(p.name for p in Path("run/checkpoints").iterdir()) == ["step-00000003", "step-00000004"]
    assert control.status("run")["state"] == "stopped"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_process_terminated_before_the_first_step_ends_as_one_that_was_interrupted(
    small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forgather_dsl.train.prepare.prepare", lambda experiment: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="terminated before the first step: nothing to save") as caught:
        Trainer(small(), out="run").fit()
    assert caught.value.exit_code == 130
    with terminable(), terminable():  # a handler of somebody else's stays
        assert signal.getsignal(signal.SIGTERM) != signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.parametrize(
    ("error", "env", "stays"),
    [
        (PeerLost("rank 1", "sending", RuntimeError("gone")), None, False),
        (RuntimeError("no"), STORE, False),
        (RuntimeError("no"), None, True),  # a script of torchrun's may go on
        (Interrupted("stopped"), STORE, True),
        (KeyboardInterrupt(), STORE, True),
    ],
)
def test_a_rank_that_fails_is_not_terminated_before_it_has_said_why(
    error: BaseException, env: str | None, stays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(STORE, raising=False)
    if env is not None:
        monkeypatch.setenv(env, "store")
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(type(error)), StopRequest():
            raise error
        assert signal.getsignal(signal.SIGTERM) == (before if stays else signal.SIG_IGN)
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_finished_run_and_one_that_failed_say_so(small: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Trainer(small(steps=2), out="run").fit()
    found = control.status("run")
    assert (found["state"], found["step"], found["checkpoint_step"]) == ("finished", 2, 2)
    monkeypatch.setattr(Session, "said", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Trainer(small(steps=2), out="other").fit()
    found = control.status("other")
    assert (found["state"], found["message"]) == ("failed", "division by zero")
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "step"), [(1, 3), *(pytest.param(*one, marks=pytest.mark.exhaustive) for one in ((0, 1), (2, 6)))]
)
def test_a_rank_that_dies_ends_the_run_in_two_seconds(place: Path, rank: int, step: int) -> None:
    with run("Dying", place, FAULT_RANK=str(rank), FAULT_STEP=str(step)) as r:
        r.until((place / "died").exists)
        r.until_over()
        took = time.time() - float((place / "died").read_text())
        print(f"rank {rank}, step {step}: {took:.2f} s")
        assert took < ONE_HOST_SECONDS
        assert r.code == 4
        waited, died, ended = sorted(r.errors, key=lambda line: ("killed" in line, "the ranks ended" in line))[:3]
        assert died.startswith(f"error: rank {rank} was killed by SIGKILL") or "was killed" in ended
        assert f" lost rank {rank} while " in waited or "lost another rank" in waited
        assert len(r.errors) == 3


def training_now(place: Path) -> bool:
    """Whether this start, not one before, has come to a step."""
    if not (place / "run" / "config.json").exists():
        return False
    found = control.status(str(place / "run"))
    return found["state"] == "running" and bool(found["step"])


@pytest.mark.slow
def test_a_killed_launcher_leaves_nobody_and_the_run_counts_as_dead(place: Path) -> None:
    text = """
    from exp import *
    if __name__ == "__main__":
        Trainer(Two(), out="run").fit()
    """
    for number, start in enumerate((lambda: run("Two", place), lambda: script(text, place))):
        with start() as r:
            r.until(lambda r=r: training_now(place) or r.process.poll() is not None)
            assert len(r.alive()) >= 3
            r.process.kill()
            took = r.until_over(10.0)
            print(f"launcher {number}: {took:.2f} s")
        assert control.status(str(place / "run"))["state"] == "died"


@pytest.mark.slow
def test_a_terminated_launcher_saves_and_the_run_goes_on_from_there(place: Path) -> None:
    with run("Two", place) as r:
        r.until_step(3)
        r.process.terminate()
        r.until_over()
        assert (r.code, saved_step(place)) == (130, r.step())
        stopped = r.step()
    with run("Two", place) as r:
        r.until_step(stopped + 1)
        assert f"resume  step {stopped}," in r.said
        os.kill(r.ranks()[1], signal.SIGSTOP)  # so that it cannot save
        r.process.send_signal(signal.SIGINT)
        time.sleep(0.5)  # the other rank waits in C, where it cannot say that it was asked
        assert r.process.poll() is None
        r.process.send_signal(signal.SIGINT)
        took = r.until_over(10.0)
        print(f"second Ctrl-C: {took:.2f} s")
        assert took < ONE_HOST_SECONDS
        assert r.code == 130


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.exhaustive)])
def test_an_interrupt_while_ranks_start_ends_them_without_a_word_too_many(place: Path, number: int) -> None:
    with run("Two", place) as r:
        r.until(lambda: len(r.ranks()) == 2)
        r.process.send_signal(number)
        took = r.until_over(10.0)
        print(f"interrupt at the start: {took:.2f} s")
        assert r.code == 130
        assert r.said == "interrupted before the first step: nothing to save\n"


@pytest.mark.slow
def test_a_stopped_rank_is_found_by_the_others(place: Path) -> None:
    with run("Watched", place) as r:
        r.until_step(3)
        os.kill(r.ranks()[1], signal.SIGSTOP)
        took = r.until_over()
        print(f"stopped rank, limit 4 s: {took:.2f} s")
        assert r.code == 4
        assert took < 4 + 5
        said, _ = r.errors
        assert "has waited" in said
        assert "rank 1 has shown no sign of life for " in said
        assert "in action" in said or "numbers" in said
    assert control.status(str(place / "run"))["state"] in ("failed", "died")


@pytest.mark.slow
def test_an_endless_loop_is_found_and_its_line_written_down(place: Path) -> None:
    with run("Looping", place) as r:
        r.until_step(3)
        (place / "loop").touch()
        took = r.until_over()
        print(f"endless loop, limit 4 s: {took:.2f} s")
        assert r.code == 4
        said, _ = r.errors
        assert said.startswith("error: rank 1 has been busy with action 1")
        assert "(stage 1 of 3 (layers 1 to 2), microbatch " in said
        line = next(n for n, text in enumerate((place / "exp.py").read_text().splitlines(), 1) if '"loop"' in text)
        stack = (place / "run" / "control" / "stack-1.txt").read_text()
        assert f'exp.py", line {line}' in stack or f'exp.py", line {line + 1}' in stack


@pytest.mark.exhaustive
def test_a_killed_agent_of_torchrun_takes_its_ranks_along(place: Path) -> None:
    with torchrun("Two", place, "--standalone") as r:
        r.until_step(2)
        assert len(r.ranks()) == 2
        r.process.kill()
        took = r.until_over(10.0)
        print(f"agent killed: {took:.2f} s")
        assert took < ONE_HOST_SECONDS


@pytest.mark.slow
def test_torchrun_saves_when_terminated_and_ends_when_a_rank_dies(place: Path) -> None:
    with torchrun("Two", place, "--standalone") as r:
        r.until_step(2)
        r.process.terminate()
        r.until_over()
        assert saved_step(place) == r.step()
    with torchrun("Two", place, "--standalone", log="run") as r:
        before = r.step()
        r.until_step(before + 2)
        os.kill(r.ranks()[0], signal.SIGKILL)
        took = r.until_over()
        print(f"rank of torchrun killed: {took:.2f} s")
        assert r.code == 1  # torchrun's own
        assert "error: rank 1 lost " in r.said


def over(agents: list[Started], seconds: float) -> float:
    begin = time.monotonic()
    for agent in agents:
        agent.until(lambda agent=agent: agent.process.poll() is not None and not agent.ranks(), seconds)
    return time.monotonic() - begin


def training(agents: list[Started]) -> None:
    metrics = agents[0].folder / "run" / "metrics.jsonl"
    agents[0].until(
        lambda: metrics.exists() and any("loss" in json.loads(t) for t in metrics.open() if t[-1] == "\n"), 90
    )


@pytest.mark.slow
def test_on_two_hosts_a_dead_rank_ends_both_agents_in_ten_seconds(place: Path) -> None:
    agents = two_agents("Two", place)
    with agents[0], agents[1]:
        training(agents)
        os.kill(next(iter(agents[1].ranks().values())), signal.SIGKILL)
        took = over(agents, 60.0)
        print(f"two agents, one rank killed: {took:.2f} s")
        assert took < TWO_HOSTS_SECONDS
        assert [agent.code for agent in agents] == [1, 1]
        assert sum("error: rank 0 lost " in agent.said or "error: rank 1 lost " in agent.said for agent in agents) == 1


@root
@pytest.mark.slow
@pytest.mark.parametrize("fault", ["cut", pytest.param("power", marks=pytest.mark.exhaustive)])
def test_two_hosts_that_lose_each_other_both_end(place: Path, fault: str) -> None:
    with TwoHosts() as hosts:
        agents = hosts.start("WatchedTwo", place)
        with agents[0], agents[1]:
            training(agents)
            if fault == "cut":
                hosts.cut()
            else:
                for pid in agents[0].alive():
                    os.kill(pid, signal.SIGKILL)
            took = over(agents, 60.0)
            print(f"{fault}, limit 10 s: {took:.2f} s")
            assert took < (10 + 10 if fault == "cut" else TWO_HOSTS_SECONDS)
            said = [line for agent in agents for line in agent.errors]
            assert any("has waited" in line or "lost" in line for line in said)
            assert any("in action" in line or "numbers" in line for line in said)


@pytest.mark.slow
def test_tasks_of_srun_are_ranks_and_control_stops_them(place: Path) -> None:
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0"}
    slurm |= {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_STEP_NODELIST": "localhost", "SLURM_NODEID": "0"}
    command = [sys.executable, "-m", "forgather_dsl", "run", "exp.py:Validated", "--out", "run"]
    tasks = [
        Started(command, place, f"task{n}", **slurm, SLURM_PROCID=str(n), SLURM_LOCALID=str(n), GLOO_SOCKET_IFNAME="lo")
        for n in range(2)
    ]
    with tasks[0], tasks[1]:
        training(tasks)
        assert "SLURM_PROCID" in environ(tasks[0].process.pid)
        code, text = steered(place, "save")
        assert code == 0, text
        saved = saved_step(place)
        code, text = steered(place, "stop")
        assert code == 0, text
        assert saved_step(place) > saved
        assert text == f"stopped; saved step {saved_step(place)}: run/checkpoints/step-{saved_step(place):08}\n"
        for task in tasks:
            task.until_over(10.0)
        assert [task.code for task in tasks] == [130, 130]
