"""A step applied in the backward pass or on the host gives the bits of one at its end, or is refused (update_ranks.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from forgather_dsl import (
    AdamW,
    Bytes,
    ConfigError,
    Experiment,
    InBackward,
    Llama,
    Muon,
    OnHost,
    Pipeline,
    TextFiles,
    UserError,
    patch,
)
from forgather_dsl.dsl import check, replace
from forgather_dsl.plan import fit
from forgather_dsl.plan.hardware import GIB, Device
from forgather_dsl.train.update.limiting import rms_over_second_moment
from forgather_dsl.train.update.travel import Lane, round_to
from forgather_dsl.train.update.worker import PIECE, Buffers, Worker

HERE = Path(__file__).parent
CPU = torch.device("cpu")


class Small(Experiment):
    seq_len, batch_size, microbatch_size, steps, clip_norm, sampling, loggers = 16, 4, 1, 3, None, None, ()
    tokenizer = Bytes()
    model = patch(Llama, dim=16, num_layers=4, num_heads=2)
    update = InBackward()


def run(folder: Path, *options: str, seconds: int) -> dict[str, Any]:
    """{case: what differs} from one run of the script."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1]), "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, str(HERE / "update_ranks.py"), str(folder), *options]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["codes"]) == {0}, done.stderr
    return result["cases"]


def test_updates_in_the_backward_pass_and_on_the_host_are_those_at_the_end_of_the_step(tmp_path: Path) -> None:
    cases = run(tmp_path, seconds=400)
    assert cases == {name: [] for name in cases}
    assert len(cases) == 2


@pytest.mark.exhaustive
def test_the_same_under_every_kind_of_schedule_and_format(tmp_path: Path) -> None:
    cases = run(tmp_path, "--all", seconds=1200)
    assert cases == {name: [] for name in cases}
    assert len(cases) == 19


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clip_norm": 1.0}, "before the global norm is known.*write clip_norm = None"),
        ({"parallel": Pipeline(stages=1, replicas=2)}, "InBackward does not go with this: replicas add up"),
        ({"parallel": Pipeline(stages=2, post_validation=True)}, "post_validation takes back a whole update"),
        ({"parallel": Pipeline(stages=2, engine="torch")}, "torch's runtime does not tell when"),
        ({"optimizer": Muon(), "update": InBackward(clip_rms=1.0)}, "AdamW's second moment, which Muon has not"),
        ({"optimizer": AdamW(states="8bit"), "update": InBackward(clip_rms=1.0)}, "8-bit states hold in blocks"),
        ({"update": OnHost(), "parallel": Pipeline(stages=2, post_validation=True)}, "takes back an update on the device"),
        (
            {"update": OnHost(gradients="host"), "parallel": Pipeline(stages=1, replicas=2)},
            r"replicas add up their gradients on the devices; write parallel.replicas=1, or update = OnHost\(gradients='device'\)",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_exact_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(replace(Small(), **changes))


def test_a_run_goes_on_with_another_update_as_if_nothing_had_changed(small: Any, tmp_path: Path) -> None:
    from small_runs import weights

    from forgather_dsl import BF16, AfterBackward, Trainer

    ends = []
    for number, updates in enumerate([(AfterBackward(), OnHost()), (InBackward(), AfterBackward())]):
        out = str(tmp_path / f"run{number}")
        for steps, update in zip((2, 4), updates):
            data = TextFiles(paths=small.Small().data.paths, held_out=0.2)
            experiment = replace(Small(data=data, precision=BF16()), steps=steps, update=update, save_every=1)
            Trainer(experiment, out=out, model=False).fit()
        ends.append(weights(out, everything=True))
    assert len(ends[0]) > 20
    for end in ends[1:]:
        assert [name for name in ends[0] if not torch.equal(ends[0][name], end[name])] == []


def test_one_step_that_is_not_finite_ends_a_run_that_updates_in_the_backward_pass(small: Any, tmp_path: Path) -> None:
    from forgather_dsl import Loss, Trainer

    class Infinite(Loss["small_runs.SometimesInfinite"]):
        """Sooner or later."""

    experiment = Small(data=TextFiles(paths=small.Small().data.paths, held_out=0.2), loss=Infinite(), steps=60)
    with pytest.raises(UserError, match=r"is not finite.*cannot be skipped.*AfterBackward") as refused:
        Trainer(experiment, out=str(tmp_path / "run"), model=False).fit()
    assert refused.value.exit_code == 4


def test_too_little_memory_of_the_host_is_found_before_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = replace(Small(), update=OnHost(), model=patch(Llama, dim=512, num_layers=8, num_heads=8))
    monkeypatch.setattr(fit.hardware, "gpus", lambda: (Device("RTX 4090", 24 * GIB, "gpu"),))
    monkeypatch.setattr(fit.hardware, "host_memory", lambda: GIB // 8)
    with pytest.raises(
        UserError, match=r"keeps 0\.\d GiB of optimizer states and masters in the host's memory"
    ) as refused:
        fit.require_fit(experiment)
    assert refused.value.exit_code == 3


def test_the_limit_of_a_tensors_update_is_that_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient, second = torch.randn(300, 1000, generator=generator), torch.rand(300, 1000, generator=generator) * 0.1
    for step, before in ((1, None), (7, second)):
        old = torch.zeros_like(second) if before is None else before
        moment = (0.95 * old + 0.05 * gradient**2) / (1 - 0.95**step)
        expected = float((gradient.double() ** 2 / moment.double().clamp(min=1e-16)).mean().sqrt())
        assert rms_over_second_moment(gradient, before, step, 0.95, 1e-8) == pytest.approx(expected, rel=1e-5)


def test_weights_come_back_as_masters_are_rounded_on_the_device() -> None:
    from forgather_dsl.train.optim.weights import split

    master = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    master[:4] = torch.tensor([1.00390625, -1.00390625, 0.0, -0.0])  # halfway between two of bfloat16
    upper, found = (torch.empty(5000, dtype=torch.bfloat16) for _ in range(2))
    round_to(master, found)
    split(master.clone(), upper, torch.empty(5000, dtype=torch.int16))
    assert torch.equal(found.view(torch.int16), upper.view(torch.int16))


def test_pieces_arrive_in_order_and_a_device_that_is_ahead_waits_for_a_buffer() -> None:
    lane, worker = Lane(CPU, 2), Worker(CPU)
    sent, arrived = torch.arange(3 * PIECE + 5, dtype=torch.int32), torch.empty(3 * PIECE + 5, dtype=torch.int32)
    for start, piece in lane.pieces(sent):  # more pieces than buffers: without the worker this would wait for ever
        buffer, there, _ = lane.down(piece, None)
        worker.put(
            lambda start=start, there=there: arrived[start : start + len(there)].copy_(there),
            lambda buffer=buffer: lane.buffers.give(buffer),
        )
    worker.wait()
    assert torch.equal(sent, arrived)


def test_what_fails_on_the_host_is_told_where_training_waits_for_it() -> None:
    worker, later, given = Worker(CPU), [], []

    def fail() -> None:
        raise ValueError("out of masters")

    worker.put(fail, lambda: given.append(1))
    with pytest.raises(ValueError, match="out of masters"):
        worker.wait()
    with pytest.raises(ValueError, match="out of masters"):
        worker.put(lambda: later.append(1))
    assert (later, given) == ([], [1])


def test_memory_that_cannot_be_pinned_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **options: Any) -> None:
        assert options["pin_memory"]
        raise RuntimeError("cannot allocate")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(UserError, match=r"32 MiB of host memory cannot be pinned.*ulimit -l") as refused:
        Buffers(4, torch.device("cuda"))
    assert refused.value.exit_code == 3
