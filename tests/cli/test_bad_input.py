"""Every mistake of the list ends with exit code 2 before anything runs, and says what, where and what to write instead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import forgather_dsl

BASE = """
class Base(Experiment):
    steps = 10
    batch_size = 8
    model = patch(Llama, dim=32, num_layers=2, num_heads=2)
"""

# name -> (what the file says below the imports, command line, what the message must say, the line it must name)
MISTAKES = {
    "an unknown field": (
        "class Mine(Experiment):\n    optimiser = AdamW()\n",
        ["m.py:Mine"],
        ["did you mean 'optimizer'"],
        3,
    ),
    "an unknown field of a patch": (
        "class Mine(Experiment):\n    steps = 1\n    model = patch(Llama, layers=4)\n",
        ["m.py:Mine"],
        ["no field 'layers'", "num_layers"],
        4,
    ),
    "a wrong type": ("class Mine(Experiment):\n    seq_len = 'long'\n", ["m.py:Mine"], ["seq_len", "int", "'long'"], 3),
    "a wrong component": (
        "class Mine(Experiment):\n    optimizer = Rope()\n",
        ["m.py:Mine"],
        ["optimizer", "Optimizer", "Rope"],
        3,
    ),
    "a misspelt class": (BASE, ["m.py:Bse"], ["no 'Bse'", "did you mean 'Base'"], None),
    "a misspelt file": (BASE, ["n.py:Base"], ["n.py", "did you mean 'm.py'"], None),
    "a misspelt module": (BASE, ["nowhere.at.all"], ["nowhere.at.all"], None),
    "a file that does not import": ("import no_such_module_here\n", ["m.py"], ["no_such_module_here"], 2),
    "a file that is no Python": ("class Mine(Experiment)\n", ["m.py"], ["does not import"], 2),
    "a method over a field": (
        "class Mine(Experiment):\n    def seq_len(self):\n        return 8\n",
        ["m.py:Mine"],
        ["a method over a field", "@derived"],
        3,
    ),
    "a mutable default": ("class Mine(Experiment):\n    loggers = []\n", ["m.py:Mine"], ["list", "tuple"], 3),
    "an unknown --set path": (
        BASE,
        ["m.py:Base", "--set", "optimizer.weight_decy=1"],
        ["--set optimizer.weight_decy", "did you mean 'weight_decay'"],
        None,
    ),
    "a --set without value": (BASE, ["m.py:Base", "--set", "optimizer.lr"], ["--set path=value"], None),
    "a --set of the wrong type": (BASE, ["m.py:Base", "--set", "steps=many"], ["--set steps", "many", "int"], None),
    "a --set of an unknown type": (
        BASE,
        ["m.py:Base", "--set", "optimizer=AdmW"],
        ["AdmW", "did you mean 'AdamW'"],
        None,
    ),
    "microbatches that do not divide": (
        BASE + "\nclass Mine(Base):\n    microbatch_size = 3\n",
        ["m.py:Mine"],
        ["microbatch_size", "8 is not a multiple of microbatch_size 3", "1, 2, 4, 8"],
        9,
    ),
    "more stages than layers": (
        BASE + "\nclass Mine(Base):\n    parallel = Pipeline(stages=3)\n",
        ["m.py:Mine"],
        ["parallel.stages", "3 stages for 2 layers"],
        9,
    ),
    "cuts that do not add up": (
        BASE + "\nclass Mine(Base):\n    parallel = Pipeline(stages=2, cuts=(2, 1))\n",
        ["m.py:Mine"],
        ["parallel.cuts", "adds up to 3", "2 layers"],
        9,
    ),
    "a vocabulary smaller than the tokenizer's": (
        BASE + "\nclass Mine(Base):\n    model = patch(Llama, vocab_size=1000)\n",
        ["m.py:Mine"],
        ["model.vocab_size", "1000 is smaller than the tokenizer's 4096", "vocab_size=4096"],
        9,
    ),
    "a run without an end": (
        "class Mine(Experiment):\n    model = patch(Llama, dim=32, num_layers=2, num_heads=2)\n",
        ["m.py:Mine"],
        ["steps", "nothing ends this run"],
        None,
    ),
    "a wrong hardware": (BASE, ["m.py:Base", "--set", "hardware=much"], ["hardware = 'much'", "4x24GB"], None),
    "a component that is no experiment": ("mine = AdamW()\n", ["m.py:mine"], ["AdamW", "not an experiment"], None),
    "a value that is no experiment": ("mine = 3\n", ["m.py:mine"], ["3", "not an experiment"], None),
    "a folder that is no run": (BASE, ["."], ["no run", "file.py:Class"], None),
    "several experiments in a file": (
        BASE + "\nclass Other(Base):\n    steps = 3\n",
        ["m.py"],
        ["2 experiments", "m.py:Base", "m.py:Other"],
        None,
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_and_nothing_runs(name, cli, write, monkeypatch):
    body, arguments, said, line = MISTAKES[name]
    write("m.py", body)
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a process was started"))
    answer = cli("run", *arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert answer.err.startswith("error: ")
    assert "Traceback" not in answer.err
    for text in said:
        assert text in answer.err
    if line is not None:
        assert f"m.py:{line}" in answer.err
    assert not os.path.exists("runs")


def test_everything_that_is_missing_is_told_at_once(cli, write):
    write("m.py", "class Mine(Experiment):\n    steps = 1\n")
    answer = cli("run", "m.py:Mine")
    assert answer.code == 2
    for field in ("dim", "num_layers", "num_heads"):
        assert f"Llama.{field} is required" in answer.err or f"model.{field}" in answer.err
    assert "model.py:" in answer.err  # where the field is declared


def test_several_mistakes_are_told_at_once(cli, write):
    write("m.py", BASE)
    answer = cli("run", "m.py", "--set", "sed=1", "--set", "optimizer.lrr=2", "--set", "steps=x")
    assert answer.code == 2
    for text in ("'seed'", "'lr'", "steps"):
        assert text in answer.err


@pytest.mark.parametrize("verb", ["show", "graph", "run"])
def test_reading_verbs_refuse_what_run_refuses(cli, write, verb):
    write("m.py", BASE + "\nclass Mine(Base):\n    microbatch_size = 3\n")
    assert cli(verb, "m.py:Mine").code == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rnu"], "Did you mean 'run'"),
        (["show"], "Missing argument"),
        (["show", "a", "b"], "unexpected extra argument"),
        (["show", "--jsn"], "No such option"),
        (["generate", "x", "y", "--seed", "often"], "--seed"),
        (["generate", "x", "y", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["graph", "x.py", "--format", "svg"], "tree, mermaid, dot"),
    ],
)
def test_a_wrong_command_line_ends_with_2(cli, arguments, said):
    answer = cli(*arguments)
    assert answer.code == 2
    assert said in answer.err
    assert answer.out == ""


def test_debug_shows_the_traceback(cli, write):
    write("m.py", "import no_such_module_here\n")
    assert "Traceback" in cli("run", "m.py", "--debug").err


def test_a_failure_of_our_own_is_not_a_success(cli, write, monkeypatch):
    from forgather_dsl.cli import listing

    monkeypatch.setattr(listing, "rows", lambda place: 1 / 0)
    answer = cli("ls", ".")
    assert answer.code == 4
    assert "ZeroDivisionError" in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize("mistake", ["an unknown field", "more stages than layers", "an unknown --set path"])
def test_told_by_a_fresh_process_at_once_and_without_torch(write, project, mistake):
    body, arguments, _, _ = MISTAKES[mistake]
    write("m.py", body)
    code = (
        "import sys; from forgather_dsl.cli.app import run_command; code = run_command(sys.argv[1:]);"
        "print([m for m in ('torch', 'transformers', 'datasets', 'rich', 'pydantic') if m in sys.modules]); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(forgather_dsl.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code, "run", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout.strip() == "[]"
