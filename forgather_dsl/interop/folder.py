"""A Hugging Face folder as it lies on disk: `config.json` and safetensors, one file or shards with an index.

`open_folder` reads headers alone and refuses pickles, adapters and GGUF; tensors come one at a time, mapped from the file.
`write_tensors` writes one tensor at a time; `new_folder` is a folder of another name, synced and renamed when it is whole.
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
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..dsl.reading import read_json
from ..errors import UserError
from ..train.checkpoint import Slice
from ..train.checkpoint.folder import sync
from ..train.weights import Stored
from .place import read_config, require_weights

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
SHARD_BYTES = 5 * 10**9  # as transformers cuts by default
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
MOST_INDEX_BYTES = 64 * 2**20
TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")
_DERIVED = "rotary_emb.inv_freq"  # stored by old versions of transformers, and computed here


class Folder(NamedTuple):
    """An opened folder: every tensor by name, and the configuration."""

    path: str
    config: dict[str, Any]
    stored: dict[str, Stored]

    def tensors(
        self, names: Iterable[str], slices: Mapping[str, Slice] = MappingProxyType({})
    ) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of each, mapped from its file, file by file; of those in `slices` that part alone is read."""
        by_file: dict[str, list[str]] = {}
        for name in names:
            by_file.setdefault(self.stored[name].file, []).append(name)
        for file, here in by_file.items():
            with safe_open(os.path.join(self.path, file), framework="pt") as opened:
                for name in here:
                    if (part := slices.get(name)) is None:
                        yield name, opened.get_tensor(name)
                    else:
                        box = tuple(slice(o, o + n) for o, n in zip(part.offset, part.size))
                        yield name, opened.get_slice(name)[box]

    def tensor(self, name: str) -> Tensor:
        """One of them."""
        return next(tensor for _, tensor in self.tensors([name]))

    def without_copies(self, tied: bool, compare: bool = True) -> dict[str, Stored]:
        """What is stored, without what is computed here, and without the head of a tied model if it is the embedding again.

        Raises UserError: it is not, where they are to be compared.
        """
        found = {name: entry for name, entry in self.stored.items() if not name.endswith(_DERIVED)}
        if tied and HEAD in found and EMBEDDING in found:
            if compare and not torch.equal(self.tensor(HEAD), self.tensor(EMBEDDING)):
                raise UserError(
                    f"{self.path}: config.json ties the embeddings, but {HEAD} is not {EMBEDDING}; write "
                    '"tie_word_embeddings": false there if they were trained apart'
                )
            del found[HEAD]
        return found


def open_folder(path: str) -> Folder:
    """Read configuration and headers. Raises UserError (LoadError for JSON) with every problem of the files."""
    require_weights(path)
    config = read_config(path)
    index = os.path.join(path, INDEX)
    places = _index(index) if os.path.exists(index) else None
    files = [SINGLE] if places is None else sorted(set(places.values()))
    missing = [file for file in files if not os.path.isfile(os.path.join(path, file))]
    if missing:
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


def _header(path: str) -> dict[str, tuple[tuple[int, ...], str]]:
    try:
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in sorted(file.keys())}
            return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def in_shards(entries: Mapping[str, Stored], most: int = SHARD_BYTES) -> dict[str, Stored]:
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


def write_tensors(into: str, stored: Mapping[str, Stored], tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Write safetensors, with their index if they are several, into a folder that is there.

    Args:
        stored: what each tensor is, and which file it goes to.
        tensors: in any order; one at a time is in memory.
    """
    files = sorted({entry.file for entry in stored.values()})
    with contextlib.ExitStack() as stack:
        opened = {file: stack.enter_context(open(os.path.join(into, file), "wb")) for file in files}
        offsets = {file: _begin(opened[file], [(n, e) for n, e in stored.items() if e.file == file]) for file in files}
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
        write_json(os.path.join(into, INDEX), {"metadata": total, "weight_map": {n: e.file for n, e in stored.items()}})


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


def require_new(out: str) -> None:
    """Raises UserError: there is something at `out` already, other than an empty folder."""
    if os.path.lexists(out) and not (os.path.isdir(out) and not os.listdir(out)):
        raise UserError(f"--out {out} exists already; choose another folder")


def require_room(out: str, total: int) -> None:
    """Raises UserError unless `total` bytes are free where `out` will be."""
    place = os.path.abspath(out)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    free = shutil.disk_usage(place).free
    if free < total:
        raise UserError(
            f"--out {out}: {total / 2**30:.2f} GiB to write, {free / 2**30:.2f} GiB free there", exit_code=4
        )


@contextlib.contextmanager
def new_folder(out: str) -> Iterator[str]:
    """A folder to write into, which becomes `out` at the end: synced and renamed, or gone after any failure.

    Raises UserError: `out` exists, or something cannot be written.
    """
    require_new(out)
    out = os.path.abspath(out)
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


def write_json(path: str, value: Any) -> None:
    """As transformers writes its JSON."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=2) + "\n")
