"""What is written by `python docs/write` is what it would write now: the reference, the pictures, the gallery. No torch is imported."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import codegen
import forgather_dsl
from forgather_dsl.dsl.load import experiments_in, load_file

DOCS = Path(__file__).parents[2] / "docs"
AGAIN = "it is stale; write it anew with `make docs` and look at the difference"


def part(name: str):
    """A module of docs/write, which is a program and no package."""
    if str(DOCS / "write") not in sys.path:
        sys.path.insert(0, str(DOCS / "write"))
    return importlib.import_module(name)


def test_the_reference_is_what_the_source_says_without_torch():
    """In a process of its own, as `make docs` runs it."""
    code = "import json, sys; sys.path[:0] = ['docs/write', '.']; import reference_pages as r"
    code += "; print(json.dumps([r.pages(), 'torch' in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], cwd=DOCS.parent, capture_output=True, text=True, check=True)
    pages, torch = json.loads(done.stdout)
    assert not torch
    for file, text in pages.items():
        assert (DOCS / file).exists(), f"docs/{file}: {AGAIN}"
        assert (DOCS / file).read_text(encoding="utf-8") == text, f"docs/{file}: {AGAIN}"
    assert {path.relative_to(DOCS).as_posix() for path in (DOCS / "reference").glob("*.md")} == set(pages)


def test_every_public_name_is_in_the_reference_and_says_what_it_is():
    index = (DOCS / "reference" / "README.md").read_text(encoding="utf-8")
    rows = dict(line.strip("| ").split("](", 1) for line in index.splitlines() if line.startswith("| [`"))
    names = {name.strip("[`"): rest for name, rest in rows.items()}
    assert set(names) == {*forgather_dsl.__all__, *(f"codegen.{name}" for name in codegen.__all__)}
    assert {name for name, rest in names.items() if len(rest.partition(" | ")[2].strip(" |")) < 5} == set()


def test_every_field_of_a_spec_has_a_row():
    parts = part("reference_of_specs")
    section = parts.spec_section(forgather_dsl.Llama)
    assert "| `num_heads` | `int` | *required* | >= 1 and <= 65,536 |" in section
    assert "*derived*: 8/3 of the width" in section
    assert "`dim` of [`Model`](model.md#model)" in section
    assert "'fp32' | 'bf16'".replace("|", "\\|") in parts.spec_section(forgather_dsl.AdamW)
    assert "tokens" in parts.spec_section(forgather_dsl.ChunkedCrossEntropy)  # the comment beside the field


def test_every_experiment_is_in_the_gallery():
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    files = sorted((DOCS.parent / "experiments").glob("*.py"))
    assert {file.stem for file in files} == set(part("gallery_page").FILES)
    classes = [cls for file in files for cls in experiments_in(load_file(str(file))) if not cls.__abstract__]  # type: ignore[attr-defined]
    assert [cls.__name__ for cls in classes if f"| `{cls.__name__}` |" not in text] == []


def test_results_are_of_runs_that_were_finished():
    for result in part("gallery_page").results():
        assert result["bits_per_byte"] > 0
        assert result["seconds"] is None or result["seconds"] > 0
        assert (DOCS.parent / result["target"].partition(":")[0]).exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["schedule_pictures", "gallery_page"])
def test_what_the_planner_draws_and_counts_is_the_same_now(name: str):
    for file, text in part(name).pages().items():
        assert (DOCS / file).read_text(encoding="utf-8") == text, f"docs/{file}: {AGAIN}"
