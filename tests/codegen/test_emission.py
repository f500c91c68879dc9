"""What `emit` writes, and that it writes all or nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_models import Masked, Tied, Undecidable, initialise, tied_relu

import codegen.emission
from codegen import CodegenError, Problem, emit
from codegen.stamp import stamped, unchanged

USE = """
import sys, torch
sys.meta_path.insert(0, type("No", (), {"find_spec": lambda self, name, *_: exec("raise ImportError(name)") if name.split(".")[0] in ("codegen", "command_models", "safetensors") else None})())
from model import load_model
torch.manual_seed(0)
print(load_model()(torch.tensor([[1, 2, 3]])).flatten().tolist())
"""


def test_the_directory_stands_alone(tmp_path):
    torch.manual_seed(1)
    model = tied_relu()
    calls = {"start": "initialise(model)\nresult = list(model.parameters())"}
    reports = []
    source = emit(model, tmp_path / "out", tied_relu, also=(initialise,), calls=calls, told=reports.append)
    assert sorted(os.listdir(tmp_path)) == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["model.py", "model.safetensors"]
    assert (tmp_path / "out" / "model.py").read_text() == source.text
    assert unchanged(source.text)
    assert "elif" not in source.text
    assert reports[0].compared["results of calls"] == 2
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path / "out",
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": ""},
    )
    expected = model(torch.tensor([[1, 2, 3]])).flatten().tolist()
    assert done.stdout.strip() == str(expected)
    assert len(expected) == 33


def test_nothing_is_written_when_something_is_wrong(tmp_path, monkeypatch):
    with pytest.raises(CodegenError, match="eval"):
        emit(Undecidable(), tmp_path / "out", inputs=(torch.ones(2, 4),))
    with pytest.raises(CodegenError, match=r"root module\.act is <built-in method relu"):
        emit(tied_relu(), tmp_path / "out")  # its arguments cannot be read off it
    with pytest.raises(CodegenError, match="takes cannot be guessed"):
        emit(Masked(), tmp_path / "out")

    def wrong(*args, **kwargs):
        source = codegen.tracer.trace(*args, **kwargs)
        return type(source)(**{**vars(source), "text": source.text.replace("torch.tanh", "torch.sin")})

    monkeypatch.setattr(codegen.emission, "trace", wrong)
    with pytest.raises(CodegenError, match="another one: eval output"):
        emit(Tied(), tmp_path / "out")
    assert os.listdir(tmp_path) == []


@pytest.fixture
def unproven(monkeypatch):
    """Without the process that verifies, which other tests have."""
    monkeypatch.setattr(codegen.emission, "verify", lambda *args, **kwargs: None)


def test_what_is_there_is_not_replaced(tmp_path, unproven):
    out = tmp_path / "out"
    out.mkdir()
    emit(Tied(), out)  # an empty directory is free
    first = (out / "model.safetensors").read_bytes()
    with pytest.raises(CodegenError, match="holds an emitted model already"):
        emit(Tied(), out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(CodegenError, match=r"holds notes.txt, not an emitted model alone"):
        emit(Tied(), out, overwrite=True)
    (out / "notes.txt").unlink()
    (out / "__pycache__").mkdir()
    assert (out / "model.safetensors").read_bytes() == first
    emit(tied_relu(), out, tied_relu, overwrite=True, weights=False)
    assert sorted(os.listdir(out)) == ["model.py"]
    assert "relu" in (out / "model.py").read_text()
    (out / "model.py").write_text("print('somebody else')")
    with pytest.raises(CodegenError, match=r"holds model.py, not an emitted model alone"):
        emit(Tied(), out, overwrite=True)
    with pytest.raises(CodegenError, match="is no directory"):
        emit(Tied(), out / "model.py")
    assert sorted(os.listdir(tmp_path)) == ["out"]


def test_a_failed_replacement_brings_the_old_one_back(tmp_path, unproven, monkeypatch):
    out = tmp_path / "out"
    emit(Tied(), out)
    rename = os.rename

    def failing(source, target):
        if Path(target) == out and not str(source).endswith("-old"):
            raise OSError("disk is gone")
        rename(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="disk is gone"):
        emit(tied_relu(), out, tied_relu, overwrite=True)
    assert "tanh" in (out / "model.py").read_text()
    assert os.listdir(tmp_path) == ["out"]


def test_wrapped_models_are_unwrapped(tmp_path, unproven):
    plain = emit(Tied(), tmp_path / "plain")
    assert emit(torch.compile(Tied(), backend="eager"), tmp_path / "compiled").text == plain.text
    assert emit(torch.nn.DataParallel(Tied()), tmp_path / "parallel").text == plain.text


def test_what_is_emitted_again_is_the_same(tmp_path, unproven, monkeypatch):
    source = emit(tied_relu(), tmp_path / "one", tied_relu)
    monkeypatch.syspath_prepend(tmp_path / "one")
    module = __import__("model")
    try:
        again = emit(module.build_model(), tmp_path / "two", module.build_model)
    finally:
        del sys.modules["model"]
    assert again.text == source.text


def test_the_stamp():
    text = '"""A file.\n\nMore.\n"""\n\nimport torch\n\nX = """\n"""\n'
    once = stamped(text)
    assert stamped(once) == once
    assert unchanged(once) is True
    assert unchanged(text) is None
    assert unchanged("import torch") is None
    assert unchanged("not python at all(") is None
    assert unchanged(once.replace("import torch", "import os")) is False
    assert unchanged(once.replace("More.", "Less.")) is True  # prose may change
    assert stamped('"""Short."""\nX = 1\n').startswith('"""Short.\n\nDigest of the code below: ')


def test_problems_read_well():
    problem = Problem("it is wrong", "write it right", "a.py", 3, "    x = y  # here", ("M", "M.forward"))
    assert str(problem) == "a.py:3: it is wrong\n    x = y  # here\n  reached through M -> M.forward\n  write it right"
    assert str(Problem("it is wrong", file="a.py")) == "a.py: it is wrong"
    assert str(CodegenError([problem, Problem("more")])).endswith("write it right\nmore")
