"""Text in a field of records: `JsonLines` (.jsonl, .jsonl.gz) and `Parquet`, streamed line by line or batch by batch.

A record whose field is null is no document. Half of a surrogate pair, which JSON can write and UTF-8 cannot, becomes
U+FFFD. pyarrow is imported only when a Parquet file is opened.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, cast

from forgather_dsl.data.documents import Document, Source, in_memory
from forgather_dsl.data.files import FIRST_BLOCK, FileInfo, check_each, expand, reading, total
from forgather_dsl.data.problems import no_such_field, text_of
from forgather_dsl.errors import UserError

if TYPE_CHECKING:
    import pyarrow.parquet

ROWS = 1024  # rows decoded at a time


class Records(Source):
    """Files of records with text in one field; a folder means its files with one of `suffixes`."""

    kind = ""
    suffixes: tuple[str, ...] = ()

    def __init__(self, *, paths: Sequence[str], field: str, split: str, held_out: float) -> None:
        """Raises: UserError: a bad split."""
        super().__init__(split=split, held_out=held_out)
        self.paths = (paths,) if isinstance(paths, str) else tuple(paths)
        self.field = field

    def files(self) -> list[FileInfo]:
        """The files there are now."""
        return expand(self.paths, self.suffixes)

    def identity(self) -> dict[str, Any]:
        """Parameters and files (path, size, time of change)."""
        return {
            "source": type(self).__name__,
            "field": self.field,
            "split": self.split,
            "held_out": self.held_out,
            "files": [list(file) for file in self.files()],
        }

    def __str__(self) -> str:
        return f"{self.kind}, field {self.field!r}: {total(self.files())} ({self.described_split()})"


class JsonLines(Records):
    """One JSON object a line, plain or gzip (by the name's `.gz`); blank lines are passed over."""

    kind = "JSON lines"
    suffixes = (".jsonl", ".jsonl.gz")

    def all_documents(self) -> Iterator[Document]:
        """One document a line. Raises: UserError: naming file and line of what does not parse or has no such text."""
        for file in self.files():
            with reading(file.path), open_lines(file.path) as lines:
                for number, line in enumerate(lines, 1):
                    text = self.parse(line, f"{file.path}:{number}")
                    if text:
                        yield in_memory(text)

    def parse(self, line: bytes, where: str) -> str | None:
        """The text of one line; None for a blank line or a null. Raises: UserError: starting with `where`."""
        line = line.rstrip()
        if not line:
            return None
        text = text_of(parse_json(line, where), self.field, where)
        return text and without_lone_surrogates(text)

    def check(self) -> None:
        """Parse the first block of each file. Raises: UserError: naming each file (and line) that is wrong."""
        check_each(self.paths, self.suffixes, self._check_file)

    def _check_file(self, file: FileInfo) -> None:
        with reading(file.path), open_lines(file.path) as stream:
            block = stream.read(FIRST_BLOCK)
        lines = block.split(b"\n")
        if len(block) == FIRST_BLOCK:
            del lines[-1]  # cut off by the end of the block
        for number, line in enumerate(lines, 1):
            self.parse(line, f"{file.path}:{number}")


def parse_json(line: bytes, where: str) -> Any:
    """The value of one line. Raises: UserError: starting with `where`."""
    line = line.rstrip()
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} of the line (0x{error.object[error.start]:02x})"
        raise UserError(f"{where}: not UTF-8: {byte}.") from error
    except json.JSONDecodeError as error:
        hint = " This is the start of one JSON array: write one object a line." if line == b"[" else ""
        raise UserError(f"{where}: not JSON: {error.msg} at column {error.colno}.{hint}") from error
    except RecursionError as error:
        raise UserError(f"{where}: not readable: JSON nested too deep.") from error


def open_lines(path: str) -> IO[bytes]:
    """A file of lines, unpacked if its name ends in .gz."""
    return cast("IO[bytes]", gzip.open(path, "rb")) if path.endswith(".gz") else open(path, "rb")


def without_lone_surrogates(text: str) -> str:
    """The text, with halves of surrogate pairs joined where both are there, and replaced where one is missing."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class Parquet(Records):
    """A column of Parquet files, read a batch of rows at a time, this column alone."""

    kind = "Parquet"
    suffixes = (".parquet",)

    def all_documents(self) -> Iterator[Document]:
        """One document a row. Raises: UserError: naming the file that is not Parquet or has no such column of text."""
        for file in self.files():
            with self.open(file.path) as parquet, reading(file.path):
                for batch in parquet.iter_batches(ROWS, columns=[self.field]):
                    yield from (in_memory(text) for text in batch.column(0).to_pylist() if text)

    def open(self, path: str) -> pyarrow.parquet.ParquetFile:
        """Open a file and look at its schema. Raises: UserError: not Parquet, no such column, or not text."""
        import pyarrow
        import pyarrow.parquet

        try:
            parquet = pyarrow.parquet.ParquetFile(path)
        except pyarrow.ArrowException as error:
            raise UserError(f"{path}: not a Parquet file: {error}") from error
        types = {column.name: column.type for column in parquet.schema_arrow}
        if self.field not in types:
            raise UserError(no_such_field(self.field, types, path))
        if not _is_text(types[self.field]):
            texts = ", ".join(repr(name) for name, kind in types.items() if _is_text(kind))
            raise UserError(f"{path}: field {self.field!r} is {types[self.field]}, not text; text: {texts or 'none'}.")
        return parquet

    def check(self) -> None:
        """Read the footer of each file. Raises: UserError: naming each that is wrong."""
        check_each(self.paths, self.suffixes, self._check_file)

    def _check_file(self, file: FileInfo) -> None:
        with self.open(file.path) as parquet:
            if parquet.metadata.num_rows == 0:
                raise UserError(f"{file.path}: no rows.")


def _is_text(kind: Any) -> bool:
    import pyarrow.types

    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    return pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind) or pyarrow.types.is_string_view(kind)
