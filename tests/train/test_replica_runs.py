"""Two replicas of two stages on four launched ranks: what one process learns, and checkpoints that move between both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import losses, records

from forgather_dsl import Trainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def single(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`Hard` on one process."""
    out = tmp_path_factory.mktemp("single") / "run"
    Trainer(small.Hard(), out=str(out)).fit()
    return out


@pytest.fixture(scope="module")
def moved(small: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Steps 1 and 2 on two replicas of two stages, 3 and 4 on one process, 5 and 6 on four ranks again."""
    out = tmp_path_factory.mktemp("moved") / "run"
    for experiment, cut in ((small.HardReplicas(), 3), (small.Hard(), 5), (small.HardReplicas(), None)):
        loggers = (small.call("small_runs:PowerCut", at=cut),) if cut else ()
        trainer = Trainer(small.replace(experiment, save_every=2, loggers=loggers), out=str(out))
        if cut is None:
            trainer.fit()
            continue
        with pytest.raises((small.UserError, RuntimeError)):
            trainer.fit()
    return out


def test_replicas_and_one_process_go_on_with_each_others_checkpoints(single: Path, moved: Path) -> None:
    assert [step for step, _ in losses(moved)] == [1, 2, 3, 4, 5, 6]
    assert losses(moved)[0] == losses(single)[0]  # the same weights, and a sum that double precision holds exactly
    for key in ("loss", "grad_norm", "tokens"):
        found, expected = ([record[key] for record in records(path, "loss")] for path in (moved, single))
        assert found == pytest.approx(expected, rel=1e-5)
    for key in ("eval_loss", "eval_bits_per_byte"):
        assert records(moved, key)[-1][key] == pytest.approx(records(single, key)[-1][key], rel=1e-5)


def test_a_parameter_is_counted_and_written_once(single: Path, moved: Path) -> None:
    (of_one,), (*_, of_four) = (records(path, "num_parameters") for path in (single, moved))
    assert of_four["num_parameters"] == of_one["num_parameters"]
    written = {
        folder.name[-1]: {f.name for f in folder.glob("*.safetensors")} for folder in (moved / "checkpoints").iterdir()
    }
    assert written["6"] == {"rank-0.safetensors", "rank-1.safetensors"}


def test_every_rank_reports_its_memory(moved: Path) -> None:
    ranks = [len(record["peak_memory_bytes"]) for record in records(moved, "loss")]
    assert ranks == [4, 4, 1, 1, 4, 4]
