"""`cli(...)` runs a command line in this process; `project` is an empty folder to work in."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from forgather_dsl.cli.app import run_command


class Answer(NamedTuple):
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """stdout, which has to be one JSON document."""
        return json.loads(self.out)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    def run(*arguments: str) -> Answer:
        capsys.readouterr()
        code = run_command(list(arguments))
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own as the working directory, and nothing in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def write(project: Path) -> Callable[[str, str], str]:
    """`write("mine.py", body)` puts experiments into a file, with the imports that they need above line 2."""

    def put(name: str, body: str) -> str:
        file = project / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"from forgather_dsl import {NAMES}\n{body}")
        return name

    return put


NAMES = "AdamW, Experiment, GPipe, LayerNorm, Llama, Muon, Pipeline, REQUIRED, Rope, Stdlib, TrainedBPE, derived, patch, swap"
