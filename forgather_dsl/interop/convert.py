"""Weights between a run's checkpoint and a Hugging Face folder; all is verified before anything is written.

To a folder: the checkpoint through the door that resume uses (hashes), then names, shapes and number formats against the
model. From one: configuration against the experiment, then the same. Tensors pass one at a time, bit for bit; a folder
is there whole or not at all. `train.checkpoint` keeps its own format: this module asks it for tensors by name.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..specs import Experiment
from ..train import checkpoint, directory
from ..train.weights import DTYPES, WEIGHTS, Stored, alone, expected, require_same, save_weights, stored
from .families import differences, from_config, to_config
from .folder import SINGLE, TYPES, Folder, new_folder, num_bytes, open_folder, write_folder

SHARD_BYTES = 5 * 10**9  # as transformers cuts by default
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_DERIVED = "rotary_emb.inv_freq"  # stored by old versions of transformers, and computed here


class Converted(NamedTuple):
    """What was written."""

    path: str
    tensors: int
    bytes: int
    family: str


def to_folder(
    source: str,
    out: str,
    experiment: Experiment | None = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Converted:
    """Write the weights of a run's newest checkpoint, or of a checkpoint, as a folder that transformers loads.

    Args:
        source: a run directory or a checkpoint folder.
        experiment: what was trained; None: what the run directory says.
        dtype: float32, bfloat16 or float16 for all tensors; None: as they are stored.
        shard_bytes: the most that one file holds.

    Raises:
        UserError: with every tensor that is missing, unexpected or of another shape, or every option that no stock
            class has.
    """
    saved, described = _opened(source)
    experiment = described if experiment is None else experiment
    if experiment is None:
        raise UserError(
            f"{source} lies in no run directory, so nothing says what model it is; add --target file.py:Class"
        )
    config = to_config(experiment.model, experiment.seq_len)
    found = stored(saved)
    require_same(saved.path, found, expected(experiment.model, len(found)))
    formats = {DTYPES[entry.dtype] for entry in found.values()} if dtype is None else {dtype}
    config["torch_dtype"] = formats.pop() if len(formats) == 1 else "float32"
    target = None if dtype is None else getattr(torch, dtype)
    entries = {n: e if target is None else e._replace(dtype=TYPES[target]) for n, e in found.items()}
    entries = _in_shards(entries, shard_bytes)
    total = sum(map(num_bytes, entries.values()))
    _require_room(out, total)
    write_folder(out, config, entries, _weights(saved, entries, target))
    return Converted(out, len(entries), total, config["model_type"])


def from_folder(
    path: str, experiment: Experiment, out: str, target: str, command: list[str] | None = None
) -> Converted:
    """Write a run directory whose only checkpoint, of step 0, holds the weights of a folder; nothing else is restored.

    Args:
        path: a folder with `config.json` and safetensors.
        experiment: what will be trained from them; its model has to be that of the folder.
        target, command: recorded in the run directory.

    Raises:
        UserError: with every field that differs, every tensor that is missing, unexpected or of another shape.
    """
    folder = open_folder(path)
    model = from_config(folder.config, os.path.join(path, "config.json"))
    wrong = differences(model, experiment.model)
    if wrong:
        raise UserError(f"{target} is another model than {path}:\n  " + "\n  ".join(wrong))
    found = _without_copies(folder, model.tie_embeddings)
    require_same(path, found, expected(model, len(found)))
    total = sum(map(num_bytes, found.values()))
    _require_room(out, total)
    with new_folder(out) as partial:
        directory.write(experiment, partial, target, command)
        mapped = dict(folder.tensors(found))  # from the files, not read yet
        save_weights(os.path.join(partial, "checkpoints"), mapped)
    return Converted(out, len(found), total, str(folder.config["model_type"]))


def _opened(source: str) -> tuple[checkpoint.Saved, Experiment | None]:
    """The verified checkpoint, and what was trained where the run directory around it says so."""
    if os.path.isfile(os.path.join(source, "manifest.json")):
        wrong = checkpoint.problem(source)
        if wrong:
            raise UserError(f"{source}: {wrong}; take another checkpoint")
        run = os.path.dirname(os.path.dirname(os.path.abspath(source)))
        described = directory.read_config(run) if os.path.isfile(os.path.join(run, "config.json")) else None
        return checkpoint.open_checkpoint(source), described
    experiment = directory.read_config(source)
    saved = checkpoint.newest(os.path.join(source, "checkpoints"), alone())
    if saved is None:
        raise UserError(f"{source} has no checkpoint to convert; train it, or write save_every = ... for earlier ones")
    return saved, experiment


def _without_copies(folder: Folder, tied: bool) -> dict[str, Stored]:
    """What is stored, without what is computed here, and without the head of a tied model if it is the embedding again.

    Raises UserError: it is not.
    """
    found = {name: entry for name, entry in folder.stored.items() if not name.endswith(_DERIVED)}
    if tied and HEAD in found and EMBEDDING in found:
        head, embedding = (dict(folder.tensors([name]))[name] for name in (HEAD, EMBEDDING))
        if not torch.equal(head, embedding):
            raise UserError(
                f"{folder.path}: config.json ties the embeddings, but {HEAD} is not {EMBEDDING}; write "
                '"tie_word_embeddings": false there if they were trained apart'
            )
        del found[HEAD]
    return found


def _in_shards(entries: Mapping[str, Stored], most: int) -> dict[str, Stored]:
    """Each tensor with its file, in order, as many to a file as fit."""
    shards, room = [[]], most
    for name, entry in entries.items():
        if num_bytes(entry) > room and shards[-1]:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= num_bytes(entry)
    if len(shards) == 1:
        return {name: entry._replace(file=SINGLE) for name, entry in entries.items()}
    return {
        name: entries[name]._replace(file=f"model-{number:05d}-of-{len(shards):05d}.safetensors")
        for number, names in enumerate(shards, start=1)
        for name in names
    }


def _weights(
    saved: checkpoint.Saved, entries: Mapping[str, Stored], dtype: torch.dtype | None
) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in saved.tensors([WEIGHTS + name for name in entries]):
        name = key.removeprefix(WEIGHTS)
        converted = tensor if dtype is None else tensor.to(dtype)
        if dtype == torch.float16 and not torch.equal(converted.isfinite(), tensor.isfinite()):
            raise UserError(f"{name} has numbers above 65504, which float16 does not have; write --dtype bfloat16")
        yield name, converted


def _require_room(out: str, total: int) -> None:
    place = os.path.abspath(out)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    if free < total:
        raise UserError(
            f"--out {out}: {total / 2**30:.2f} GiB to write, {free / 2**30:.2f} GiB free there", exit_code=4
        )
