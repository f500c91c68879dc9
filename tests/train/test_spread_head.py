"""A head spread over the ranks, through the launcher: what one process learns, and checkpoints that move in and out of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from small_runs import records, weights

from forgather_dsl import Trainer
from forgather_dsl.dsl import ConfigError, check

BOUND = 1e-3  # relative: six steps of AdamW and Muon, each from the differences of the one before


@pytest.fixture(scope="module")
def vocab(small: Any) -> Any:
    """`Small` with the bytes' 257 rows of the head, which neither 2 nor 4 ranks share evenly, and saving at step 3."""
    return small.replace(small.Small(), save_every=3)


@pytest.fixture(scope="module")
def single(vocab: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    Trainer(vocab, out=str(out)).fit()
    return out


def spread(small: Any, vocab: Any, stages: int, **changes: Any) -> Any:
    return small.replace(vocab, parallel=small.Pipeline(stages=stages, spread_head=True, **changes))


def numbers(path: Path, key: str) -> list[float]:
    return [record[key] for record in records(path, key)]


def same(path: Path, single: Path) -> None:
    for key in ("loss", "grad_norm", "eval_loss"):
        assert numbers(path, key) == pytest.approx(numbers(single, key), rel=BOUND), key


@pytest.fixture(scope="module")
def cut_off(small: Any, vocab: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks, until the power goes out in step 4; the checkpoint is of step 3."""
    out = tmp_path_factory.mktemp("two") / "run"
    cut = small.replace(spread(small, vocab, 2), loggers=(small.call("small_runs:PowerCut", at=4),))
    with pytest.raises(small.UserError):
        Trainer(cut, out=str(out)).fit()
    return out


@pytest.mark.slow
def test_ranks_save_their_rows_of_weight_and_optimizer_state(cut_off: Path) -> None:
    shapes = []
    for rank in range(2):
        with safe_open(cut_off / "checkpoints" / "step-00000003" / f"rank-{rank}.safetensors", "pt") as file:
            shapes.append([file.get_slice(key).get_shape() for key in sorted(file.keys()) if "lm_head" in key])
    assert shapes == [[[129, 32], [129, 32], [], [129, 32]], [[128, 32], [128, 32], [], [128, 32]]]


@pytest.mark.slow
def test_two_ranks_go_on_as_one_process(vocab: Any, single: Path, cut_off: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(cut_off, out)
    Trainer(vocab, out=str(out)).fit()
    same(out, single)
    final = weights(out)
    assert final["weights/lm_head.weight"].shape == (257, 32)
    for name, expected in weights(single).items():
        assert float((final[name] - expected).abs().max()) <= BOUND * float(expected.abs().max()), name


@pytest.mark.exhaustive
def test_two_ranks_go_on_as_four(small: Any, vocab: Any, single: Path, cut_off: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(cut_off, out)
    Trainer(spread(small, vocab, 4, schedule=small.ZeroBubbleH1()), out=str(out)).fit()
    same(out, single)


@pytest.mark.slow
def test_a_checkpoint_of_one_process_goes_on_with_a_spread_head(
    small: Any, vocab: Any, single: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(single, out)
    shutil.rmtree(out / "checkpoints" / "step-00000006")
    Trainer(spread(small, vocab, 2), out=str(out)).fit()
    same(out, single)
    text = small.Run(str(out)).generate("def f", max_new_tokens=8, temperature=0.0)
    assert text.startswith("def f")


def test_what_cannot_be_exact_is_refused_before_launch(small: Any, vocab: Any) -> None:
    class Mine(small.Loss["forgather_dsl.train.precision.FP32"]):
        pass

    class Blocks(small.Optimizer["forgather_dsl.train.precision.FP32"]):
        pass

    model = small.patch(small.Llama, tie_embeddings=True)
    wrong = small.replace(spread(small, vocab, 1), model=model, loss=Mine(), optimizer=Blocks())
    with pytest.raises(ConfigError) as caught:
        check(wrong)
    for said in (
        "there is one rank, so nothing to spread the head over",
        "write tie_embeddings=False",
        "the shards compute cross entropy themselves, not Mine; leave it out, or write loss=CrossEntropy()",
        "Blocks is not known to treat every number of the head by itself",
    ):
        assert said in str(caught.value)
    check(spread(small, vocab, 2))
