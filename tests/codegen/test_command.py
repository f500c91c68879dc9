"""`python -m codegen`: what it prints, what it writes, and its exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from codegen.command import main

HERE = Path(__file__).parent
MODELS = str(HERE / "command_models.py")


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Runs the command in this process, in an empty directory: (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def call(*words: str) -> tuple[int, str, str]:
        code = main(words)
        told = capsys.readouterr()
        return code, told.out, told.err

    return call


def test_a_model_is_written_and_checked(run):
    code, out, err = run("command_models:Tied", "--kwargs", '{"kind": "relu"}', "--out", "made", "--also", "initialise")
    assert (code, err) == (0, "")
    assert out.startswith("made: Tied, ")
    assert "eval output" in out
    assert "def initialise" in Path("made/model.py").read_text()
    assert sorted(os.listdir("made")) == ["model.py", "model.safetensors"]
    assert run("--check", "made/model.py") == (0, "made/model.py is as it was emitted\n", "")
    text = Path("made/model.py").read_text()
    Path("made/model.py").write_text(text.replace("torch.relu", "torch.tanh"))
    code, _, err = run("--check", "made/model.py")
    assert code == 2
    assert "made/model.py was changed after it was emitted" in err


def test_inputs_by_name_and_no_weights(run):
    words = ("--inputs", "x=float[2,4]", "mask=bool[2,4]", "--inputs", "x=bfloat16[1,4]", "mask=bool[1,4]")
    code, _, err = run("command_models:Masked", "--out", "made", *words)
    assert code == 2
    assert "the model itself fails in forward in eval 1 mode" in err  # bfloat16 in a model of float32
    code, out, _ = run("command_models:Masked", "--out", "made", *words[:3], "--no-weights")
    assert code == 0
    assert os.listdir("made") == ["model.py"]
    assert "model.safetensors" not in out


def test_only_print(run):
    code, out, _ = run(f"{MODELS}:tied_relu", "--print")
    assert code == 0
    assert "class Tied(nn.Module):" in out
    assert "tanh" not in out.split('"""')[2]
    assert os.listdir(".") == []


WRONG = {
    "nothing": ((), "what to do is not said"),
    "no name": (("command_models", "--print"), "names nothing"),
    "no such module": (("there.is.none:M", "--print"), "there.is.none cannot be imported: ModuleNotFoundError"),
    "no such file": (("none.py:M", "--print"), "there is no file none.py"),
    "no such class": (("command_models:Missing", "--print"), "command_models has no Missing"),
    "no class": (("command_models:NOTHING", "--print"), "is neither a class nor a function"),
    "no module built": (("builtins:dict", "--print"), "gives dict, which is no nn.Module"),
    "no json": (("command_models:Tied", "--print", "--kwargs", "{kind}"), "--kwargs is no JSON"),
    "no object": (("command_models:Tied", "--print", "--kwargs", "[1]"), "--kwargs is no JSON object"),
    "a wrong argument": (("command_models:Tied", "--print", "--kwargs", '{"kind": "x"}'), "does not build: ValueError: no kind 'x'"),
    "no tensor": (("command_models:Tied", "--out", "made", "--inputs", "int<3"), "'int<3' describes no tensor"),
    "mixed names": (("command_models:Tied", "--out", "made", "--inputs", "a=int[2]", "int[3]"), "with and without names are mixed"),
    "no inputs": (("command_models:Masked", "--out", "made"), "what Masked, which begins with Linear, takes cannot be guessed"),
    "undecidable": (("command_models:Undecidable", "--print"), "command_models.py:44: eval makes"),
    "no file to check": (("--check", "none.py"), "none.py cannot be read"),
    "not emitted": (("--check", MODELS), "has no digest"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_without_a_traceback(name, run):
    words, expected = WRONG[name]
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert expected in err
    assert "Traceback" not in err
    assert os.listdir(".") == []


def test_help_and_problems_come_without_torch():
    """In a process of its own: what is wrong with the words is told before torch is imported."""
    code = (
        "import sys\nfrom codegen.command import main\nassert main([]) == 2\nassert main(['--check', 'none']) == 2\n"
        "try: main(['--help'])\nexcept SystemExit as end: assert end.code == 0\nprint('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("False"), done.stderr
    assert "inputs: " in done.stdout
