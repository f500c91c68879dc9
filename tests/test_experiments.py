"""The gallery: every experiment resolves to its golden text, stays short, and changes what it says it changes.

`UPDATE_GOLDEN=1 pytest tests/test_experiments.py` writes `tests/golden/` anew; the difference is for the review.
"""

from __future__ import annotations

import ast
import os
import statistics
from pathlib import Path

import pytest

from forgather_dsl.dsl import check, diff, from_dict, snapshot, to_dict, warnings
from forgather_dsl.dsl.load import experiments_in, load_file
from forgather_dsl.plan.sizes import model_size

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
FILES = sorted((ROOT / "experiments").glob("*.py"))
MOST_LEAF_LINES, MOST_FIRST_LINES = 6, 25
EXPERIMENTS = {
    f"{file.stem}-{cls.__name__}": cls
    for file in FILES
    for cls in experiments_in(load_file(str(file)))
    if not cls.__abstract__  # type: ignore[attr-defined]
}


def code_lines(file: Path, name: str) -> list[str]:
    """The lines of a class that are neither blank nor comment; its docstring counts."""
    text = file.read_text()
    (node,) = (n for n in ast.parse(text).body if isinstance(n, ast.ClassDef) and n.name == name)
    lines = text.splitlines()[node.lineno - 1 : node.end_lineno]
    return [line for line in lines if line.strip() and not line.strip().startswith("#")]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_are_complete_and_without_warnings(name):
    experiment = EXPERIMENTS[name]()
    check(experiment)
    assert warnings(experiment) == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_resolved_configuration_is_the_golden_one(name):
    text, file = snapshot(EXPERIMENTS[name]()), GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(text)
    assert file.exists(), f"no {file.name}; write it with UPDATE_GOLDEN=1"
    assert text == file.read_text()


def test_no_golden_text_is_left_over():
    assert {file.stem for file in GOLDEN.glob("*.txt")} == set(EXPERIMENTS)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_experiments_survive_a_file(name):
    experiment = EXPERIMENTS[name]()
    assert snapshot(from_dict(to_dict(experiment))) == snapshot(experiment)


def test_leaves_are_short():
    lengths = [
        len(code_lines(ROOT / f"experiments/{name.split('-')[0]}.py", cls.__name__))
        for name, cls in EXPERIMENTS.items()
    ]
    assert statistics.median(lengths) <= MOST_LEAF_LINES
    assert len(code_lines(ROOT / "experiments/first.py", "First")) <= MOST_FIRST_LINES
    assert len(code_lines(ROOT / "experiments/first.py", "FirstPP2")) == 3  # the class, what it is, the pipeline


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_can_be_copied_anywhere(file):
    """The gallery needs nothing but the package."""
    modules = [n.module for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.ImportFrom)]
    assert modules == ["forgather_dsl"]


def ablations() -> list[type]:
    return [cls for name, cls in EXPERIMENTS.items() if name.startswith("tiny_llama-") and cls.__name__ != "Baseline"]


@pytest.mark.parametrize("cls", ablations(), ids=lambda cls: cls.__name__)
def test_an_ablation_changes_one_thing(cls):
    """One assignment in its body, and every path that differs from the baseline is below it."""
    changed = {d.path for d in diff(EXPERIMENTS["tiny_llama-Baseline"](), cls())}
    assert changed
    assert len({path.split(".")[0] for path in changed}) == 1
    assert len(code_lines(ROOT / "experiments/tiny_llama.py", cls.__name__)) == 3


def test_ablations_cover_what_can_be_exchanged():
    baseline = EXPERIMENTS["tiny_llama-Baseline"]()
    types = {d.path for cls in ablations() for d in diff(baseline, cls())}
    wanted = {"model.norm", "model.mlp", "model.attention", "model.rope", "optimizer", "lr_schedule", "parallel"}
    assert wanted <= types


@pytest.mark.parametrize("name", ["SquaredReLU", "GELU", "WithLayerNorm", "NoPositions"])
def test_ablations_that_promise_it_keep_the_number_of_parameters(name):
    models = [EXPERIMENTS[f"tiny_llama-{which}"]().model for which in ("Baseline", name)]
    assert len({model_size(model, 256).parameters for model in models}) == 1


def test_first_and_its_pipeline_differ_in_the_pipeline_alone():
    differing = diff(EXPERIMENTS["first-First"](), EXPERIMENTS["first-FirstPP2"]())
    assert {change.path.split(".")[0] for change in differing} == {"parallel"}


def test_sizes_in_docstrings_are_true():
    first, tiny = EXPERIMENTS["first-First"](), EXPERIMENTS["tiny_llama-Baseline"]()
    for experiment, doc in ((first, type(first).__doc__), (tiny, type(tiny).__mro__[1].__doc__)):
        millions = model_size(experiment.model, experiment.seq_len).parameters / 1e6
        assert f"{millions:.1f} M parameters" in str(doc)
