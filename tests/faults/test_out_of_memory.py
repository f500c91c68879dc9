"""Running out of memory: what failed and what was being done, the plan against what was there, and edits that would help."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from forgather_dsl import (
    BF16,
    Adafactor,
    AdamW,
    Bytes,
    Experiment,
    FullRecompute,
    GPipe,
    Llama,
    NoRecompute,
    OneFOneB,
    Pipeline,
    Sampling,
    TextFiles,
    Trainer,
    UserError,
    patch,
    replace,
)
from forgather_dsl.parallel.failures import out_of_memory
from forgather_dsl.parallel.group import World
from forgather_dsl.plan.estimate import Site, estimate
from forgather_dsl.plan.hardware import GIB, Device
from forgather_dsl.plan.savings import savings
from forgather_dsl.train import directory
from forgather_dsl.train.memory_report import MemoryReport, doing
from forgather_dsl.train.optim.engine import Engine

HUGE = 1 << 60  # numbers: no machine has them, so the allocator itself refuses


class Small(Experiment):
    seq_len, batch_size, microbatch_size, steps, eval_every, loggers = 32, 8, 4, 2, 1, ()
    tokenizer, optimizer, sampling = Bytes(), AdamW(), Sampling(max_new_tokens=2)
    model = patch(Llama, dim=32, num_layers=2, num_heads=2)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(20):
        (folder / f"{number}.txt").write_text("\n".join(f"line {i} of file {number}" for i in range(30)))
    return str(folder)


def refuse(*_: Any, **__: Any) -> Any:
    return torch.empty(HUGE)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("forgather_dsl.train.strategy.make_stage", "building its part of the model: rank 0: RuntimeError at "),
        ("forgather_dsl.train.optim.engine.Engine.step", "updating the weights in step 1: rank 0, stage 0 of 1 (layers 0 to 1): RuntimeError at "),
        ("forgather_dsl.train.loop.evaluate", "evaluating on the held-out text: rank 0, stage 0 of 1"),
        ("forgather_dsl.train.loop.write_sample", "writing a sample: rank 0, stage 0 of 1"),
        ("forgather_dsl.train.saving.contents", "saving a checkpoint: rank 0, stage 0 of 1"),
        (
            "forgather_dsl.train.loss.CrossEntropy.__call__",
            "in training step 1: rank 0, stage 0 of 1 (layers 0 to 1), microbatch 0, action 0F0: RuntimeError at ",
        ),
    ],
)  # fmt: skip
def test_it_says_what_was_being_done_and_three_edits(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, said: str
) -> None:
    monkeypatch.setattr(where, refuse)
    with pytest.raises(UserError) as caught:
        Trainer(Small(data=TextFiles(paths=corpus, held_out=0.2)), out=str(tmp_path / "run")).fit()
    assert caught.value.exit_code == 4
    first, *rest = str(caught.value).splitlines()
    assert first.startswith(f"out of memory {said}"), first
    assert f"{__file__}:" in first  # the line that asked for it
    assert "can't allocate memory: you tried to allocate 4611686018427387904 bytes" in str(caught.value)
    text = "\n".join(rest)
    assert "cannot be told" not in text
    for kind in ("weights", "gradients", "optimizer", "activations, buffers, loss, overhead", "in all at the peak"):
        assert re.search(rf"^  {kind} +[\d.]+ [MG]iB +[\d.]+ [MG]iB$", text, re.MULTILINE), text
    assert "to need less, in the class body (by the plan's estimate, for this host):" in rest
    edits = rest[rest.index("to need less, in the class body (by the plan's estimate, for this host):") + 1 : -1]
    assert rest[-1] == "with: from forgather_dsl import Adafactor, FullRecompute"
    assert sorted(line.split("  #")[0].strip() for line in edits) == [
        "microbatch_size = 2",
        "optimizer = Adafactor(lr=0.0003)",
        "recompute = FullRecompute()",
    ]
    saved = [float(re.search(r"saves ([\d.]+) MiB", line)[1]) for line in edits]  # type: ignore[index]
    assert saved == sorted(saved, reverse=True)


def test_weights_gradients_and_state_are_counted_as_they_are(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second update there are gradients, and two fp32 numbers of state for every weight."""
    step, calls = Engine.step, []

    def second_fails(optimizer: Any, *rest: Any) -> Any:
        calls.append(1)
        return step(optimizer, *rest) if len(calls) == 1 else refuse()

    monkeypatch.setattr("forgather_dsl.train.optim.engine.Engine.step", second_fails)
    experiment = Small(data=TextFiles(paths=corpus, held_out=0.2))
    with pytest.raises(UserError, match="updating the weights in step 2") as caught:
        Trainer(experiment, out=str(tmp_path / "run")).fit()
    parameters = 2 * 257 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * experiment.model.ffn_dim + 2 * 32) + 32  # type: ignore[attr-defined]
    for kind, copies in (("weights", 1), ("gradients", 1), ("optimizer", 2)):
        planned, here = re.search(rf"  {kind} +([\d.]+) MiB +([\d.]+) MiB", str(caught.value)).groups()  # type: ignore[union-attr]
        assert float(here) == pytest.approx(4 * copies * parameters / 2**20, abs=0.06), kind
        assert float(planned) == pytest.approx(4 * copies * parameters / 2**20, abs=0.06), kind


@pytest.mark.slow
def test_an_allocation_that_the_system_refuses_is_explained(corpus: str, tmp_path: Path) -> None:
    """A process with a limit on its addresses, a batch that goes beyond it: nothing is pretended."""
    script = f"""
        import resource, sys
        import torch, torch._dynamo
        from forgather_dsl import *
        from forgather_dsl.__main__ import main

        class Large(Experiment):
            seq_len, batch_size, microbatch_size, steps, sampling, loggers = 1024, 64, 64, 2, None, ()
            tokenizer, data = Bytes(), TextFiles(paths={corpus!r}, held_out=0.2)
            model = patch(Llama, dim=256, num_layers=4, num_heads=4)

        if __name__ == "__main__":
            from forgather_dsl.train import session  # what training imports, before the limit
            torch.set_num_threads(1)
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (700 << 20), resource.RLIM_INFINITY))
            try:
                Trainer(Large(), out="run").fit()
            except UserError as error:
                print(error)
                sys.exit(error.exit_code)
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 4, done.stderr
    assert (
        "out of memory in training step 1: rank 0, stage 0 of 1 (layers 0 to 3), microbatch 0, action 0F0"
        in done.stdout
    )
    assert "DefaultCPUAllocator: can't allocate memory" in done.stdout
    assert "this process may have addresses for" in done.stdout
    assert "  microbatch_size = 32 " in done.stdout
    assert "Traceback" not in done.stderr


def test_what_is_out_of_memory_and_what_is_not() -> None:
    for error in (torch.OutOfMemoryError("x"), MemoryError(), RuntimeError("CUDA error: out of memory")):
        assert out_of_memory(error)
    assert out_of_memory(RuntimeError("cuBLAS: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    for error in (RuntimeError("shapes do not match"), ValueError("out of memory"), OSError("can't allocate memory")):
        assert not out_of_memory(error)


LARGE = Small(
    data=TextFiles(paths="x"),
    seq_len=1024,
    batch_size=16,
    microbatch_size=2,
    model=Llama(vocab_size=32000, dim=1024, num_layers=8, num_heads=8),
    parallel=Pipeline(stages=2, schedule=GPipe()),
)
CARDS = Site((Device("8GB card", 8 * GIB, "gpu"),) * 2, 64 * GIB)


def test_edits_are_ranked_by_what_they_save_on_the_rank_that_failed() -> None:
    found = savings(LARGE, CARDS, 0)
    assert [s.saved for s in found] == sorted((s.saved for s in found), reverse=True)
    lines = [s.line for s in found]
    assert len(lines) == len(set(lines)) >= 4
    now = estimate(LARGE, on_gpu=True).ranks[0]
    one = next(s for s in found if s.line == "recompute = NoRecompute(offload=True)")
    then = estimate(replace(LARGE, recompute=NoRecompute(offload=True)), on_gpu=True).ranks[0]
    assert one.saved == (now.total - now.overhead) - (then.total - then.overhead) > 0
    assert one.left == then.total - then.overhead


def test_nothing_is_suggested_that_is_set_already() -> None:
    parallel = Pipeline(stages=2, schedule=OneFOneB())
    small = replace(
        LARGE,
        recompute=FullRecompute(offload=True, mlp_tiles=8),
        optimizer=Adafactor(),
        precision=BF16(rounding="stochastic"),
        microbatch_size=1,
    )
    found = savings(replace(small, parallel=parallel, seq_len=127), CARDS, 0)
    assert not [
        s.line for s in found if s.line.startswith(("recompute", "optimizer", "precision", "microbatch", "seq"))
    ]


def test_on_a_card_the_allocator_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the allocator: rank 1 of two, before there is a session."""
    stats = {
        "allocated_bytes.all.peak": 7 * GIB,
        "reserved_bytes.all.current": 7 * GIB,
        "reserved_bytes.all.peak": 7 * GIB,
    }
    monkeypatch.setattr("torch.cuda.memory_stats", lambda device: stats)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda device: (GIB // 2, 8 * GIB))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "a card")
    monkeypatch.setattr("forgather_dsl.plan.hardware.gpus", lambda: CARDS.cards)
    monkeypatch.setattr("forgather_dsl.train.directory.gpus", lambda: CARDS.cards)
    directory.write(LARGE, str(tmp_path), None, None)
    with (
        pytest.raises(UserError) as caught,
        MemoryReport(LARGE, str(tmp_path), World(1, 2, torch.device("cuda", 1), "nccl")),
        doing("adding up"),
        doing("innermost"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    text = str(caught.value)
    assert text.startswith("out of memory innermost: rank 1: OutOfMemoryError at ")
    planned = estimate(LARGE, on_gpu=True).ranks[1]
    assert re.search(rf"weights +{planned.weights / GIB:.2f} GiB +0.0 MiB", text)
    rest = (planned.activations + planned.buffers + planned.loss) / GIB
    assert re.search(rf"activations, buffers, loss +{rest:.2f} GiB +7.00 GiB", text)
    assert re.search(rf"in all at the peak +{(planned.total - planned.overhead) / GIB:.2f} GiB +7.00 GiB", text)
    assert (
        "a card: 8.00 GiB, of which this process has reserved 7.00 GiB (at most 7.00 GiB), its context and other"
        in text
    )
    assert "other processes 0.50 GiB" in text
    assert "to need less, in the class body (by the plan's estimate, for rank 1):" in text
    assert text.count("  # saves ") == 3


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(KeyError), MemoryReport(LARGE, str(tmp_path), World(0, 1, torch.device("cpu"), None)):
        raise KeyError("x")


PARTS = """
import os
import torch
from forgather_dsl import Norm

class Grows(torch.nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.calls = torch.nn.Parameter(torch.ones(dim)), 0

    def reset_parameters(self):
        torch.nn.init.ones_(self.weight)

    def forward(self, x):
        self.calls += torch.is_grad_enabled() and os.environ["RANK"] == "1"
        if self.calls == 8:  # in step 2, microbatch 3
            torch.empty(1 << 60)
        return x * self.weight

class Growing(Norm[Grows]):
    pass
"""
LAUNCHED = """
from forgather_dsl import *
from parts import Growing

class Mine(Experiment):
    seq_len, batch_size, microbatch_size, sampling, steps, loggers = 32, 8, 2, None, 3, ()
    data = TextFiles(paths={corpus!r}, held_out=0.2)
    tokenizer = Bytes()
    model = patch(Llama, dim=32, num_layers=2, num_heads=2, norm=Growing())
    parallel = Pipeline(stages=2)

if __name__ == "__main__":
    Trainer(Mine(), out="run").fit()
"""


@pytest.mark.slow
def test_of_launched_ranks_the_one_without_memory_says_it_all_and_what_every_rank_had_taken(
    corpus: str, tmp_path: Path
) -> None:
    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "script.py").write_text(LAUNCHED.format(corpus=corpus))
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode != 0
    said = done.stderr.partition("Traceback")[0].strip()
    where = "rank 1, stage 1 of 2 (layer 1), microbatch 3, action 1F3: RuntimeError at "
    assert said.startswith(f"error: out of memory in training step 2: {where}{tmp_path / 'parts.py'}:17: "), said
    assert said.count("error:") == 1
    assert "  peaks up to step 1:" in said
    for rank in (0, 1):
        assert re.search(
            rf"^    rank {rank} \(stage {rank}\): planned [\d.]+ [GM]iB, there [\d.]+ [GM]iB$", said, re.MULTILINE
        )
    assert "to need less, in the class body" in said
