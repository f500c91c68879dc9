"""Where text comes from: `Stdlib` (on every machine, offline), `TextFiles`, `JsonLines`, `Parquet`, `HF`.

Each source yields documents (strings) of one split, checks itself cheaply, names itself for the caches
(`identity`) and for people (`str`). The base class and the split are in documents.py.
"""

from __future__ import annotations

import codecs
import encodings.aliases
import importlib.util
import io
import os
import sys
import sysconfig
import tokenize
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from forgather_dsl.data.documents import PIECE, Document, Source, in_memory
from forgather_dsl.data.files import FileInfo, check_each, check_text, expand, read_text, reading, total, walk
from forgather_dsl.data.hub import HF
from forgather_dsl.data.problems import closest
from forgather_dsl.data.records import JsonLines, Parquet
from forgather_dsl.errors import UserError

__all__ = ["HF", "JsonLines", "Parquet", "Source", "Stdlib", "TextFiles"]

# Not in the corpus: tests, generated tables, vendored wheels, demos, and what is installed beside the library.
NOT_STDLIB = frozenset(
    {
        *("site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"),
        *("pydoc_data", "lib2to3", "idlelib", "ensurepip", "turtledemo"),
    }
)


class Stdlib(Source):
    """The source code of Python's own library: about 450 files, 9 MB, no download; one document a file.

    A Python without library sources (zipped) falls back to installed packages: torch, then all of site-packages.
    The text differs between Python versions, so losses on it compare only with the same version.
    """

    def all_documents(self) -> Iterator[Document]:
        """One document a file; a file that is not in its declared encoding is left out."""
        for file in self.corpus()[1]:
            text = read_python(file.path)
            if text:
                yield in_memory(text)

    def corpus(self) -> tuple[str, list[FileInfo]]:
        """The corpus in words, and its files. Raises: UserError: no Python source on this machine."""
        for words, folder in self.places():
            if folder and os.path.isdir(folder):
                files = list(walk(folder, lambda name: name.endswith(".py"), NOT_STDLIB))
                if files:
                    return words, files
        looked = ", ".join(str(folder) for _, folder in self.places())
        raise UserError(f"Stdlib: no .py files here (looked in {looked}): write data=TextFiles(paths=('folder',)).")

    def places(self) -> list[tuple[str, str | None]]:
        """Where to look, best first: (words for the banner, folder)."""
        torch = importlib.util.find_spec("torch")  # finds, does not import
        torch_folder = os.path.dirname(torch.origin) if torch and torch.origin else None
        version = f"Python {sys.version_info.major}.{sys.version_info.minor}"
        missing = f"{version} has no library source here, instead"
        return [
            (f"{version}'s own source", sysconfig.get_path("stdlib")),
            (f"{missing} torch's", torch_folder),
            (f"{missing} site-packages'", sysconfig.get_path("purelib")),
        ]

    def check(self) -> None:
        """Raises: UserError: no Python source on this machine."""
        self.corpus()

    def identity(self) -> dict[str, Any]:
        """Split and files (path, size, time of change)."""
        files = [list(file) for file in self.corpus()[1]]
        return {"source": "Stdlib", "split": self.split, "held_out": self.held_out, "files": files}

    def __str__(self) -> str:
        words, files = self.corpus()
        return f"{words}: {total(files)} ({self.described_split()})"


def read_python(path: str) -> str | None:
    """Python source as the tokenizer of Python decodes it (coding cookie, UTF-8 otherwise), or None if it does not."""
    with reading(path), open(path, "rb") as file:
        data = file.read()
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        return io.TextIOWrapper(io.BytesIO(data), encoding).read()
    except (SyntaxError, UnicodeDecodeError):
        return None


class TextFiles(Source):
    """Plain text files; a folder means all its files, in every depth.

    `separator` None: each file is a document. Otherwise files are split on it (it belongs to no document), as in
    `separator="<|endoftext|>"`; documents of nothing but white space are dropped.
    """

    def __init__(
        self, *, paths: Sequence[str], encoding: str, separator: str | None, split: str, held_out: float
    ) -> None:
        """Raises: UserError: an encoding Python does not know, an empty separator, a bad split."""
        super().__init__(split=split, held_out=held_out)
        try:
            codecs.lookup(encoding)
        except LookupError:
            near = closest(encoding, [*encodings.aliases.aliases, "utf-8", "latin-1"])
            hint = f"; did you mean {near!r}?" if near else "; most text is 'utf-8'."
            raise UserError(f"encoding={encoding!r}: Python knows no such encoding{hint}") from None
        if separator == "":
            raise UserError("separator='' splits nothing: write separator=None for one document a file.")
        self.paths = (paths,) if isinstance(paths, str) else tuple(paths)
        self.encoding = encoding
        self.separator = separator

    def files(self) -> list[FileInfo]:
        """The files there are now."""
        return expand(self.paths, ("",))

    def all_documents(self) -> Iterator[Document]:
        """A document for each file that is not empty, or for each part between separators."""
        for file in self.files():
            read = partial(read_text, file.path, self.encoding)
            if self.separator is not None:
                yield from map(in_memory, split_on(self.separator, read()))
            elif file.size > PIECE:
                yield read
            elif file.size:
                yield in_memory("".join(read()))

    def check(self) -> None:
        """Raises: UserError: naming each path that is missing, empty, binary or in another encoding."""
        check_each(self.paths, ("",), lambda file: check_text(file.path, self.encoding))

    def identity(self) -> dict[str, Any]:
        """Parameters and files (path, size, time of change)."""
        return {
            "source": "TextFiles",
            "encoding": self.encoding,
            "separator": self.separator,
            "split": self.split,
            "held_out": self.held_out,
            "files": [list(file) for file in self.files()],
        }

    def __str__(self) -> str:
        return f"text: {total(self.files())} ({self.described_split()})"


def split_on(separator: str, pieces: Iterator[str]) -> Iterator[str]:
    """The texts between separators, in one pass: memory holds one of them; a separator may lie across two pieces."""
    held: list[str] = []
    tail = ""  # the end of what is held: where the first half of a separator could be
    for piece in pieces:
        held.append(piece)
        if separator in tail + piece:
            *texts, rest = "".join(held).split(separator)
            yield from (text for text in texts if text.strip())
            held = [rest]
            tail = rest[-len(separator) + 1 :] if len(separator) > 1 else ""
        else:
            tail = (tail + piece)[-len(separator) + 1 :] if len(separator) > 1 else ""
    last = "".join(held)
    if last.strip():
        yield last
