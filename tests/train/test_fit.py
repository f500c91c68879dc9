"""Training from an experiment to a run directory, on one process."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import losses, records, run_script, weights

from forgather_dsl import Run, Trainer, UserError, replace
from forgather_dsl.dsl import ConfigError, snapshot
from forgather_dsl.train import checkpoint, loop
from forgather_dsl.train.checkpoint import manifest


def test_a_run_directory_holds_everything_a_report_needs(small: Any, tmp_path: Path) -> None:
    run = Trainer(small.Small(), out=str(tmp_path / "run")).fit()
    assert isinstance(run, Run)
    for name in ("config.json", "snapshot.txt", "environment.json", "metrics.jsonl", "plan.json", "source/small.py"):
        assert (tmp_path / "run" / name).is_file(), name
    assert (tmp_path / "run" / "snapshot.txt").read_text() == snapshot(run.experiment)
    first, *rest = run.metrics
    assert len(first["data_fingerprint"]) == 64
    assert first["gzip_bits_per_byte"] > 0
    train = [r for r in rest if "loss" in r]
    assert [r["step"] for r in train] == [1, 2, 3, 4, 5, 6]
    keys = {
        "step",
        "loss",
        "lr",
        "grad_norm",
        "tokens",
        "tokens_per_second",
        "step_seconds",
        "mfu",
        "peak_memory_bytes",
    }
    assert all(keys <= set(r) for r in train)
    assert train[-1]["tokens"] == 6 * 8 * 32
    assert train[-1]["mfu"] is None  # of a CPU nobody knows the peak
    assert train[-1]["loss"] < train[0]["loss"]
    evaluation = records(run.path, "eval_loss")[-1]
    held_out_bits = evaluation["eval_bits_per_byte"]
    assert 0 < held_out_bits < 8
    assert held_out_bits == pytest.approx(evaluation["eval_loss"] / math.log(2), rel=0.02)  # bytes are tokens here


def test_first_loss_is_that_of_a_uniform_guess(small: Any, tmp_path: Path) -> None:
    run = Trainer(replace(small.Small(), steps=1), out=str(tmp_path / "run")).fit()
    assert run.series("loss")[0][1] == pytest.approx(math.log(257), rel=0.02)


def test_microbatches_do_not_change_what_is_learned(small: Any, tmp_path: Path) -> None:
    base = small.Small(data=replace(small.Small().data), optimizer=small.AdamW(lr=1e-3))
    one = Trainer(replace(base, microbatch_size=8), out=str(tmp_path / "one")).fit()
    many = Trainer(replace(base, microbatch_size=2), out=str(tmp_path / "many")).fit()
    for (_, a), (_, b) in zip(one.series("loss"), many.series("loss"), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


def test_resumed_equals_uninterrupted_bit_for_bit(small: Any, tmp_path: Path) -> None:
    whole = Trainer(small.Hard(), out=str(tmp_path / "whole")).fit()
    out = str(tmp_path / "parts")
    # The same horizon for the learning rate: the first part is a run of six steps that dies after its third.
    with pytest.raises(RuntimeError, match="the power went out"):
        Trainer(replace(small.Hard(), loggers=(small.call("small_runs:PowerCut", at=4),)), out=out).fit()
    assert (tmp_path / "parts" / "checkpoints" / "step-00000003").is_dir()
    resumed = Trainer(small.Hard(), out=out).fit()
    assert losses(resumed.path) == losses(whole.path)
    a, b = weights(whole.path), weights(resumed.path)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_seed_decides_everything(small: Any, tmp_path: Path) -> None:
    def final(name: str, **changes: Any) -> list[tuple[int, str]]:
        return losses(Trainer(replace(small.Small(), steps=2, **changes), out=str(tmp_path / name)).fit().path)

    assert final("a") == final("b")
    assert final("a2", seed=1) != final("b2", seed=2)


def test_stops_at_tokens_and_at_seconds(small: Any, tmp_path: Path) -> None:
    by_tokens = Trainer(replace(small.Small(), steps=None, tokens=3 * 8 * 32), out=str(tmp_path / "tokens")).fit()
    assert by_tokens.series("loss")[-1][0] == 3
    by_time = Trainer(replace(small.Small(), steps=10_000, seconds=3.0), out=str(tmp_path / "seconds")).fit()
    last = [r for r in by_time.metrics if "loss" in r][-1]
    assert last["progress"] == 1
    assert 1 < last["step"] < 10_000


def test_another_configuration_in_the_same_directory_is_refused_with_the_difference(small: Any, tmp_path: Path) -> None:
    out = str(tmp_path / "run")
    Trainer(replace(small.Small(), steps=2), out=out).fit()
    with pytest.raises(UserError, match=r"seed: 0 -> 7") as caught:
        Trainer(replace(small.Small(), steps=2, seed=7), out=out).fit()
    assert caught.value.exit_code == 2
    assert "--allow-change" in str(caught.value)
    longer = Trainer(replace(small.Small(), steps=4, log_every=2), out=out).fit()
    assert [step for step, _ in longer.series("loss")] == [1, 2, 4]


def test_an_allowed_change_of_the_data_starts_it_from_its_beginning(
    small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    Trainer(replace(small.Small(), steps=2), out=out).fit()
    run = Trainer(replace(small.Small(), steps=4, seq_len=16), out=out, allow_change=True).fit()
    told = capsys.readouterr()
    assert "change  seq_len: 32 -> 16" in told.out
    assert "the data changed" in told.err
    assert [step for step, _ in run.series("loss")] == [1, 2, 3, 4]


def test_an_allowed_change_of_the_optimizer_starts_its_state_anew(
    small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "run")
    first = Trainer(replace(small.Small(), steps=2), out=out).fit()
    run = Trainer(replace(small.Small(), steps=4, optimizer=small.AdamW()), out=out, allow_change=True).fit()
    assert "its state starts anew" in capsys.readouterr().err
    assert run.series("loss")[:2] == first.series("loss")[:2]
    assert [step for step, _ in run.series("loss")] == [1, 2, 3, 4]


def test_a_finished_run_is_not_trained_again(small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "run")
    before = losses(Trainer(replace(small.Small(), steps=2), out=out).fit().path)
    capsys.readouterr()
    assert losses(Trainer(replace(small.Small(), steps=2), out=out).fit().path) == before
    assert "finished already" in capsys.readouterr().out


def _flip(tensors: Path) -> None:
    damaged = bytearray(tensors.read_bytes())
    damaged[-5] ^= 1
    tensors.write_bytes(damaged)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (_flip, "does not match its hash"),
        pytest.param(
            lambda tensors: os.truncate(tensors, tensors.stat().st_size // 2),
            "rank-0.safetensors has ",
            marks=pytest.mark.slow,
        ),
        pytest.param(lambda tensors: tensors.unlink(), "No such file", marks=pytest.mark.slow),
        (lambda tensors: (tensors.parent / "manifest.json").unlink(), "No such file"),
    ],
    ids=["flipped", "truncated", "no tensors", "no manifest"],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Any, said: str
) -> None:
    out = tmp_path / "run"
    Trainer(small.Hard(), out=str(out)).fit()
    whole, expected = losses(str(out)), {name: tensor.clone() for name, tensor in weights(str(out)).items()}
    newest = out / "checkpoints" / "step-00000006"
    harm(newest / "rank-0.safetensors")
    assert said in str(checkpoint.problem(str(newest)))
    Trainer(small.Hard(), out=str(out)).fit()
    assert losses(str(out)) == whole
    found = weights(str(out))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert capsys.readouterr().err.count("step-00000006 is damaged") == 1
    assert (out / "checkpoints" / "step-00000006.bad").is_dir()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks /proc")
def test_what_was_restored_does_not_hang_on_the_file(
    small: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    Trainer(replace(small.Hard(), steps=3), out=str(out)).fit()
    step, mapped = loop.one_step, []

    def looking(*arguments: Any) -> Any:
        done = step(*arguments)
        mapped.extend(line for line in Path("/proc/self/maps").read_text().splitlines() if str(out) in line)
        return done

    monkeypatch.setattr(loop, "one_step", looking)
    Trainer(replace(small.Hard(), steps=5), out=str(out)).fit()
    assert [line for line in mapped if ".safetensors" in line] == []


def test_a_manifest_cannot_name_files_elsewhere(small: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    Trainer(replace(small.Small(), steps=1), out=str(out)).fit()
    file = out / "checkpoints" / "step-00000001" / "manifest.json"
    found = manifest.decode(file.read_bytes())
    found["files"]["../../config.json"] = {"size": 1, "sha256": "0" * 64}
    file.write_bytes(manifest.encode(found))
    assert "names a file" in str(checkpoint.problem(str(file.parent)))


def test_old_checkpoints_go(small: Any, tmp_path: Path) -> None:
    experiment = replace(small.Small(), save_every=1, checkpoints=small.Checkpoints(keep_last=3))
    Trainer(experiment, out=str(tmp_path / "run")).fit()
    kept = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000005", "step-00000006"]


def test_divergence_stops_with_advice(small: Any, tmp_path: Path) -> None:
    experiment = replace(small.Small(), steps=50, optimizer=small.AdamW(lr=1e30), clip_norm=None)
    with pytest.raises(UserError, match=r"diverged.*lower optimizer\.lr") as caught:
        Trainer(experiment, out=str(tmp_path / "run")).fit()
    assert caught.value.exit_code == 4


def test_evaluation_and_samples_come_at_their_intervals(small: Any, tmp_path: Path) -> None:
    experiment = replace(
        small.Small(), eval_every=2, sample_every=3, sampling=small.Sampling(prompt="def ", max_new_tokens=5)
    )
    run = Trainer(experiment, out=str(tmp_path / "run")).fit()
    assert [r["step"] for r in records(run.path, "eval_loss")] == [2, 4, 6]
    samples = records(run.path, "sample")
    assert [r["step"] for r in samples] == [0, 3, 6]
    assert all(r["sample"].startswith("def ") for r in samples)


def test_a_run_generates_text(small: Any, tmp_path: Path) -> None:
    run = Trainer(small.Hard(), out=str(tmp_path / "run")).fit()
    text = Run(run.path).generate("def ", max_new_tokens=8, seed=1)
    assert text.startswith("def ")
    assert text == Run(run.path).generate("def ", max_new_tokens=8, seed=1)


def test_missing_values_are_told_before_anything_happens(small: Any, tmp_path: Path) -> None:
    class Incomplete(small.Small):
        model = small.Llama(num_heads=2)

    with pytest.raises(ConfigError) as caught:
        Trainer(Incomplete(), out=str(tmp_path / "run")).fit()
    assert {"model.dim", "model.num_layers", "model.vocab_size"} <= {p.split(":")[0] for p in caught.value.problems}
    assert not (tmp_path / "run").exists()


def test_ctrl_c_saves_and_exits_with_130(experiments: Path, tmp_path: Path) -> None:
    script = f"""
        import sys
        from forgather_dsl import Trainer, load, replace
        from forgather_dsl.errors import UserError
        if __name__ == "__main__":
            small = load("{experiments}:Small")
            try:
                Trainer(replace(small(), steps=100_000, loggers=(load("forgather_dsl.specs:Console")(),)), out="run").fit()
            except UserError as error:
                print(error)
                sys.exit(error.exit_code)
    """
    (tmp_path / "script.py").write_text(textwrap.dedent(script))
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("step"):
            break
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read()
    assert process.wait(timeout=240) == 130
    assert "saved run/checkpoints/step-" in rest
    assert checkpoint.problem(str(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1])) is None


@pytest.mark.slow
def test_a_script_trains_its_own_class_on_one_and_on_two_stages(corpus: Path, tmp_path: Path) -> None:
    script = f"""
        from forgather_dsl import *
        from forgather_dsl import Trainer

        class Mine(Experiment):
            seq_len, batch_size, microbatch_size, log_every, sampling = 32, 4, 2, 1, None
            data = TextFiles(paths="{corpus}", held_out=0.2)
            tokenizer = Bytes()
            model = patch(Llama, dim=32, num_layers=2, num_heads=2)

        class MinePP2(Mine):
            parallel = Pipeline(stages=2)

        if __name__ == "__main__":
            print(Trainer(Mine(steps=20), out="one").fit())
            print(Trainer(MinePP2(steps=20), out="two").fit())
    """
    done = run_script(script, tmp_path)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "one") == losses(tmp_path / "two")
    assert len(losses(tmp_path / "two")) == 20


def test_the_plan_says_what_each_rank_was_to_hold_and_do(small: Any, tmp_path: Path) -> None:
    run = Trainer(replace(small.Small(), steps=1), out=str(tmp_path / "run")).fit()
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["parameters"] == run.metrics[0]["num_parameters"]
    assert [stage["layers"] for stage in plan["ranks"][0]["stages"]] == [4]
    assert plan["layout"]["layers"] == [[0, 4]]
    assert plan["layout"]["actions"][0].startswith("0F0,0B0,0F1,0B1")
    assert sum(plan["ranks"][0]["memory_gib"].values()) == pytest.approx(plan["ranks"][0]["peak_gib"])
