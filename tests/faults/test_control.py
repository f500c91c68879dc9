"""Steering a run from another shell: what is asked is done once, by the start that was meant, and answered; and how a run is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launched import ROOT

from forgather_dsl.cli.app import run_command
from forgather_dsl.errors import UserError
from forgather_dsl.train import control
from forgather_dsl.train.control import Control, refuse_second


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A run directory with one checkpoint."""
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "checkpoints" / "step-00000007").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-00000009.partial").mkdir()
    return tmp_path


def asked(run: Path, verb: str, timeout: float = 20.0) -> Callable[[], Any]:
    """`ask` in a thread; call for its reply."""
    found: list[Any] = []

    def work() -> None:
        try:
            found.append(control.ask(str(run), verb, timeout))
        except UserError as error:
            found.append(error)

    thread = threading.Thread(target=work)
    thread.start()

    def reply() -> Any:
        thread.join(timeout=30)
        return found[0]

    return reply


def polled(running: Control) -> tuple[bool, bool]:
    """The next poll that finds something."""
    end = time.monotonic() + 20
    while (found := running.poll()) == (False, False):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


def test_a_save_is_asked_for_once_and_answered_when_it_is_committed(place: Path) -> None:
    running = Control(str(place), 100)
    reply = asked(place, "save")
    assert polled(running) == (False, True)
    assert running.poll() == (False, False)
    running.answer(12, "checkpoints/step-00000012")
    assert reply() == {"step": 12, "checkpoint": "checkpoints/step-00000012"}
    assert not list((place / "control" / "requests").iterdir())


def test_a_stop_is_answered_when_the_run_has_ended(place: Path) -> None:
    running = Control(str(place), 100)
    reply = asked(place, "stop")
    assert polled(running) == (True, False)
    running.answer(12, "there")
    running.end("stopped", "interrupted at step 12")
    assert reply() == {"step": 12, "checkpoint": "there"}
    assert control.status(str(place))["state"] == "stopped"


def test_who_asks_while_the_run_ends_is_told(place: Path) -> None:
    running = Control(str(place), 100)
    reply = asked(place, "save")
    while not list((place / "control" / "requests").glob("*.json")):
        time.sleep(0.01)
    running.end("finished")
    found = reply()
    assert (found["ended"], found["step"]) == ("finished", 7)
    assert found["checkpoint"].endswith("step-00000007")


def test_requests_of_an_earlier_start_are_not_obeyed(place: Path) -> None:
    first = Control(str(place), None)
    left = place / "control" / "requests" / "left.json"
    left.write_text(json.dumps({"verb": "stop", "start": first.start}))
    second = Control(str(place), None)
    assert second.poll() == (False, False)
    left.write_text(json.dumps({"verb": "stop", "start": first.start}))  # asked just before the second start
    assert second.poll() == (False, False)
    left.write_text("{not json")
    assert second.poll() == (False, False)
    left.write_text(json.dumps({"verb": "stop", "start": second.start}))
    assert second.poll() == (True, False)


def test_the_state_of_a_run(place: Path) -> None:
    assert control.status(str(place))["state"] == "not started"
    running = Control(str(place), 100)
    for step in range(1, 4):
        running.step(step, 5.0 - step, 1000 * step)
        running.beat()
        time.sleep(0.01)
    found = control.status(str(place))
    assert (found["state"], found["step"], found["steps"], found["loss"]) == ("running", 3, 100, 2.0)
    assert (found["tokens"], found["checkpoint_step"], found["pid"]) == (3000, 7, os.getpid())
    assert 1000 < found["tokens_per_second"] < 2000 / 0.02
    assert found["progress_age_seconds"] < 10
    running.end("failed", "diverged")
    running.beat()  # the thread, once more
    assert control.status(str(place))["state"] == "failed"
    assert control.told(control.status(str(place))).endswith("ago (diverged)")


KILLED = """
import os, signal, sys
from forgather_dsl.train.control import Control
Control(sys.argv[1], 5)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_is_told_from_a_running_one(place: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", KILLED, str(place)], env=env, check=False)
    assert control.status(str(place))["state"] == "died"
    with pytest.raises(UserError, match=r"is not running: .*died without a word") as caught:
        control.ask(str(place), "save", 5.0)
    assert caught.value.exit_code == 2
    beat = place / "control" / "heartbeat.json"
    record = json.loads(beat.read_text())
    beat.write_text(json.dumps({**record, "pid": os.getpid()}))  # the number is another process's by now
    assert control.status(str(place))["state"] == "died"
    beat.write_text(json.dumps({**record, "host": "elsewhere"}))
    assert control.status(str(place))["state"] == "running"
    beat.write_text(json.dumps({**record, "host": "elsewhere", "written": record["written"] - 60}))
    assert control.status(str(place))["state"] == "silent"


def test_no_answer_is_said_after_the_time_that_was_given(place: Path) -> None:
    Control(str(place), 100)
    with pytest.raises(UserError, match=r"no answer in 0.2 s: running as process") as caught:
        control.ask(str(place), "save", 0.2)
    assert caught.value.exit_code == 4
    assert not list((place / "control" / "requests").iterdir())  # it is taken back


def test_the_verb(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = Control(str(place), 100)
    assert run_command(["control", str(place), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "running"
    assert run_command(["control", str(place), "status"]) == 0
    assert "running as process" in capsys.readouterr().out
    assert run_command(["control", str(place), "explode"]) == 2
    assert "write one of status, save, stop" in capsys.readouterr().err
    running.end("finished")
    assert run_command(["control", str(place), "stop"]) == 2
    assert "is not running: finished" in capsys.readouterr().err
    assert run_command(["control", str(place / "checkpoints")]) == 2
    assert "is not a run directory" in capsys.readouterr().err


def test_the_verb_imports_no_torch(place: Path) -> None:
    code = f"import sys; from forgather_dsl.cli.app import run_command; run_command(['control', {str(place)!r}]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}).returncode == 0


def test_a_step_that_was_saved_again_is_the_newest(place: Path) -> None:
    newest = place / "checkpoints" / "step-00000007-2"
    newest.mkdir()
    assert control.last_checkpoint(str(place)) == (7, str(newest))


def test_a_second_trainer_of_the_same_directory_is_refused(place: Path) -> None:
    heartbeat = place / "control" / "heartbeat.json"
    Control(str(place), 10).beat()
    assert json.loads(heartbeat.read_text())["pid"] == os.getpid()
    with pytest.raises(UserError, match=rf"is being trained already, by process {os.getpid()} on .*another --out"):
        refuse_second(str(place))
    Control(str(place), 10).end("finished")
    refuse_second(str(place))
