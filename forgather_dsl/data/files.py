"""Files on disk: which ones a list of paths means, what is in their first block, and their text, streamed.

In: paths (files, folders, globs). Out: `FileInfo` rows, sorted, each file once; text in pieces, errors with the byte.
A hidden file (its name starts with a dot) is never meant by a folder or a glob.
"""

from __future__ import annotations

import codecs
import contextlib
import glob
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from forgather_dsl.data.documents import PIECE, slices
from forgather_dsl.data.problems import Problems, closest
from forgather_dsl.errors import UserError

FIRST_BLOCK = 1 << 16  # bytes that `check` looks at
MAGIC = {  # how files that are taken for text by mistake begin, and what to do about it
    b"\x1f\x8b": "it is gzip: unpack it (JsonLines reads .jsonl.gz as it is)",
    b"PK\x03\x04": "it is a zip archive: unpack it",
    b"PAR1": "it is Parquet: use the source Parquet(...)",
    b"\xff\xfe": "it is UTF-16: write encoding='utf-16'",
    b"\xfe\xff": "it is UTF-16: write encoding='utf-16'",
}


class FileInfo(NamedTuple):
    """A file as the cache keys see it."""

    path: str
    size: int  # bytes
    mtime_ns: int


def walk(folder: str, keep: Callable[[str], bool], skip: frozenset[str] = frozenset()) -> Iterator[FileInfo]:
    """Files under `folder` whose name `keep` accepts; folders named in `skip`, and hidden ones, are not entered."""
    with os.scandir(folder) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            if entry.name not in skip and not (entry.is_symlink() and is_loop(entry.path)):
                yield from walk(entry.path, keep, skip)
        elif keep(entry.name) and entry.is_file():
            facts = entry.stat()
            yield FileInfo(entry.path, facts.st_size, facts.st_mtime_ns)


def is_loop(link: str) -> bool:
    """Whether a link leads to a folder that it lies in."""
    target, here = Path(link).resolve(), Path(link).parent.resolve()
    return here.is_relative_to(target)


def expand(paths: Sequence[str], suffixes: tuple[str, ...]) -> list[FileInfo]:
    """The files meant by `paths`, in the order given, each once; a folder means its files with one of `suffixes`.

    Raises: UserError: naming every path that is missing, and every glob or folder without such a file.
    """
    problems = Problems()
    files = _expand(paths, suffixes, problems)
    problems.raise_any()
    return files


def _expand(paths: Sequence[str], suffixes: tuple[str, ...], problems: Problems) -> list[FileInfo]:
    found: dict[str, FileInfo] = {}
    if not paths:
        problems.add(
            "paths=() names no file: write paths=('corpus.txt',), a folder, or a glob such as 'texts/**/*.txt'."
        )
    for path in paths:
        full = os.path.abspath(os.path.expanduser(path))
        try:
            rows = list(_rows(full, suffixes))
        except OSError as error:
            problems.add(f"{path}: cannot be read: {error.strerror}.")
            continue
        if not rows:
            problems.add(_nothing_at(path, full, suffixes))
        found.update((row.path, row) for row in rows)
    return list(found.values())


def _rows(full: str, suffixes: tuple[str, ...]) -> Iterator[FileInfo]:
    if os.path.isdir(full):
        yield from walk(full, lambda name: name.endswith(suffixes))
    elif os.path.exists(full):  # before the glob: a file may well be called "notes[1].txt"
        facts = os.stat(full)
        yield FileInfo(full, facts.st_size, facts.st_mtime_ns)
    else:
        for match in sorted(glob.glob(full, recursive=True)):
            if os.path.isfile(match):
                facts = os.stat(match)
                yield FileInfo(match, facts.st_size, facts.st_mtime_ns)


def _nothing_at(path: str, full: str, suffixes: tuple[str, ...]) -> str:
    if os.path.isdir(full):
        wanted = " or ".join(f"*{suffix}" for suffix in suffixes if suffix)
        return f"{path}: this folder has no file{f' named {wanted}' if wanted else ''}."
    if glob.has_magic(path):
        return f"{path}: this pattern matches no file (looked from {os.getcwd()})."
    folder = os.path.dirname(full)
    if not os.path.isdir(folder):
        return f"{path}: no such file; there is no folder {folder} either."
    near = closest(os.path.basename(full), os.listdir(folder))
    hint = f" Did you mean {near!r}?" if near else ""
    return f"{path}: no such file or folder in {folder}.{hint}"


def check_each(paths: Sequence[str], suffixes: tuple[str, ...], check_file: Callable[[FileInfo], None]) -> None:
    """Check every file that `paths` mean. An empty file is a problem if it is named itself, or is all there is.

    Raises: UserError: with all the problems.
    """
    problems = Problems()
    files = _expand(paths, suffixes, problems)
    named = {os.path.abspath(os.path.expanduser(path)) for path in paths}
    nothing = all(file.size == 0 for file in files)
    for file in files:
        if file.size == 0:
            if nothing or file.path in named:
                problems.add(f"{file.path}: the file is empty.")
            continue
        try:
            check_file(file)
        except UserError as error:
            problems.add(str(error))
    problems.raise_any()


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Make a `UserError` that names the file of what the system, or an unpacker, says about it."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UserError(f"{path}: cannot be read, or is damaged: {what}.") from error


def total(files: Sequence[FileInfo]) -> str:
    """Number and size of files, for a banner."""
    return f"{len(files)} file{'' if len(files) == 1 else 's'}, {sum(file.size for file in files) / 1e6:.1f} MB"


def check_text(path: str, encoding: str) -> None:
    """Look at a file's first block. Raises: UserError: it is binary, or not in this encoding."""
    with reading(path), open(path, "rb") as file:
        head = file.read(FIRST_BLOCK)
    for _ in decode(iter([head]), path, encoding, final=False):
        pass
    zero = head.find(0)
    if zero >= 0 and is_utf8(encoding):
        raise UserError(f"{path}: not text: byte {zero} is 0x00.{_advice(head)}")


def read_text(path: str, encoding: str) -> Iterator[str]:
    """The text of a file in pieces cut at line ends; memory stays at a few blocks, whatever its size.

    Line ends are kept as they are; a byte-order mark is dropped.
    Raises: UserError: naming the first byte that is not in this encoding.
    """
    held = ""
    with reading(path), open(path, "rb") as file:
        for text in decode(iter(lambda: file.read(PIECE), b""), path, encoding):
            text = held + text
            end = text.rfind("\n") + 1 or (len(text) if len(text) >= PIECE else 0)
            yield from slices(text[:end])
            held = text[end:]
    yield from slices(held)


def decode(blocks: Iterator[bytes], path: str, encoding: str, final: bool = True) -> Iterator[str]:
    """Decode blocks of bytes one by one; a character may lie across two. `final`: the last one must be complete."""
    decoder = codecs.getincrementaldecoder("utf-8" if is_utf8(encoding) else encoding)()
    offset = pending = 0  # bytes of the file that lie before this block; of them, not yet decoded
    head = b""
    try:
        for block in blocks:
            pending = len(decoder.getstate()[0])
            head = head or block
            if offset == 0 and is_utf8(encoding) and block.startswith(codecs.BOM_UTF8):
                block, offset = block[3:], 3
            yield decoder.decode(block)
            offset += len(block)
        if final:
            pending = len(decoder.getstate()[0])
            yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        at = offset - pending + error.start
        byte = f"byte {at} (0x{error.object[error.start]:02x})"
        raise UserError(f"{path}: not {encoding} text: {byte}: {error.reason}.{_advice(head)}") from error


def is_utf8(encoding: str) -> bool:
    """Whether an encoding's name means UTF-8, with or without a byte-order mark."""
    return codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")


def _advice(head: bytes) -> str:
    for magic, advice in MAGIC.items():
        if head.startswith(magic):
            return f" By its first bytes {advice}."
    if b"\0" in head:
        return " It looks binary: name the text files by a glob, such as paths=('folder/**/*.txt',)."
    return " If it is text in an older encoding, write encoding='latin-1' (or 'cp1252', ...)."
