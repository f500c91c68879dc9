"""A Hugging Face folder as it lies on disk: `config.json` and safetensors, one file or shards with an index.

`open_folder` reads headers alone and refuses pickles; tensors come one at a time, mapped from the file. `write_folder`
writes one tensor at a time into a folder of another name, syncs it, and renames it when it is whole.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..dsl.reading import read_json
from ..errors import UserError
from ..train.checkpoint.folder import sync
from ..train.weights import Stored

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
MOST_INDEX_BYTES = 64 * 2**20
TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")
_PICKLE = re.compile(r".*\.(bin|pt|pth|pkl|pickle|ckpt)")


class Folder(NamedTuple):
    """An opened folder: every tensor by name, and the configuration."""

    path: str
    config: dict[str, Any]
    stored: dict[str, Stored]

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of each, mapped from its file, file by file."""
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self.stored[name].file, []).append(name)
        for file, here in by_file.items():
            with safe_open(os.path.join(self.path, file), framework="pt") as opened:
                for name in here:
                    yield name, opened.get_tensor(name)


def open_folder(path: str) -> Folder:
    """Read configuration and headers. Raises UserError (LoadError for JSON) with every problem of the files."""
    if not os.path.isdir(path):
        raise UserError(f"{path} is no folder; write a folder with config.json and model.safetensors")
    config = read_json(os.path.join(path, "config.json"))
    if not isinstance(config, dict):
        raise UserError(f"{os.path.join(path, 'config.json')} is not a JSON object")
    index = os.path.join(path, INDEX)
    places = _index(index) if os.path.exists(index) else None
    files = [SINGLE] if places is None else sorted(set(places.values()))
    missing = [file for file in files if not os.path.isfile(os.path.join(path, file))]
    if missing:
        _refuse_pickles(path)
        raise UserError(f"{path} lacks {', '.join(missing)}; fetch the folder again, with all its shards")
    stored: dict[str, Stored] = {}
    problems: list[str] = []
    for file in files:
        for name, (shape, dtype) in _header(os.path.join(path, file)).items():
            if name in stored:
                problems.append(f"{name} is in {stored[name].file} and in {file}")
            stored[name] = Stored(shape, dtype, file)
    for name, file in (places or {}).items():
        if name not in stored or stored[name].file != file:
            problems.append(f"{INDEX} has {name} in {file}, which does not hold it")
    problems += [
        f"{stored[name].file} holds {name}, which {INDEX} does not name"
        for name in stored
        if places and name not in places
    ]
    if problems:
        raise UserError(f"{path} contradicts itself:\n  " + "\n  ".join(sorted(problems)))
    return Folder(path, config, stored)


def _index(path: str) -> dict[str, str]:
    """Tensor name to file, every file one of this folder."""
    content = read_json(path, MOST_INDEX_BYTES)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise UserError(f"{path} has no weight_map")
    wrong = [file for file in places.values() if not isinstance(file, str) or not _SHARD.fullmatch(file)]
    if wrong:
        raise UserError(f"{path} names {wrong[0]!r}, which is no safetensors file of this folder")
    return places


def _refuse_pickles(path: str) -> None:
    pickles = sorted(name for name in os.listdir(path) if _PICKLE.fullmatch(name))
    if pickles:
        raise UserError(
            f"{path} holds its weights as pickles ({', '.join(pickles[:3])}), and opening a pickle can run any code; "
            "fetch the safetensors of the model, or write them with save_pretrained of transformers where that may happen"
        )


def _header(path: str) -> dict[str, tuple[tuple[int, ...], str]]:
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in sorted(file.keys())}
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def write_folder(
    out: str,
    config: Mapping[str, Any],
    stored: Mapping[str, Stored],
    tensors: Iterable[tuple[str, Tensor]],
) -> None:
    """Write a whole folder or nothing. `tensors` come in any order; `stored` says where each goes and what it is.

    Raises UserError: the folder exists, or cannot be written.
    """
    with new_folder(out) as partial:
        files = sorted({entry.file for entry in stored.values()})
        with contextlib.ExitStack() as stack:
            opened = {file: stack.enter_context(open(os.path.join(partial, file), "wb")) for file in files}
            offsets = {
                file: _begin(opened[file], [(n, e) for n, e in stored.items() if e.file == file]) for file in files
            }
            left = set(stored)
            for name, tensor in tensors:
                entry = stored[name]
                assert (tuple(tensor.shape), TYPES.get(tensor.dtype)) == entry[:2], name
                opened[entry.file].seek(offsets[entry.file][name])
                opened[entry.file].write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
                left.remove(name)
            assert not left, left
        if files != [SINGLE]:
            total = {"total_size": sum(map(num_bytes, stored.values()))}
            _write_json(
                os.path.join(partial, INDEX), {"metadata": total, "weight_map": {n: e.file for n, e in stored.items()}}
            )
        _write_json(os.path.join(partial, "config.json"), config)


def num_bytes(entry: Stored) -> int:
    """Of one tensor."""
    return math.prod(entry.shape) * (4 if entry.dtype == "F32" else 2)


def _begin(file: IO[bytes], entries: Sequence[tuple[str, Stored]]) -> dict[str, int]:
    """Write the header; returns where each tensor begins."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begins, end = {}, 0
    for name, entry in entries:
        begins[name], end = end, end + num_bytes(entry)
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": [begins[name], end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    start = 8 + len(text)
    file.truncate(start + end)
    return {name: start + begin for name, begin in begins.items()}


@contextlib.contextmanager
def new_folder(out: str) -> Iterator[str]:
    """A folder to write into, which becomes `out` at the end: synced and renamed, or gone after any failure.

    Raises UserError: `out` exists, or something cannot be written.
    """
    out = os.path.abspath(out)
    if os.path.exists(out) and not (os.path.isdir(out) and not os.listdir(out)):
        raise UserError(f"--out {out} exists already; choose another folder")
    partial = os.path.join(os.path.dirname(out), f".{os.path.basename(out)}.partial-{uuid.uuid4().hex[:8]}")
    try:
        os.makedirs(partial)
        yield partial
        for folder, _, files in os.walk(partial):
            for file in files:
                sync(os.path.join(folder, file))
            sync(folder)
        os.rename(partial, out)
        sync(os.path.dirname(out))
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}", exit_code=4) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _write_json(path: str, value: Any) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
