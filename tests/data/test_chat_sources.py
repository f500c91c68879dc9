"""Conversations from every usual shape and file; what is wrong with records is told with its place, all at once."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from forgather_dsl.data.bpe import SMALLEST
from forgather_dsl.data.chat import Chat
from forgather_dsl.data.chat_source import Faults
from forgather_dsl.data.stdlib_chat import StdlibChat
from forgather_dsl.data.tokenizers import TrainedBPE
from forgather_dsl.errors import UserError

SAID = [{"role": "user", "content": "One?"}, {"role": "assistant", "content": "Two."}]
COMMON: dict[str, Any] = {
    "shape": "auto",
    "template": None,
    "system": None,
    "train_on": "assistant",
    "too_long": "truncate",
    "bad": "refuse",
    "split": "all",
    "held_out": 0.0,
}


def chat(*paths: Any, **changes: Any) -> Chat:
    options = {"dataset": None, "name": None, "subset_split": "train", "streaming": False, **COMMON, **changes}
    return Chat(paths=tuple(map(str, paths)), **options)


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(source: Any) -> list[Any]:
    faults = Faults(source.skip)
    found = list(source.conversations(faults))
    faults.end()
    return found


SHAPES = {
    "messages": {"messages": SAID},
    "parts": {"messages": [SAID[0], {"role": "assistant", "content": [{"type": "text", "text": "Two."}]}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "One?"}, {"from": "gpt", "value": "Two."}]},
    "prompt": {"prompt": "One?", "completion": "Two."},
    "response": {"prompt": "One?", "response": "Two."},
    "prompt of messages": {"prompt": [SAID[0]], "completion": [SAID[1]]},
    "alpaca": {"instruction": "One?", "input": "", "output": "Two."},
}


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_is_the_same_conversation(name: str, tmp_path: Path) -> None:
    (one,) = read(chat(write(tmp_path / "a.jsonl", SHAPES[name])))
    assert one.messages == SAID
    assert one.where == f"{tmp_path}/a.jsonl:1"


def test_what_else_messages_have_is_kept_for_the_template(tmp_path: Path) -> None:
    call = [{"function": {"name": "f", "arguments": {}}}]
    record = {
        "messages": [
            SAID[0],
            {"role": "assistant", "tool_calls": call, "name": None},
            {"role": "tool", "content": "x"},
        ],
        "tools": [{"type": "function"}],
    }
    (one,) = read(chat(write(tmp_path / "a.jsonl", record)))
    assert one.messages[1] == {"role": "assistant", "content": "", "tool_calls": call}
    assert one.tools == [{"type": "function"}]


def test_inputs_of_alpaca_and_system_messages(tmp_path: Path) -> None:
    record = {"instruction": "Add.", "input": "1 2", "output": "3"}
    path = write(tmp_path / "a.jsonl", record, {"messages": [{"role": "system", "content": "own"}, *SAID]})
    first, second = read(chat(path, system="Be brief."))
    assert first.messages[:2] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Add.\n\n1 2"},
    ]
    assert second.messages[0]["content"] == "own"


def test_every_kind_of_file_gives_the_same(tmp_path: Path) -> None:
    import datasets
    import pyarrow
    import pyarrow.parquet

    records = [{"messages": [SAID[0], {"role": "assistant", "content": f"{i}"}]} for i in range(3)]
    write(tmp_path / "a.jsonl", *records)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(records, indent=1))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "d.parquet")
    datasets.Dataset.from_list(records).save_to_disk(str(tmp_path / "saved"))
    expected = [one.messages for one in read(chat(tmp_path / "a.jsonl"))]
    for name in ("b.jsonl.gz", "c.json", "d.parquet"):
        source = chat(tmp_path / name)
        source.check()
        assert [one.messages for one in read(source)] == expected, name
    saved = chat(dataset=str(tmp_path / "saved"))
    saved.check()
    assert [one.messages for one in read(saved)] == expected
    assert read(saved)[1].where == f"{tmp_path}/saved: row 2"
    assert "row 3" in read(chat(tmp_path / "d.parquet"))[2].where


def test_bad_records_are_told_with_their_lines_all_at_once(tmp_path: Path) -> None:
    wrong = [
        ({"messages": [{"role": "asistant", "content": "x"}]}, "2: message 1: role 'asistant' is none of system, "),
        ({"messages": []}, "3: no messages."),
        ({"messages": [SAID[0]]}, "4: the assistant says nothing"),
        ({"text": "x"}, "5: no shape that is known; there is 'text'. Known are messages; conversations; prompt and"),
        (
            {"messages": [SAID[0], {"role": "assistant", "content": ""}]},
            "6: message 2: the assistant's content is empty",
        ),
        ({"messages": [SAID[0], {"role": "assistant", "content": 5}]}, "7: message 2: content is int, not text."),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "8: message 1: a part of type 'image'"),
        ({"messages": "x"}, "9: messages is str, not a list of messages."),
    ]
    path = write(tmp_path / "a.jsonl", {"messages": SAID}, *(record for record, _ in wrong))
    with open(path, "a") as file:
        file.write("{oops\n")
    for action in (chat(path).check, lambda: read(chat(path))):
        with pytest.raises(UserError) as caught:
            action()
        lines = str(caught.value).splitlines()
        assert len(lines) == len(wrong) + 1
        for line, (_, message) in zip(lines, wrong):
            assert line.startswith(f"{path}:{message}"), line
        assert lines[-1].startswith(f"{path}:10: not JSON")
    assert "Did you mean 'assistant'?" in lines[0]
    skipping = chat(path, bad="skip")
    skipping.check()
    assert [one.messages for one in read(skipping)] == [SAID]


def test_many_bad_records_end_the_reading(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *[{"messages": [SAID[0]]}] * 50)
    with pytest.raises(UserError) as caught:
        read(chat(path))
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert lines[-1] == "... and perhaps more; bad='skip' leaves such records out"
    with pytest.raises(UserError, match="the assistant says nothing"):
        chat(path, bad="skip").check()


def test_a_shape_that_is_named_is_required(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"messages": SAID})
    with pytest.raises(UserError, match="no conversations; there is 'messages'"):
        read(chat(path, shape="sharegpt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"messages": []}', "a JSON dict, not an array"), ("[1", "not JSON: .* belongs into a file named .jsonl")],
)
def test_files_that_are_no_arrays(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        chat(tmp_path / "a.json").check()


def test_paths_and_dataset_exclude_each_other(tmp_path: Path) -> None:
    for source in ({"dataset": None}, {"dataset": "org/name", "paths": ("a",)}):
        with pytest.raises(UserError, match="one of them"):
            chat(*source.get("paths", ()), dataset=source["dataset"])  # type: ignore[misc]


def test_a_conversation_is_held_out_whole_and_so_are_its_copies(tmp_path: Path) -> None:
    records = [{"messages": [SAID[0], {"role": "assistant", "content": f"{i % 50}"}]} for i in range(100)]
    path = write(tmp_path / "a.jsonl", *records)
    train, held = (read(chat(path, split=split, held_out=0.2)) for split in ("train", "held_out"))
    sides = [{one.messages[1]["content"] for one in side} for side in (train, held)]
    assert len(train) + len(held) == 100
    assert not sides[0] & sides[1]
    assert 4 <= len(held) <= 40


@pytest.mark.parametrize(("count", "held"), [(2, 1), (5, 1), (19, 3)])
def test_of_few_conversations_some_are_held_out(count: int, held: int, tmp_path: Path) -> None:
    records = [{"messages": [SAID[0], {"role": "assistant", "content": f"{i}"}]} for i in range(count)]
    path = write(tmp_path / "a.jsonl", *records)
    sides = [read(chat(path, split=split, held_out=0.2)) for split in ("train", "held_out")]
    assert [len(side) for side in sides] == [count - held, held]


@pytest.mark.exhaustive
def test_the_library_asks_about_itself() -> None:
    source = StdlibChat(**{**COMMON, "template": "plain", "held_out": 0.05, "split": "train"})
    source.check()
    found = read(source)
    assert len(found) > 1000
    assert found == read(source)
    assert all(len(one.messages) in (2, 4, 6) for one in found)
    dumps = [one for one in found if any("function json.dumps " in str(m["content"]) for m in one.messages)]
    names = {m["content"].split()[4] for one in found for m in one.messages if m["role"] == "user"}
    assert dumps or "textwrap.wrap" in names
    tokenizer = TrainedBPE(vocab_size=SMALLEST + 40, source=source, sample_bytes=20_000)
    assert tokenizer.decode(tokenizer.encode("What does")) == "What does"
