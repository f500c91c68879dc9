"""Named held-out sets: evaluated beside `eval_data`, told everywhere, refused where they would be no evidence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from small_runs import records

from forgather_dsl import ConfigError, TextFiles, Trainer, check, digest, override, replace
from forgather_dsl.dsl import from_dict, to_dict


@pytest.fixture(scope="session")
def prose(tmp_path_factory: pytest.TempPathFactory) -> TextFiles:
    """A text that is not the corpus."""
    file = tmp_path_factory.mktemp("prose") / "prose.txt"
    file.write_text("All happy families are alike; each unhappy family is unhappy in its own way.\n" * 20)
    return TextFiles(paths=str(file), split="all")


def test_every_set_is_evaluated_in_one_record(
    small: Any, prose: TextFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = replace(small.Small().data, split="held_out")
    console = small.Console
    experiment = small.Small(eval_sets={"prose": prose, "same": held_out}, eval_every=3, loggers=(console(),))
    run = Trainer(experiment, out=str(tmp_path / "run")).fit()
    found = records(run.path, "eval_loss/prose")
    assert [record["step"] for record in found] == [3, 6]
    for record in found:
        assert record["eval_loss/same"] == record["eval_loss"]  # the same text under a name
        assert record["eval_bits_per_byte/same"] == record["eval_bits_per_byte"]
        assert record["eval_perplexity"] == math.exp(record["eval_loss"])
        assert record["eval_loss/prose"] != record["eval_loss"]
    told = run.metrics[0]["eval_sets"]
    assert told["prose"]["bytes"] == 20 * 77
    assert told["same"]["fingerprint"] == run.metrics[0]["eval_fingerprint"]
    shown = capsys.readouterr().out
    assert f"eval    step 6  prose  loss {found[-1]['eval_loss/prose']:.4f}  perplexity " in shown
    assert ", prose 1.54 kB" in shown


def test_sets_alone_without_eval_data(small: Any, prose: TextFiles, tmp_path: Path) -> None:
    run = Trainer(small.Small(eval_data=None, eval_sets={"prose": prose}), out=str(tmp_path / "run")).fit()
    (record,) = records(run.path, "eval_loss/prose")
    assert not {"eval_loss", "eval_perplexity"} & set(record)


def test_a_class_body_may_write_a_dict(small: Any, prose: TextFiles) -> None:
    class Named(small.Small):
        eval_sets = {"prose": prose}  # noqa: RUF012 the language makes it read-only

    found = override(Named(), {"eval_sets.prose.separator": "\n"})
    assert found.eval_sets["prose"].separator == "\n"
    assert Named().eval_sets["prose"].separator is None
    again = from_dict(to_dict(found))
    assert digest(again) == digest(found)
    with pytest.raises(TypeError):
        Named().eval_sets["more"] = prose  # type: ignore[index]


def test_what_is_not_held_out_is_refused_all_at_once(small: Any, prose: TextFiles) -> None:
    data = small.Small().data
    sets = {
        "train": replace(prose, split="train"),
        "all": replace(data, split="all"),
        "a/b": prose,
        "fine": replace(data, split="held_out"),
    }
    with pytest.raises(ConfigError) as refused:
        check(small.Small(eval_sets=sets))
    first, second, third = refused.value.problems
    assert first.startswith("eval_sets.train: split='train' is the part for training; write split='all'")
    assert second.startswith("eval_sets.all: this is the text that data trains on; write split='held_out'")
    assert third.startswith("eval_sets: 'a/b' is no name of a set")
