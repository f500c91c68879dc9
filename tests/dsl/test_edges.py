"""Every sharp edge known to the language has a test that names it, and the public words are what they were."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import forgather_dsl.dsl as dsl

FOLDER = Path(__file__).parent
EDGES = 30  # found while comparing configuration systems: attrs, cattrs and YAML, type checkers, semantics, processes


def test_each_of_the_thirty_edges_has_a_test_that_names_it():
    texts = [path.read_text() for folder in (FOLDER, FOLDER.parent / "typing") for path in folder.glob("*.py")]
    named = {int(number) for text in texts for number in re.findall(r'"""Edge (\d+)[:,]', text)}
    assert sorted(named) == list(range(1, EDGES + 1))


def test_the_public_words():
    assert set(dsl.__all__) == {
        "Call", "ConfigError", "Cycle", "CycleError", "Difference", "Factory", "Frozen", "Graph", "Lazy", "LoadError",
        "MissingValue", "PatchError", "REQUIRED", "Said", "UnknownField", "Untrusted", "build", "call", "check", "derived",
        "diff", "digest", "explain", "from_dict", "graph", "is_mixin", "load", "missing", "override", "patch", "problems",
        "replace", "snapshot", "swap", "to_dict", "walk", "warnings",
    }  # fmt: skip
    assert all(hasattr(dsl, name) for name in dsl.__all__)


def test_a_lazy_has_no_public_attributes_that_could_clash_with_fields():
    assert [name for name in vars(dsl.Lazy) if not name.startswith("_")] == []


def test_importing_the_language_loads_neither_torch_nor_cattrs():
    code = (
        "import sys, forgather_dsl.dsl; print(sorted({'torch', 'cattrs', 'numpy', 'rich', 'typer'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=FOLDER.parents[1], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
