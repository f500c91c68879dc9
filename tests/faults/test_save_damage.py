"""Damaged checkpoints: any flip or truncation of any file is found before anything is loaded, and the one before is used."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from saving_ranks import Alone, contents, on_threads, save_one, tensors, value_of

from forgather_dsl.errors import UserError
from forgather_dsl.train.checkpoint import Saved, Saver, Slice, manifest, newest, open_checkpoint, problem


def two_ranks(folder: Path, step: int) -> Path:
    """A checkpoint of two ranks that share one tensor."""

    def save(ranks) -> str:
        held = {"weights/head": torch.arange(6.0).view(2, 3) + ranks.rank, **tensors(ranks.rank, float(step), count=1)}
        mine = {"weights/head": Slice((4, 3), (2 * ranks.rank, 0), (2, 3))}
        rng = {"torch": f"state of rank {ranks.rank}"}
        what = contents(step, held, slices=mine, rng=rng, scalars={f"layer{ranks.rank}": {"t": 1.5}})
        return Saver(str(folder), ranks).save(what, wait=True)

    return Path(on_threads(2, save)[0])


def damage(path: Path, rng: random.Random) -> tuple[Path, bytes]:
    """Spoil one file of a checkpoint in one place; the file, and what it was."""
    file = rng.choice(sorted(path.iterdir()))
    before = file.read_bytes()
    spoiled = bytearray(before)
    kind = rng.randrange(4)
    if kind < 2:  # one bit, or one byte by another
        at = rng.randrange(len(spoiled))
        spoiled[at] = spoiled[at] ^ 1 << rng.randrange(8) if kind else (spoiled[at] + rng.randrange(1, 256)) % 256
    elif kind == 2:
        del spoiled[rng.randrange(len(spoiled)) :]
    else:
        spoiled += bytes(rng.randrange(1, 9))
    file.write_bytes(spoiled)
    return file, before


def all_found(folder: Path, times: int, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    older, path = two_ranks(folder, 1), two_ranks(folder, 2)
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "rank-0.safetensors", "rank-1.safetensors"]
    rng = random.Random(seed)
    for number in range(times):
        assert problem(str(path)) is None
        file, before = damage(path, rng)
        saved = newest(str(folder), Alone())
        assert saved is not None, number
        assert saved.path == str(older), number
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert lines[0].startswith(f"warning: {path} is damaged ({file.name}"), lines
        os.rename(f"{path}.bad", path)
        file.write_bytes(before)


def test_a_hundred_flips_and_truncations_are_all_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    all_found(tmp_path, 100, 1, capsys)


@pytest.mark.slow
def test_a_thousand_flips_and_truncations_are_all_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    all_found(tmp_path, 1000, 2, capsys)


def test_every_byte_of_a_manifest_counts(tmp_path: Path) -> None:
    data = Path(save_one(tmp_path, 1), "manifest.json").read_bytes()
    assert manifest.decode(data)["step"] == 1
    for at in range(len(data)):
        with pytest.raises(ValueError, match=r"digest|format"):
            manifest.decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


def test_what_is_missing_or_a_link_or_misnamed_is_found(tmp_path: Path) -> None:
    good = Path(save_one(tmp_path, 1))
    tensors_file = good / "rank-0.safetensors"
    moved = tmp_path / "elsewhere"
    tensors_file.rename(moved)
    assert problem(str(good)) == "rank-0.safetensors: No such file or directory"
    tensors_file.symlink_to(moved)
    assert problem(str(good)) == "rank-0.safetensors is not a file of its own (a link?)"
    tensors_file.unlink()
    moved.rename(tensors_file)
    assert problem(str(good)) is None
    (good / "manifest.json").rename(moved)
    (good / "manifest.json").symlink_to(moved)
    assert problem(str(good)) == "manifest.json is a symbolic link"
    (good / "manifest.json").unlink()
    assert problem(str(good)) == "manifest.json: No such file or directory"
    moved.rename(good / "manifest.json")
    good.rename(tmp_path / "step-00000002")
    assert problem(str(tmp_path / "step-00000002")) == "manifest.json is of step 1"
    (tmp_path / "step-00000003").symlink_to(tmp_path / "step-00000002")
    assert newest(str(tmp_path), Alone()) is None  # a link is no checkpoint, and the other one is not step 2


def rewritten(path: Path, **changes) -> Saved:
    """The checkpoint with another manifest that is whole in itself."""
    found = manifest.read(str(path)) | changes
    (path / "manifest.json").write_bytes(manifest.encode(found))
    return open_checkpoint(str(path))


def test_a_manifest_names_no_files_elsewhere(tmp_path: Path) -> None:
    path = Path(save_one(tmp_path, 1))
    about = manifest.read(str(path))["files"]["rank-0.safetensors"]
    for name in ("../rank-0.safetensors", "/etc/passwd", "rank-0.safetensors/../x", "manifest.json", ""):
        (path / "manifest.json").write_bytes(manifest.encode({**manifest.read(str(path)), "files": {name: about}}))
        assert f"names a file {name!r}" in str(problem(str(path)))
        shutil.rmtree(path)
        save_one(tmp_path, 1)


def test_tensors_stored_twice_or_outside_or_of_other_shapes_are_refused_before_any_is_read(tmp_path: Path) -> None:
    path = two_ranks(tmp_path, 1)
    assert json.loads((path / "manifest.json").read_bytes())["slices"]["rank-1.safetensors"]["weights/head"][1] == [
        2,
        0,
    ]
    first = ("weights/layer0.0", "weights/head")
    for offset, why in (([0, 0], "weights/head is stored twice"), ([3, 0], "is outside of")):
        slices = {f"rank-{r}.safetensors": {"weights/head": [[4, 3], at]} for r, at in enumerate(([0, 0], offset))}
        saved = rewritten(path, slices=slices)
        with pytest.raises(UserError, match=why):
            next(saved.tensors(first))
    slices = {f"rank-{r}.safetensors": {"weights/head": [[n, 3], [2 * r, 0]]} for r, n in enumerate((4, 5))}
    with pytest.raises(UserError, match=r"shape \(5, 3\) is stored where \(4, 3\) is needed"):
        next(rewritten(path, slices=slices).tensors(first))
    with pytest.raises(UserError, match="weights/head is stored twice"):
        next(rewritten(path, slices={}).tensors(first))


def test_where_nothing_can_be_renamed_a_damaged_one_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_one(tmp_path, 1)
    bad = Path(save_one(tmp_path, 2), "rank-0.safetensors")
    bad.write_bytes(bad.read_bytes()[:-1])

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(os, "rename", refuse)
    saved = newest(str(tmp_path), Alone())
    assert saved is not None
    assert value_of(saved) == 1.0
    (line,) = capsys.readouterr().err.splitlines()
    assert "step-00000002 is damaged (rank-0.safetensors has" in line
    assert "left there" in line
