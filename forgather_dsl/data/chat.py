"""`Chat`: conversations from JSON lines, JSON arrays, Parquet, or a dataset of the Hugging Face kind.

In: files or a dataset. Out: their records, each with its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from forgather_dsl.data.chat_source import ChatSource, Faults, Record
from forgather_dsl.data.conversations import conversation_of
from forgather_dsl.data.files import FIRST_BLOCK, FileInfo, check_each, expand, reading, total
from forgather_dsl.data.hub import HF
from forgather_dsl.data.records import ROWS, open_lines, parse_json
from forgather_dsl.errors import UserError

__all__ = ["Chat"]

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet")
LOOKED_AT = 20  # records of each Parquet file that `check` looks at


class Chat(ChatSource):
    """Conversations; see `specs.Chat` for the fields."""

    def __init__(
        self,
        *,
        paths: Sequence[str],
        dataset: str | None,
        name: str | None,
        subset_split: str,
        streaming: bool,
        shape: str,
        template: str | None,
        system: str | None,
        train_on: str,
        too_long: str,
        bad: str,
        split: str,
        held_out: float,
    ) -> None:
        """Raises: UserError: a bad split, both files and a dataset or neither, a shape that is not known."""
        both: dict[str, Any] = {"split": split, "held_out": held_out}
        super().__init__(
            shape=shape, template=template, system=system, train_on=train_on, too_long=too_long, bad=bad, **both
        )
        self.paths = (paths,) if isinstance(paths, str) else tuple(paths)
        if bool(self.paths) == (dataset is not None):
            raise UserError("Chat: write paths=('chats.jsonl',) or dataset='org/name', one of them.")
        where: dict[str, Any] = {"name": name, "subset_split": subset_split, "streaming": streaming}
        self.dataset = None if dataset is None else HF(path=dataset, field=None, **where, **both)

    def records(self, faults: Faults) -> Iterator[Record]:
        """Every record, as it was read; lines that are no JSON go to `faults`."""
        if self.dataset:
            for number, row in enumerate(self.dataset.rows(), 1):
                yield row, f"{self.dataset.path}: row {number}"
            return
        for file in self.files():
            yield from _records_of(file.path, faults)

    def files(self) -> list[FileInfo]:
        """The files there are now; none with a dataset."""
        return expand(self.paths, SUFFIXES) if self.paths else []

    def check(self) -> None:
        """Look at the first records of each file, or at a dataset's names. Raises: UserError: with all that is wrong."""
        if self.dataset:
            self.dataset.check()
        else:
            check_each(self.paths, SUFFIXES, self._check_file)

    def _check_file(self, file: FileInfo) -> None:
        faults, good = Faults(self.skip), 0
        for record, where in _first_records(file.path, faults):
            try:
                conversation_of(record, self.shape, self.system, where)
                good += 1
            except UserError as error:
                faults.add(error)
        faults.end(nothing_good=good == 0)

    def identity(self) -> dict[str, Any]:
        """What the messages depend on; the template is not among it."""
        hub = self.dataset.identity() if self.dataset else None
        return {
            "source": "Chat",
            "dataset": hub,
            **self.facts(),
            "files": [list(file) for file in self.files()],
        }

    def __str__(self) -> str:
        where = f"dataset {self.dataset.path}" if self.dataset else total(self.files())
        return f"chat: {where} ({self.described_split()})"


def _records_of(path: str, faults: Faults) -> Iterator[Record]:
    if path.endswith(".parquet"):
        yield from _rows(path)
    elif path.endswith(".json"):
        yield from _array(path)
    else:
        with reading(path), open_lines(path) as lines:
            yield from _parsed(enumerate(lines, 1), path, faults)


def _first_records(path: str, faults: Faults) -> Iterator[Record]:
    if path.endswith((".parquet", ".json")):
        yield from islice(_records_of(path, faults), LOOKED_AT)
        return
    with reading(path), open_lines(path) as stream:
        block = stream.read(FIRST_BLOCK)
    lines = block.split(b"\n")
    if len(block) == FIRST_BLOCK and len(lines) > 1:
        del lines[-1]  # cut off by the end of the block
    elif len(block) == FIRST_BLOCK:
        return  # one long line
    yield from _parsed(enumerate(lines, 1), path, faults)


def _parsed(lines: Iterator[tuple[int, bytes]], path: str, faults: Faults) -> Iterator[Record]:
    for number, line in lines:
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            record = parse_json(line, where)
        except UserError as error:
            faults.add(error)
            continue
        yield record, where


def _array(path: str) -> Iterator[Record]:
    """A file that is one JSON array, as ShareGPT's are; it is read whole."""
    with reading(path), open(path, "rb") as file:
        text = file.read()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}. One object a line belongs into a file named .jsonl.") from error
    if not isinstance(found, list):
        raise UserError(f"{path}: a JSON {type(found).__name__}, not an array of conversations.")
    yield from ((record, f"{path}: record {number}") for number, record in enumerate(found, 1))


def _rows(path: str) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet

    try:
        parquet = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from error
    number = 0
    with parquet, reading(path):
        for batch in parquet.iter_batches(ROWS):
            for record in batch.to_pylist():
                number += 1
                yield record, f"{path}: row {number}"
