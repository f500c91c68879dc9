"""A rank that fails in the middle of a step: what is said, once, and by whom; through the real launcher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import run_script

from forgather_dsl import Trainer
from forgather_dsl.errors import UserError
from forgather_dsl.parallel import failures
from forgather_dsl.parallel.launch import OVER, STORE

PARTS = """
import os, signal, torch
from forgather_dsl import Norm

class Fails(torch.nn.Module):
    def __init__(self, dim, eps, how, on):
        super().__init__()
        self.weight, self.how, self.here, self.calls = torch.nn.Parameter(torch.ones(dim)), how, on == os.environ.get("RANK"), 0

    def reset_parameters(self):
        torch.nn.init.ones_(self.weight)

    def forward(self, x):
        self.calls += torch.is_grad_enabled() and self.here
        if self.calls == 3:  # microbatch 2
            if self.how == "backward":
                (x := x * 1).register_hook(self.refuse)
            elif self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                x = x @ torch.ones(3, 3)
        return x * self.weight

    def refuse(self, gradient):
        raise ValueError("a gradient nobody wants")

class Failing(Norm[Fails]):
    how: str = "forward"
    on: str = "1"
"""
SCRIPT = """
from forgather_dsl import *
from parts import Failing

class Mine(Experiment):
    seq_len, batch_size, microbatch_size, log_every, sampling, steps = 32, 16, 2, 1, None, 20
    data = TextFiles(paths="{corpus}", held_out=0.2)
    tokenizer = Bytes()
    model = patch(Llama, dim=32, num_layers=3, num_heads=2, norm=Failing(how="{how}"))
    parallel = Pipeline(stages=3, cuts=(1, 1, 1), schedule=ZeroBubbleH1())

if __name__ == "__main__":
    Trainer(Mine(), out="run").fit()
"""


def run(corpus: Path, folder: Path, how: str) -> tuple[int, list[str]]:
    """Exit code, and what the ranks said: the lines before the launching process raises."""
    (folder / "parts.py").write_text(PARTS)
    done = run_script(SCRIPT.format(corpus=corpus, how=how), folder)
    said, _, raised = done.stderr.partition("Traceback (most recent call last):")
    assert "UserError: the ranks ended with exit code 4" in raised
    return done.returncode, said.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "action", "error", "source"),
    [
        ("forward", "1F2", "RuntimeError", "x = x @ torch.ones(3, 3)"),
        ("backward", "1I2", "ValueError", "a gradient nobody wants"),
    ],
)
def test_the_rank_that_fails_says_where_and_the_others_are_quiet(
    corpus: Path, tmp_path: Path, how: str, action: str, error: str, source: str
) -> None:
    _, said = run(corpus, tmp_path, how)
    line = next(number for number, text in enumerate(PARTS.splitlines(), 1) if source in text)
    assert len(said) == 1, said
    assert said[0].startswith(f"error: rank 1, stage 1 of 3 (layer 1), microbatch 2, action {action}: {error} at ")
    assert f"{tmp_path / 'parts.py'}:{line}: " in said[0]


@pytest.mark.slow
def test_when_a_rank_dies_one_survivor_says_whom_it_waited_for_and_the_launcher_who_died(
    corpus: Path, tmp_path: Path
) -> None:
    _, said = run(corpus, tmp_path, "kill")
    waited, died = sorted(said, key=lambda line: "killed" in line)
    assert died == "error: rank 1 was killed by SIGKILL (often by the system, when the host's memory is full)"
    assert waited.startswith(("error: rank 0 lost rank 1 while ", "error: rank 2 lost rank 1 while "))
    assert "of microbatch" in waited
    assert "in action" in waited


def test_one_process_says_the_same(small: Any, tmp_path: Path) -> None:
    class Sums(torch.nn.Module):
        def forward(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    experiment = small.Small()
    trainer = Trainer(experiment, out=str(tmp_path / "run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forgather_dsl.train.loss.CrossEntropy.__call__", Sums.forward)
        with pytest.raises(UserError) as caught:
            trainer.fit()
    assert caught.value.exit_code == 4
    assert str(caught.value).startswith(
        "out of memory in training step 1: rank 0, stage 0 of 1 (layers 0 to 3), microbatch 0, action 0F0: OutOfMemoryError"
    )
    assert f"{__file__}:" in str(caught.value)
    assert "recompute = FullRecompute()" in str(caught.value)


def test_of_ranks_that_fail_together_one_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STORE, raising=False)
    assert [failures.speaks_first(), failures.speaks_first(), failures.failed()] == [True, True, False]
    monkeypatch.setenv(STORE, str(tmp_path / "store"))
    assert not failures.failed()
    assert [failures.speaks_first(), failures.speaks_first(), failures.failed()] == [True, False, True]
    monkeypatch.setenv(STORE, str(tmp_path / "other"))
    (tmp_path / f"other{OVER}").touch()  # the launcher has seen a rank end that could say nothing: a survivor speaks
    assert [failures.failed(), failures.speaks_first()] == [True, True]
