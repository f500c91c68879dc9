"""The verb `report`, on runs written by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "runs"))

from made_runs import made, of_seeds


@pytest.fixture
def runs(project: Path) -> Path:
    of_seeds(project / "runs", "Base", [3.0, 3.01, 2.99])
    of_seeds(project / "runs", "Other", [2.0, 2.02, 1.99], {"optimizer.lr": "0.01"})
    return project


def test_the_terminal_json_and_files_tell_the_same(cli: Any, runs: Path) -> None:
    answer = cli("report", "runs", "--html", "page.html", "--markdown", "page.md")
    assert answer.code == 0
    assert "6 runs of 2 configurations" in answer.out
    assert "better: real" in answer.out
    assert "better: real" in Path("page.html").read_text()
    assert "**better: real**" in Path("page.md").read_text()
    data = cli("report", "runs/*", "--json").json
    assert data["base"] == "Base"
    assert data["metric"]["name"] == "eval_loss"
    other = data["groups"][0]
    assert other["changes"] == [{"path": "optimizer.lr", "base": "0.001", "value": "0.01"}]
    assert other["difference"]["verdict"] == "better"
    assert other["results"]["eval_loss"]["seeds"] == {"0": 2.0, "1": 2.02, "2": 1.99}
    assert len(data["runs"]) == 6


def test_mistakes_end_with_2_and_say_what_to_write(cli: Any, runs: Path) -> None:
    made(runs / "runs", "Late", steps=10, state="stopped")
    for arguments, told in (
        (["nowhere"], "nowhere does not exist; write run directories"),
        (["runs", "--base", "Bsae"], "--base 'Bsae' is none"),
        (["runs", "--html", "no/such/page.html"], "--html no/such/page.html: No such file or directory"),
        (["runs", "--step", "7"], "--step 7: no run has eval_loss at it"),
    ):
        answer = cli("report", *arguments)
        assert answer.code == 2
        assert told in answer.err


def test_without_a_word_it_is_about_the_folder_of_runs(cli: Any, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "6 runs of 2 configurations" in cli("report").out
    monkeypatch.chdir(runs / "runs" / "Base-0")
    answer = cli("report")
    assert answer.code == 2
    assert "there is no folder runs here" in answer.err


def test_it_needs_no_torch(runs: Path) -> None:
    code = (
        "import sys; from forgather_dsl.cli.app import run_command; "
        "assert run_command(['report', 'runs', '--html', 'x.html', '--markdown', 'x.md']) == 0; "
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
