"""Models of the package, emitted and tried in a process that has torch alone: the same bit for bit, whatever the parts.

By default twenty that are drawn anew; `FORGATHER_ZOO_SEED` draws those of a failure again. The slow test takes 324.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo

import codegen
from forgather_dsl.interop.standalone import check_of
from forgather_dsl.interop.tracing import traced

ROOT = Path(__file__).parents[2]
FEW = 20


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def wrong(models: list[Any], folder: Path) -> list[str]:
    """Tries the files of all models, and shows them to the linter; what is wrong with which."""
    found = []

    def checks() -> Iterator[codegen.Check]:  # one is traced while others are tried
        for number, model in enumerate(models):
            source = traced(model)
            (folder / f"model_{number}.py").write_text(source.source.text)
            yield check_of(model, source)

    for number, (model, result) in enumerate(zip(models, codegen.verify_many(checks(), workers=2))):
        if isinstance(result, codegen.CodegenError):
            found.append(f"{number}, {model!r}: {result}")
        else:
            assert result.compared["train gradient"] > 0, number
    ruff = Path(sys.executable).parent / "ruff"
    for tool in ([ruff, "check"], [ruff, "format", "--check"]):
        options = ["--config", str(ROOT / "pyproject.toml"), "--no-cache", str(folder)]
        done = subprocess.run([*tool, *options], capture_output=True, text=True, check=False)
        if done.returncode:
            found.append(done.stdout + done.stderr)
    return found


def test_some_models_of_the_zoo_are_the_same_with_torch_alone(tmp_path: Path) -> None:
    seed = int(os.environ.get("FORGATHER_ZOO_SEED") or random.SystemRandom().randrange(10**6))
    found = wrong(zoo.some(seed, FEW), tmp_path)
    assert not found, f"FORGATHER_ZOO_SEED={seed}\n" + "\n".join(found)


@pytest.mark.exhaustive
def test_every_kind_of_model_is_the_same_with_torch_alone(tmp_path: Path) -> None:
    models = [*zoo.every_kind(0), *zoo.some(1, 108)]
    assert len(models) >= 300
    found = wrong(models, tmp_path)
    assert not found, "\n".join(found[:20])
