"""`codegen`: what it writes, shows and refuses."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TINY = f"{ROOT}/experiments/tiny_llama.py"

BROKEN = """
from forgather_dsl import *
from forgather_dsl.specs.model import Norm
import torch.nn as nn

def outer():
    class Inside(nn.Module):
        def __init__(self, dim, eps):
            super().__init__()
        def forward(self, x):
            return x
    return Inside

Inside = outer()

class Hidden(Norm["Inside"]):
    pass

class Local(Experiment):
    steps = 1
    model = patch(Llama, dim=24, num_layers=1, num_heads=2, norm=Hidden())
"""


def test_a_target_is_written_as_a_file_that_was_tried(cli: Callable[..., Any], project: Path) -> None:
    answer = cli("codegen", f"{TINY}:Baseline", "--out", "out", "--set", "model.num_layers=1")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("proven: ")
    assert "the same bit for bit" in answer.out
    assert "next: cd out && python -i -c 'import model; m = model.build_model()'" in answer.out
    assert os.listdir("out") == ["model.py"]
    text = Path("out/model.py").read_text()
    assert "num_layers=1," in text
    assert "Digest of the code below: " in text
    again = cli("codegen", f"{TINY}:Baseline", "--out", "out")
    assert again.code == 2
    assert "out exists already; choose another folder" in again.err


def test_a_choice_is_one_hunk_of_the_difference(cli: Callable[..., Any]) -> None:
    answer = cli("codegen", f"{TINY}:Baseline", "--diff", f"{TINY}:GELU", "--json")
    lines = answer.json["diff"].split("\n")
    changed = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    code = [line for line in changed if "sources " not in line]
    assert "+class GELUMLP(nn.Module):" in code
    assert "-class SwiGLU(nn.Module):" in code
    assert "+        ffn_dim=768," in code
    touched = ("GELU", "SwiGLU", "mlp", "gate_proj", "ffn_dim", "up_proj", "F.", "down", "->")
    assert [line for line in code if line[1:].strip() and not any(word in line for word in touched)] == []

    same = cli("codegen", f"{TINY}:Baseline", "--diff", f"{TINY}:WithMuon")
    assert (same.code, same.out) == (0, "no difference\n")


def test_the_text_alone(cli: Callable[..., Any]) -> None:
    answer = cli("codegen", f"{TINY}:QKNorm", "--print")
    assert answer.code == 0
    assert answer.out.startswith('"""Llama, from forgather_dsl.models.llama (sources ')
    assert "self.q_norm = RMSNorm(dim=head_dim, eps=1e-05)" in answer.out
    compile(answer.out, "model.py", "exec")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "write one of --out DIR, --diff OTHER and --print"),
        (["--print", "--out", "x"], "write one of --out DIR, --diff OTHER and --print"),
        (["--print", "--set", "model.num_layers=0"], "model.num_layers"),
        (["--diff", "nowhere.py:X"], "no file nowhere.py"),
        (["--out", "/proc/x"], "cannot be written"),
    ],
)
def test_a_command_line_that_cannot_be_is_refused(words: list[str], said: str, cli: Callable[..., Any]) -> None:
    answer = cli("codegen", f"{TINY}:Baseline", *words)
    assert answer.code in (2, 4), answer
    assert said in answer.err
    assert "Traceback" not in answer.err


def test_what_cannot_be_written_is_told_with_its_place(cli: Callable[..., Any], project: Path) -> None:
    (project / "broken.py").write_text(BROKEN)
    answer = cli("codegen", "broken.py:Local", "--out", "out")
    assert answer.code == 2
    assert "norm: outer.<locals>.Inside is defined inside a function" in answer.err
    assert "broken.py:" in answer.err
    assert not os.path.exists("out")


def test_a_run_without_a_checkpoint_says_so(cli: Callable[..., Any], project: Path) -> None:
    from forgather_dsl.dsl import load
    from forgather_dsl.train.directory import write

    write(load(f"{TINY}:Baseline")(), "run", None, None)
    answer = cli("codegen", "run", "--out", "out")
    assert answer.code == 2
    assert "run has no checkpoint" in answer.err
    assert not os.path.exists("out")
    assert cli("codegen", "run", "--print").code == 0
