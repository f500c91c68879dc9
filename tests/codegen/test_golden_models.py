"""The emitted files of two experiments, read once and kept: as short as one writes them by hand, clean, and the same each time.

`make golden` writes them anew, for review in the diff.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from forgather_dsl.dsl import load
from forgather_dsl.interop.standalone import source_of

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
MODELS = {"tiny_llama": "tiny_llama.py:Baseline", "llama7b": "llama7b.py:Llama31PP2"}
MOST = 1.25  # statements, for each that one writes by hand


def emitted(name: str) -> str:
    return source_of(load(str(ROOT / "experiments" / MODELS[name]))()).text


def statements(text: str) -> int:
    """Without the header and docstrings."""
    found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.stmt)]
    return sum(not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)) for node in found)


@pytest.mark.parametrize("name", MODELS)
def test_an_emitted_file_is_the_one_that_was_read(name: str) -> None:
    golden, text = GOLDEN / f"model-{name}.py", emitted(name)
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text(), f"the emitted file changed; look at it, then `make golden` writes {golden.name}"


@pytest.mark.parametrize("name", MODELS)
def test_an_emitted_file_is_about_as_long_as_one_written_by_hand(name: str) -> None:
    by_hand = statements((Path(__file__).parent / f"reference_{name}.py").read_text())
    assert statements((GOLDEN / f"model-{name}.py").read_text()) <= MOST * by_hand


def test_emitted_files_please_the_linter_the_formatter_and_the_type_checker() -> None:
    files = [str(GOLDEN / f"model-{name}.py") for name in MODELS]
    folder = Path(sys.executable).parent
    pyright = [folder / "pyright", "--pythonpath", sys.executable]
    for tool in ([folder / "ruff", "check"], [folder / "ruff", "format", "--check"], pyright):
        done = subprocess.run([*tool, *files], cwd=ROOT, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stdout + done.stderr


@pytest.mark.exhaustive
def test_another_order_of_hashes_gives_the_same_text() -> None:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_golden_models import MODELS, emitted\n"
        "print(emitted('llama7b'), end='')"
    )
    texts = [
        subprocess.run(
            [sys.executable, "-c", code, str(Path(__file__).parent)],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1] == emitted("llama7b")
