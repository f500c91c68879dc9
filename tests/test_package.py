"""The package's public names: complete, all there, and cheap."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import forgather_dsl
from forgather_dsl import dsl, specs


def test_every_word_and_every_type_is_a_public_name() -> None:
    public = set(forgather_dsl.__all__)
    assert set(specs.__all__) <= public
    assert {
        "patch",
        "swap",
        "derived",
        "REQUIRED",
        "Factory",
        "Cycle",
        "call",
        "build",
        "Trainer",
        "Run",
        "Sweep",
    } <= public
    assert public <= {*specs.__all__, *dsl.__all__, "Trainer", "Run", "Sweep", "UserError", "report"}
    assert all(getattr(forgather_dsl, name) is not None for name in public)


def test_importing_everything_loads_nothing_heavy() -> None:
    code = (
        "import sys; from forgather_dsl import *; Trainer, Run, Experiment;"
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy', 'rich', 'cattrs') if m in sys.modules])"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_that_of_the_package_metadata() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert f'version = "{forgather_dsl.__version__}"' in text
