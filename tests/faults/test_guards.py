"""Steps that are not finite change nothing on any rank; a loss that jumps is said, or gone back from (see guard_ranks.py)."""

from __future__ import annotations

import json
import math
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from forgather_dsl import (
    Bytes,
    ConfigError,
    Experiment,
    Guard,
    Llama,
    Spike,
    TextFiles,
    Trainer,
    UserError,
    load,
    patch,
)
from forgather_dsl.cli.app import run_command
from forgather_dsl.dsl import check
from forgather_dsl.train.metrics import MetricsFile, read
from forgather_dsl.train.spikes import Losses

HERE = Path(__file__).parent
NORM, LAYER, EMBEDDING = (f"model.{n}.weight" for n in ("norm", "layers.1.input_layernorm", "embed_tokens"))
FIRST = {  # what a skipped step says, by case
    "gradient": f"not finite first: the gradient of {NORM} (rank 1, stage 1 of 2 (layer 3))",
    "gradient, bf16": f"not finite first: the gradient of {NORM} (rank 1, stage 1 of 2 (layer 3))",
    "stage 0": f"not finite first: the gradient of {LAYER} (rank 0, stage 0 of 2 (layers 0 to 2))",
    "embedding": f"not finite first: the gradient of {EMBEDDING} (rank 0, stage 0 of 2 (layers 0 to 2))",
    "loss": "not finite first: the loss, on rank 1",
    "activation": "not finite first: the loss, on rank 1; then 39 gradients",
    "one process": f"not finite first: the gradient of {NORM} (rank 0, stage 0 of 1 (layers 0 to 3))",
}


def run(folder: Path, *options: str, seconds: int = 900) -> dict[str, Any]:
    """What every rank of every case did, from one run of the script."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(HERE / "guard_ranks.py"), str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["codes"]) == {0}, done.stderr
    return result


def metrics(path: Path) -> list[dict[str, Any]]:
    return list(read(str(path / "metrics.jsonl")))


def steps(path: Path) -> list[int]:
    """Of the checkpoints that a resume would look at."""
    return sorted(int(p.name[5:]) for p in (path / "checkpoints").glob("step-????????"))


def skipped_steps_change_nothing(folder: Path, name: str, ranks: list[dict[str, Any]]) -> None:
    path = folder / name.replace(" ", "-")
    for rank in ranks:
        assert rank["ended"] == ""
        one, two, three, four, five, six = rank["digests"]
        assert two == three == four, name  # after the steps 3 and 4, all is as after 2
        assert len({one, two, five, six}) == 4, name
    records = [r for r in metrics(path) if "loss" in r]
    assert [r["step"] for r in records if r.get("skipped")] == [3, 4]
    assert {r["why"] for r in records if r.get("skipped")} == {FIRST[name]}
    assert steps(path) == [5, 6]  # the one that was due at 4 waited for a finite step; two are kept


def stops_after_three(folder: Path, name: str, ranks: list[dict[str, Any]]) -> None:
    path = folder / name.replace(" ", "-")
    for rank in ranks:
        assert len(set(rank["digests"][2:])) == 1  # after step 3, nothing
        said = rank["ended"]
        assert said.startswith("diverged: step 6 had loss 5.5")
        assert f"grad norm nan; {FIRST['stage 0']}; 3 steps in a row were skipped (guard.max_skipped = 3)" in said
        assert f"the last checkpoint is {path}/checkpoints/step-00000002 (step 2)" in said
        assert said.endswith(
            f"python -m forgather_dsl run {path} --resume {path}/checkpoints/step-00000002 --allow-change "
            "--set optimizer.lr=0.00015"
        )
    assert steps(path) == [2]
    assert [r["step"] for r in metrics(path) if r.get("skipped")] == [4, 5, 6]


def learned(path: Path) -> dict[str, Any]:
    """Losses in hex, rollbacks, and the bytes of every tensor of the last checkpoint."""
    records = metrics(path)
    out: dict[str, Any] = {"losses": [(r["step"], float(r["loss"]).hex()) for r in records if "loss" in r]}
    out["rollbacks"] = [r["rollback"] for r in records if "rollback" in r]
    for file in (path / "checkpoints" / f"step-{steps(path)[-1]:08d}").glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            out |= {key: opened.get_tensor(key).numpy().tobytes() for key in opened.keys()}  # noqa: SIM118 not a dict
    return out


def goes_back_twice(path: Path) -> dict[str, Any]:
    found = learned(path)
    assert [step for step, _ in found["losses"]] == list(range(1, 25))
    assert [(r["number"], r["since"], r["at"]) for r in found["rollbacks"]] == [(1, 13, 14), (2, 11, 12)]
    gap = {"from": {"epoch": 0, "position": 80}, "to": {"epoch": 0, "position": 128}}
    assert found["rollbacks"][1]["data"] == gap  # the batches of the first ten steps are the first 80 sequences
    manifest = json.loads((path / "checkpoints" / "step-00000024" / "manifest.json").read_text())
    assert manifest["state"]["data"]["position"] == 128 + 14 * 8
    assert manifest["state"]["guards"]["rollbacks"] == 2
    return found


def test_a_step_that_is_not_finite_is_skipped_everywhere_and_a_spike_is_gone_back_from(tmp_path: Path) -> None:
    found = run(tmp_path)
    for name in ("one process", "gradient"):
        skipped_steps_change_nothing(tmp_path, name, found["skips"][name])
    stops_after_three(tmp_path, "stops, validated", found["skips"]["stops, validated"])
    assert goes_back_twice(tmp_path / "jump-validated") == goes_back_twice(tmp_path / "jump-one")


@pytest.mark.exhaustive
def test_the_same_under_every_precision_and_loop_and_after_a_kill(tmp_path: Path) -> None:
    found = run(tmp_path, "--all")
    for name in FIRST:
        skipped_steps_change_nothing(tmp_path, name, found["skips"][name])
    for name in ("stops", "stops, validated"):
        stops_after_three(tmp_path, name, found["skips"][name])
    (only,) = found["skips"]["stops at once"]
    path = tmp_path / "stops-at-once"
    assert f"no checkpoint was saved before, so these weights are, {path}/checkpoints/step-00000001" in only["ended"]
    assert steps(path) == [1]
    for rank in found["skips"]["stops forward"]:
        assert (
            "; in the forward pass it comes from rank 0, stage 0 of 2 (layers 0 to 2), microbatch 5;" in rank["ended"]
        )
    for rank in found["skips"]["weights"]:
        assert (
            "; in the forward pass it comes from rank 0, stage 0 of 2 (layers 0 to 2), microbatch 0;" in rank["ended"]
        )
        assert (
            "where 1 weights are not finite, the first of them model.layers.0.mlp.up_proj.weight (rank 0"
            in rank["ended"]
        )
    assert found["killed"] == [-9, -9]
    alone = goes_back_twice(tmp_path / "jump-one")
    for name in ("again", "two", "validated", "asked-to-stop", "killed"):
        assert goes_back_twice(tmp_path / f"jump-{name}") == alone, name
    assert found["jumps"]["asked to stop"] == ["interrupted", ""]
    left = tmp_path / "jump-asked-to-stop" / "checkpoints" / "step-00000013.left"
    assert left.is_dir()  # it was saved while the loss was high, on request
    once, told, early = (learned(tmp_path / f"jump-{name}") for name in ("once", "told", "early"))
    assert [r["number"] for r in once["rollbacks"]] == [1]
    assert told["rollbacks"] == early["rollbacks"] == []
    assert told["losses"] == early["losses"]
    for name, at in (("once", 12), ("told", 14), ("early", 14)):
        assert [r["step"] for r in metrics(tmp_path / f"jump-{name}") if "spike" in r] == [at]


def test_a_few_high_losses_are_noise_and_more_in_a_row_are_a_spike() -> None:
    losses = Losses(Spike(window=5, steps=3, threshold=4.0))
    usual = [2.0, 2.1, 1.9, 2.05, 1.95]
    assert [losses.add(step, loss) for step, loss in enumerate(usual)] == [None] * 5
    assert [losses.add(5, 9.0), losses.add(6, 9.0), losses.add(7, 2.0)] == [None] * 3  # two only
    assert losses.add(8, 2.2) is None  # within 4 deviations of 1.4826 * 0.05
    assert [losses.add(9, 3.0), losses.add(10, math.nan), losses.add(11, 3.5)] == [None] * 3
    jump = losses.add(12, 4.0)
    assert jump is not None
    # by hand: the last five are 2.1, 1.9, 2.05, 1.95, 2.0 less the oldest, with 2.0 and 2.2: 1.9 2.05 1.95 2.0 2.2
    assert (jump.since, jump.step, jump.loss, jump.usual) == (9, 12, 4.0, 2.0)
    assert jump.deviation == pytest.approx(1.4826 * 0.05)
    assert jump.height == pytest.approx(2.0 / (1.4826 * 0.05))
    assert [losses.add(step, 4.0) for step in range(13, 40)] == [None] * 27  # said once; then it is the usual loss
    assert losses.add(40, 9.0) is losses.add(41, 9.0) is None
    assert losses.add(42, 9.0) is not None


def test_nothing_is_judged_before_the_window_is_full() -> None:
    losses = Losses(Spike(window=10, steps=1))
    assert [losses.add(step, 2.0 + 50 * (step == 8)) for step in range(10)] == [None] * 10
    assert losses.add(10, 50.0) is not None


def test_a_state_through_json_judges_as_the_original() -> None:
    series = [3.0 + math.sin(7 * step) * 0.1 + 4.0 * (step in (20, 21, 22, 40, 41, 42, 43)) for step in range(60)]
    whole = Losses(Spike(window=8, threshold=6.0))
    expected = [whole.add(step, loss) for step, loss in enumerate(series)]
    assert [jump.step for jump in expected if jump] == [22, 42]
    for cut in (5, 21, 22, 23, 42):
        one, other = Losses(whole.spike), Losses(whole.spike)
        found = [one.add(step, loss) for step, loss in enumerate(series[:cut])]
        state = one.state_dict()
        text = json.dumps(state)
        one.add(cut, series[cut])
        assert json.dumps(state) == text  # a save writes it while training goes on
        other.load_state_dict(json.loads(text))
        assert found + [other.add(step, loss) for step, loss in enumerate(series[cut:], cut)] == expected


def test_going_back_drops_what_was_written_since_and_keeps_earlier_rollbacks(tmp_path: Path) -> None:
    path = str(tmp_path / "metrics.jsonl")
    file = MetricsFile(path)
    for step in range(1, 5):
        file.log({"step": step})
    file.go_back(2, 0)
    file.log({"step": 2, "rollback": {"number": 1}})
    file.log({"step": 3})
    file.go_back(2, 1)
    file.log({"step": 2, "rollback": {"number": 2}})
    file.log({"step": 3})
    file.close()
    kept = [{"step": 1}, {"step": 2}, {"step": 2, "rollback": {"number": 1}}]
    assert list(read(path)) == [*kept, {"step": 2, "rollback": {"number": 2}}, {"step": 3}]
    MetricsFile(path, after_step=2, rollbacks=1).close()  # resumed from a checkpoint of before the second
    assert list(read(path)) == kept


def test_the_command_in_the_message_goes_on_from_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").write_text("\n".join(f"line {i} of file {number}" for i in range(30)))
    file = tmp_path / "mine.py"
    file.write_text(
        "from forgather_dsl import *\n\n\nclass Mine(Experiment):\n"
        "    seq_len, batch_size, steps, save_every, sampling, loggers = 16, 4, 8, 2, None, ()\n"
        f"    tokenizer, data = Bytes(), TextFiles(paths={str(tmp_path)!r} + '/*.txt', held_out=0.2)\n"
        "    model = patch(Llama, dim=16, num_layers=2, num_heads=2)\n"
    )
    out = str(tmp_path / "run")
    calls: list[float] = []

    def bad_from_the_fourth_on(loss: Any, logits: Any, targets: Any) -> Any:
        calls.append(1)
        return logits.sum() * (math.nan if len(calls) > 3 else 1e-6)

    with monkeypatch.context() as patched:
        patched.setattr("forgather_dsl.train.loss.CrossEntropy.__call__", bad_from_the_fourth_on)
        with pytest.raises(
            UserError, match=r"diverged: step 6 .* weights and optimizer are those after step 3"
        ) as caught:
            Trainer(load(f"{file}:Mine")(), out=out).fit()
    command = str(caught.value).partition("python -m forgather_dsl ")[2]
    assert run_command(shlex.split(command)) == 0
    assert [r["step"] for r in metrics(tmp_path / "run") if "loss" in r and "progress" in r] == [1, 8]
    assert '"lr": 0.00015' in (tmp_path / "run" / "config.json").read_text()
    assert [r["step"] for r in metrics(tmp_path / "run") if "data_fingerprint" in r] == [0, 2]


def test_a_rollback_needs_checkpoints() -> None:
    class Mine(Experiment):
        steps, tokenizer, data = 5, Bytes(), TextFiles(paths="x", held_out=0.0)
        model = patch(Llama, dim=32, num_layers=2, num_heads=2)
        guard = Guard(spike=Spike(rollback=True))

    with pytest.raises(ConfigError, match=r"guard.spike.rollback.*write save_every = 100"):
        check(Mine())
    check(Mine(save_every=100))
    check(Mine(guard=Guard()))
