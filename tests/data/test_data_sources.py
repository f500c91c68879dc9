"""Sources read what is there, byte for byte, and say about anything else which file, which byte, and what to write."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forgather_dsl.data import sources
from forgather_dsl.data.sources import JsonLines, Parquet, Stdlib, split_on
from forgather_dsl.errors import UserError


def json_lines(*paths, field="text"):
    return JsonLines(paths=tuple(map(str, paths)), field=field, split="all", held_out=0.0)


def parquet(*paths, field="text"):
    return Parquet(paths=tuple(map(str, paths)), field=field, split="all", held_out=0.0)


def error_of(function, *args) -> str:
    with pytest.raises(UserError) as caught:
        function(*args)
    assert caught.value.exit_code == 2
    return str(caught.value)


# ---- Stdlib


def test_stdlib_is_the_library_without_tests_and_installed_packages():
    source = Stdlib(split="all", held_out=0.0)
    source.check()
    files = [path for path, _, _ in source.identity()["files"]]
    assert 300 < len(files) < 700
    assert any(path.endswith("/argparse.py") for path in files)
    assert any(path.endswith("/json/decoder.py") for path in files)
    assert not [path for path in files if "/test/" in path or "-packages" in path or "/encodings/" in path]
    texts = list(source.documents())
    assert 6e6 < sum(map(len, texts)) < 12e6
    assert Path(json.__file__).read_text(encoding="utf-8") in texts
    assert "MB (all of it)" in str(source)
    assert f"{len(files)} files" in str(source)


def test_the_identity_of_the_stdlib_opens_no_file(monkeypatch):
    source = Stdlib(split="train", held_out=0.05)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda *a, **k: pytest.fail("a file was opened"))
        identity = source.identity()
    assert len(identity["files"]) > 300
    json.dumps(identity)


def test_a_python_without_library_source_falls_back_to_torch_and_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(sources.sysconfig, "get_path", lambda name: str(tmp_path / name))
    source = Stdlib(split="all", held_out=0.0)
    assert (
        f"Python {sys.version_info.major}.{sys.version_info.minor} has no library source here, instead torch's"
        in str(source)
    )
    assert any(path.endswith("/torch/serialization.py") for path, _, _ in source.identity()["files"])


def test_without_torch_the_installed_packages_are_read(monkeypatch, tmp_path):
    monkeypatch.setattr(sources.sysconfig, "get_path", lambda name: str(tmp_path / name))
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    assert "no .py files here" in error_of(Stdlib(split="all", held_out=0.0).check)
    (tmp_path / "purelib").mkdir()
    (tmp_path / "purelib" / "package.py").write_text("x = 1\n")
    source = Stdlib(split="all", held_out=0.0)
    assert "site-packages'" in str(source)
    assert list(source.documents()) == ["x = 1\n"]


def test_python_source_is_decoded_by_its_coding_cookie_and_skipped_if_it_cannot_be(tmp_path):
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'é'\n".encode("latin-1"))
    (tmp_path / "broken.py").write_bytes(b"name = '\xe9'\n")
    assert sources.read_python(str(tmp_path / "latin.py")) == "# -*- coding: latin-1 -*-\nname = 'é'\n"
    assert sources.read_python(str(tmp_path / "broken.py")) is None


# ---- TextFiles


def test_files_folders_and_globs_are_read_once_each_in_order(tmp_path, text_files):
    for name in ("b.txt", "a.txt", "deep/c.txt", "deep/.hidden.txt", "notes[1].txt", "empty.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("" if name == "empty.txt" else f"text of {name}\r\nsecond line")
    source = text_files(tmp_path / "notes[1].txt", tmp_path / "**" / "*.txt", tmp_path)
    source.check()
    names = ["notes[1].txt", "a.txt", "b.txt", "deep/c.txt"]
    assert list(source.documents()) == [f"text of {name}\r\nsecond line" for name in names]


def test_a_link_back_to_its_own_folder_is_not_followed(tmp_path, text_files):
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert list(text_files(tmp_path).documents()) == ["text"]


def test_every_missing_path_is_named_in_one_error(tmp_path, text_files):
    (tmp_path / "corpus.txt").write_text("text")
    (tmp_path / "nothing").mkdir()
    source = text_files(
        tmp_path / "corpsu.txt",
        tmp_path / "*.md",
        tmp_path / "nothing",
        tmp_path / "no" / "a.txt",
        tmp_path / "corpus.txt",
    )
    assert error_of(source.check).splitlines() == [
        f"{tmp_path}/corpsu.txt: no such file or folder in {tmp_path}. Did you mean 'corpus.txt'?",
        f"{tmp_path}/*.md: this pattern matches no file (looked from {os.getcwd()}).",
        f"{tmp_path}/nothing: this folder has no file.",
        f"{tmp_path}/no/a.txt: no such file; there is no folder {tmp_path}/no either.",
    ]
    assert error_of(list, source.documents()).count("\n") == 3
    assert error_of(text_files().check).startswith("paths=() names no file")


def test_a_long_list_of_problems_is_cut_short(tmp_path, text_files):
    lines = error_of(text_files(*(tmp_path / f"{i}.txt" for i in range(100))).check).splitlines()
    assert len(lines) == 21
    assert lines[-1] == "... and 80 more"


def test_an_empty_file_is_an_error_where_it_is_named_or_all_there_is(tmp_path, text_files):
    (tmp_path / "empty.txt").touch()
    assert error_of(text_files(tmp_path).check) == f"{tmp_path}/empty.txt: the file is empty."
    (tmp_path / "full.txt").write_text("text")
    text_files(tmp_path).check()
    assert error_of(text_files(tmp_path / "*.txt", tmp_path / "empty.txt").check).endswith("the file is empty.")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"caf\xe9 au lait", "byte 3 (0xe9): invalid continuation byte. If it is text in an older encoding"),
        (
            b"PAR1\x15\x04\x15\xff",
            "byte 7 (0xff): invalid start byte. By its first bytes it is Parquet: use the source",
        ),
        (
            gzip.compress(b"text", mtime=0),
            "byte 1 (0x8b): invalid start byte. By its first bytes it is gzip: unpack it",
        ),
        (
            "text".encode("utf-16"),
            "byte 0 (0xff): invalid start byte. By its first bytes it is UTF-16: write encoding=",
        ),
        (b"\x7fELF\x01\0\0", "not text: byte 5 is 0x00. It looks binary: name the text files by a glob"),
    ],
)
def test_what_is_not_text_is_named_with_the_byte(tmp_path, text_files, data, said):
    path = tmp_path / "file"
    path.write_bytes(data)
    message = error_of(text_files(path).check)
    assert message.startswith(f"{path}: not ")
    assert said in message


@pytest.mark.parametrize("at", [0, 10, 99_999, 262_143, 262_144, 262_145, 1_000_000])
def test_a_bad_byte_deep_in_a_file_is_named_when_it_is_read(tmp_path, text_files, at):
    data = bytearray("line é\n".encode() * 150_000)
    data[at] = 0xFF
    path = tmp_path / "big.txt"
    path.write_bytes(b"\xef\xbb\xbf" + data)  # a byte-order mark counts as bytes, though it is no text
    cut_character = data[at - 1] == 0xC3 if at else False  # then the first half is what is wrong
    message = error_of(list, text_files(path).documents())
    assert f"{path}: not utf-8 text: byte {at + 3 - cut_character} (0x" in message


def test_a_character_cut_off_by_the_end_of_the_file_is_an_error_but_not_of_the_first_block(tmp_path, text_files):
    path = tmp_path / "cut.txt"
    path.write_bytes(b"caf\xc3")
    text_files(path).check()  # the block may end within a character
    assert "byte 3 (0xc3): unexpected end of data" in error_of(list, text_files(path).documents())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1", "shift_jis"])
def test_text_comes_back_as_it_was_written_in_any_encoding(tmp_path, text_files, encoding):
    text = {"latin-1": "é\r\nà\n\n", "shift_jis": "日本\n語\n"}.get(encoding, "é\r\n日本 🙂\n\n") * 60_000
    path = tmp_path / "text"
    path.write_bytes(text.encode(encoding))
    source = text_files(path, encoding=encoding)
    source.check()
    assert list(source.documents()) == [text]


def test_an_unknown_encoding_and_an_empty_separator_are_refused(tmp_path, text_files):
    said = error_of(lambda: text_files(tmp_path, encoding="utf-88"))
    assert said.startswith("encoding='utf-88': Python knows no such encoding; did you mean 'utf")
    assert "write separator=None" in error_of(lambda: text_files(tmp_path, separator=""))


def test_an_unreadable_file_is_named(tmp_path, text_files, monkeypatch):
    path = tmp_path / "file.txt"
    path.write_text("text")

    def refuse(*args):
        raise PermissionError(13, "Permission denied")  # chmod does not stop root, who may run this

    monkeypatch.setattr("forgather_dsl.data.files.open", refuse, raising=False)
    assert error_of(text_files(path).check) == f"{path}: cannot be read, or is damaged: Permission denied."


def test_a_file_is_split_at_separators(tmp_path, text_files):
    path = tmp_path / "stories.txt"
    path.write_text("one\n<|endoftext|>\n\n<|endoftext|>two\n<|endoftext|>")
    assert list(text_files(path, separator="<|endoftext|>").documents()) == ["one\n", "two\n"]


def test_a_separator_may_lie_across_two_pieces():
    assert list(split_on("--", iter(["a--b-", "-c"]))) == ["a", "b", "c"]
    assert list(split_on("--", iter(["a-", "-b-", "-c"]))) == ["a", "b", "c"]


@settings(deadline=None, max_examples=300)
@given(
    text=st.text(st.sampled_from("a--\n"), max_size=40),
    size=st.integers(1, 5),
    separator=st.sampled_from(["-", "--", "-a-"]),
)
def test_splitting_in_pieces_is_splitting_at_once(text, size, separator):
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    assert list(split_on(separator, iter(pieces))) == [part for part in text.split(separator) if part.strip()]


def test_a_changed_file_or_parameter_changes_the_identity(tmp_path, text_files):
    path = tmp_path / "a.txt"
    path.write_text("text")
    first = text_files(path).identity()
    assert json.loads(json.dumps(first)) == first
    assert text_files(path).identity() == first
    assert text_files(path, held_out=0.1).identity() != first
    assert text_files(path, separator="x").identity() != first
    assert text_files(path, encoding="latin-1").identity() != first
    os.utime(path, ns=(1, 1))
    assert text_files(path).identity() != first


# ---- JsonLines


def test_json_lines_are_read_plain_and_gzipped(tmp_path):
    lines = b'{"text": "one\\nline", "id": 1}\n\n{"text": null}\n{"text": ""}\n{"text": "caf\\u00e9 \\ud83d"}\n'
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "other.txt").write_text("not meant")
    source = json_lines(tmp_path)
    source.check()
    assert list(source.documents()) == ["one\nline", "café \ufffd"] * 2
    assert str(source).startswith("JSON lines, field 'text': 2 files")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "a",}', "not JSON: "),
        (b'{"txet": "a", "id": 1}', "no field 'text'; there is 'txet', 'id'. Write field='txet'?"),
        (b'{"text": 3, "body": "a"}', "field 'text' holds int, not text; fields with text: 'body'."),
        (b'{"text": ["a"]}', "field 'text' holds list, not text; fields with text: none."),
        (b'[{"text": "a"}]', "a list, not an object with a field 'text'. One object a line is wanted"),
        (b"[", "not JSON: Expecting value at column 2. This is the start of one JSON array: write one object a line."),
        (b'"a"', "a str, not an object with a field 'text'."),
        (b'{"text": "caf\xe9"}', "not UTF-8: byte 13 of the line (0xe9)."),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path, line, said):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    for function in (json_lines(path).check, lambda: list(json_lines(path).documents())):
        message = error_of(function)
        assert message.startswith(f"{path}:2: {said}")


def test_a_bad_line_beyond_the_first_block_is_found_when_it_is_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' * 10_000 + b"{\n")
    json_lines(path).check()
    assert error_of(lambda: list(json_lines(path).documents())).startswith(f"{path}:10001: not JSON")


def test_the_first_line_may_be_longer_than_the_block(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "x" * 200_000}))
    json_lines(path).check()


def test_every_bad_file_is_in_the_error(tmp_path):
    (tmp_path / "a.jsonl").write_text("{")
    (tmp_path / "b.jsonl").write_text('{"id": "1"}')
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a"}' * 100)[:-20])
    (tmp_path / "d.jsonl.gz").write_bytes(b'{"text": "a"}')
    lines = error_of(json_lines(tmp_path).check).splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"{tmp_path}/{name}" for name in ("a.jsonl", "b.jsonl", "c.jsonl.gz", "d.jsonl.gz")
    ]
    assert "damaged" in lines[2]
    assert "Not a gzipped file" in lines[3]


def test_a_folder_without_json_lines_says_what_it_looked_for(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    assert error_of(json_lines(tmp_path).check) == f"{tmp_path}: this folder has no file named *.jsonl or *.jsonl.gz."


# ---- Parquet


def write_parquet(path, **columns):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=7)
    return path


def test_a_text_column_is_read_over_many_row_groups(tmp_path):
    import pyarrow

    texts = [f"row {i}\n" for i in range(3000)]
    write_parquet(tmp_path / "a.parquet", text=[*texts, None], id=range(3001))
    write_parquet(tmp_path / "b.parquet", text=pyarrow.array(["x", "x"]).dictionary_encode())
    source = parquet(tmp_path)
    source.check()
    assert list(source.documents()) == [*texts, "x", "x"]


def test_bad_parquet_is_named(tmp_path):
    import pyarrow

    path = write_parquet(tmp_path / "a.parquet", text=["a"], id=[1])
    assert error_of(parquet(path, field="txt").check) == (
        f"{path}: no field 'txt'; there is 'text', 'id'. Write field='text'?"
    )
    assert error_of(parquet(path, field="id").check) == f"{path}: field 'id' is int64, not text; text: 'text'."
    (tmp_path / "b.parquet").write_text("text, not Parquet")
    write_parquet(tmp_path / "c.parquet", text=pyarrow.array([], pyarrow.string()))
    (tmp_path / "d.parquet").touch()
    lines = error_of(parquet(tmp_path).check).splitlines()
    assert lines[0].startswith(f"{tmp_path}/b.parquet: not a Parquet file: ")
    assert lines[1:] == [f"{tmp_path}/c.parquet: no rows."]  # an empty file beside full ones is passed over


def test_a_damaged_page_is_a_user_error(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", text=[f"some text {i}" * 50 for i in range(200)])
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(data)
    assert f"{path}: cannot be read, or is damaged" in error_of(lambda: list(parquet(path).documents()))
