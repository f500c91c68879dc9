"""Saving beside training: the values are those of the moment of the save, and a run that goes on from them is the same run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from saving_experiments import Noisy, PowerCut, small
from saving_ranks import Alone, contents, on_threads, save_one, tensors, value_of

from forgather_dsl import BF16, Checkpoints, Pipeline, Trainer, UserError, replace
from forgather_dsl.train import random_state
from forgather_dsl.train.checkpoint import Saver, newest, open_checkpoint, snapshot
from forgather_dsl.train.checkpoint.snapshot import Snapshot, source
from forgather_dsl.train.checkpoint.writing import ordered, size_of, write


class Gate:
    """Lets the writer read `pieces` pieces, and the rest when it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
        self.open, self.reached = threading.Event(), threading.Event()
        real = Snapshot.pieces

        def gated(taken: Snapshot) -> Iterator[memoryview]:
            for number, piece in enumerate(real(taken)):
                yield piece
                if number + 1 == pieces:
                    self.reached.set()
                    assert self.open.wait(30)

        monkeypatch.setattr(Snapshot, "pieces", gated)


@pytest.mark.parametrize("pieces", [1, 3, 6, 11])
def test_an_update_that_races_a_save_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    held = tensors(0, 5.0)
    monkeypatch.setattr(snapshot, "PIECE", 500)  # bytes: tensors of 1200 are read in three pieces
    gate, saver = Gate(monkeypatch, pieces), Saver(str(tmp_path), Alone())
    path = saver.save(contents(1, held))
    assert gate.reached.wait(30)
    saver.before_update()  # does not wait for the writer, which stands at the gate
    for tensor in held.values():
        tensor.fill_(6.0)
    gate.open.set()
    assert saver.finish() is None
    assert value_of(open_checkpoint(path)) == 5.0


def test_the_file_is_safetensors_of_every_format(tmp_path: Path) -> None:
    formats = (torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.float16)
    held = {f"t{i}": (torch.rand(3, 5) * 9).to(dtype) for i, dtype in enumerate(formats)}
    held |= {"scalar": torch.tensor(3.5), "empty": torch.empty(0, 4), "turned": torch.rand(4, 6).T}
    sources = ordered([source(key, tensor) for key, tensor in held.items()])
    about = write(str(tmp_path / "file"), Snapshot(sources, torch.device("cpu")))
    loaded = load_file(tmp_path / "file")
    assert loaded.keys() == held.keys()
    assert all(torch.equal(loaded[key], tensor) and loaded[key].dtype == tensor.dtype for key, tensor in held.items())
    assert about["size"] == size_of(sources) == (tmp_path / "file").stat().st_size


def losses(out: Path) -> list[tuple[int, str]]:
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(r["step"], r["loss"].hex()) for r in records if "loss" in r]


def files(out: Path) -> dict[str, bytes]:
    """Every safetensors file of a run."""
    return {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*.safetensors")}


def held_until_detached(monkeypatch: pytest.MonkeyPatch) -> dict[Snapshot, threading.Event]:
    """A writing thread gets no further than its second piece before training is about to update; which snapshots did so."""
    real_pieces, real_detach, gates = Snapshot.pieces, Snapshot.detach, {}

    def pieces(taken: Snapshot) -> Iterator[memoryview]:
        for number, piece in enumerate(real_pieces(taken)):
            yield piece
            if number == 1 and threading.current_thread().name == "checkpoint":
                assert gates.setdefault(taken, threading.Event()).wait(30)

    def detach(taken: Snapshot) -> None:
        real_detach(taken)
        gates.setdefault(taken, threading.Event()).set()

    monkeypatch.setattr(Snapshot, "pieces", pieces)
    monkeypatch.setattr(Snapshot, "detach", detach)
    return gates


@pytest.mark.parametrize("how", ["plain", "post_validation", "masters"])
def test_a_run_saves_the_same_bytes_beside_training_as_between_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    parallel = Pipeline(stages=1, post_validation=how == "post_validation")
    experiment = small(tmp_path, parallel=parallel, save_every=1, clip_norm=0.05)
    experiment = replace(experiment, **{"precision": BF16()} if how == "masters" else {})
    Trainer(replace(experiment, checkpoints=Checkpoints(keep_last=9, background=False)), out=str(tmp_path / "a")).fit()
    held = held_until_detached(monkeypatch)
    Trainer(replace(experiment, checkpoints=Checkpoints(keep_last=9)), out=str(tmp_path / "b")).fit()
    assert len(held) == 5  # all but the last, which is waited for
    between, beside = files(tmp_path / "a"), files(tmp_path / "b")
    assert len(between) == 6
    assert between == beside


def test_a_run_with_random_parts_of_the_users_own_goes_on_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    experiment = replace(small(tmp_path, save_every=2), model=replace(small(tmp_path).model, norm=Noisy()))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    Trainer(experiment, out=str(whole)).fit()
    with pytest.raises(RuntimeError, match="the power went out"):
        Trainer(replace(experiment, loggers=(PowerCut(at=5),)), out=str(cut)).fit()
    torch.rand(3)  # whatever else the process draws
    Trainer(experiment, out=str(cut)).fit()
    assert losses(cut) == losses(whole)
    last = "checkpoints/step-00000006/rank-0.safetensors"
    assert files(cut)[last] == files(whole)[last]
    for file in whole.rglob("manifest.json"):
        assert json.loads(file.read_bytes())["rng"][0]["torch"]


def test_random_state_goes_through_json_and_back() -> None:
    import random

    import numpy as np

    def draw() -> list[float]:
        return [random.gauss(0, 1), random.random(), np.random.randn(), np.random.rand(), *torch.randn(3).tolist()]

    random.gauss(0, 1)
    np.random.randn()  # of both a second number is kept for the next call
    states = json.loads(json.dumps(random_state.capture(torch.device("cpu"))))
    expected = draw()
    draw()
    random_state.put_back(states, torch.device("cpu"))
    assert draw() == expected


def test_every_rank_has_a_random_state_of_its_own(tmp_path: Path) -> None:
    def save(ranks: Any) -> str:
        held = tensors(0, 1.0) if ranks.rank == 0 else {}
        return Saver(str(tmp_path), ranks).save(contents(1, held, rng={"of": ranks.rank}), wait=True)

    assert open_checkpoint(on_threads(3, save)[0]).manifest["rng"] == [{"of": 0}, {"of": 1}, {"of": 2}]
    assert [file.name for file in tmp_path.rglob("*.safetensors")] == ["rank-0.safetensors"]


def test_the_same_step_saved_again_stands_beside_the_first_until_it_is_committed(tmp_path: Path) -> None:
    save_one(tmp_path, 4, 1.0)
    assert save_one(tmp_path, 4, 2.0) == f"{tmp_path}/step-00000004-2"
    assert [file.name for file in tmp_path.iterdir()] == ["step-00000004-2"]
    saved = newest(str(tmp_path), Alone())
    assert saved is not None
    assert value_of(saved) == 2.0


def test_a_checkpoint_of_another_model_changes_nothing(tmp_path: Path) -> None:
    """More layers than are stored, fewer, and other widths: refused by name before a parameter has changed."""
    from forgather_dsl.train.session import Session

    experiment = small(tmp_path, steps=2)
    Trainer(experiment, out=str(tmp_path / "run")).fit()
    path = str(tmp_path / "run" / "checkpoints" / "step-00000002")
    before: dict[str, torch.Tensor] = {}
    real = Session.restore

    def restore(session: Session, saved: Any) -> None:
        before.clear()
        before.update({name: p.detach().clone() for name, p in session.parameters.items()})
        try:
            real(session, saved)
        except UserError:
            changed.extend(n for n, p in session.parameters.items() if not torch.equal(p, before[n]))
            refused.append(session)
            raise

    changed: list[str] = []
    refused: list[Session] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Session, "restore", restore)
        for number, (field, value, why) in enumerate(
            (
                ("num_layers", 3, r"lacks 9 tensors: weights/model\.layers\.2"),
                ("num_layers", 1, r"holds 36 tensors of another model: optimizer/model\.layers\.1"),
                ("dim", 16, r"a tensor of shape \(\d+, 32\) is stored where \(\d+, 16\) is needed"),
            )
        ):
            model = replace(experiment.model, **{field: value})
            with pytest.raises(UserError, match=why) as caught:
                Trainer(replace(experiment, model=model), out=str(tmp_path / str(number)), resume=path).fit()
            assert caught.value.exit_code == 4
    assert len(refused) == 3
    assert changed == []
