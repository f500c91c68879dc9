"""What is trained of a conversation, token by token, for templates in the shapes of model families; ids are transformers'."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_families import CHATML, LLAMA3, write_family

from forgather_dsl.data.chat import Chat
from forgather_dsl.data.chat_prompt import ask
from forgather_dsl.data.chat_tokens import ChatFile, tokenize_chat
from forgather_dsl.data.templates import NAMED, Conversation, Template, template_of
from forgather_dsl.data.tokenizers import Bytes, HFTokenizer, Tokenizer, count_tokens
from forgather_dsl.errors import UserError

FIRST = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi, I am café 日本 \U0001f642."}]
TWICE = [*FIRST, {"role": "user", "content": "The capital?"}, {"role": "assistant", "content": "Paris.\nIn France"}]
ENDED = [*TWICE, {"role": "user", "content": "Thanks"}]
CALL = {"type": "function", "function": {"name": "look_up", "arguments": {"what": "Paris"}}}
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
WITH_TOOL = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Where?"},
    {"role": "assistant", "tool_calls": [CALL]},
    {"role": "tool", "content": "France"},
    {"role": "assistant", "content": "In France."},
]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer of a family."""
    folder, made = tmp_path_factory.mktemp("families"), {}

    def of(name: str) -> Tokenizer:
        if name not in made:
            path = write_family(folder / name, name)
            made[name] = HFTokenizer(path=path, eos=None, vocab_size=count_tokens(path))
        return made[name]

    return of


@pytest.fixture
def chats(tmp_path: Path) -> Any:
    """A source of records."""

    def of(*records: Any, **changes: Any) -> Chat:
        (tmp_path / "chats.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        options: dict[str, Any] = {
            "paths": (str(tmp_path / "chats.jsonl"),),
            "dataset": None,
            "name": None,
            "subset_split": "train",
            "streaming": False,
            "shape": "auto",
            "template": None,
            "system": None,
            "train_on": "assistant",
            "too_long": "truncate",
            "bad": "refuse",
            "split": "all",
            "held_out": 0.0,
        }
        return Chat(**options | changes)

    return of


def parts(file: ChatFile, tokenizer: Tokenizer, which: int = 0) -> list[tuple[bool, str]]:
    """Runs of tokens of a conversation that are trained, or not, as text."""
    begin = int(file.ends[which - 1]) if which else 0
    ids, trained = file.array[begin : file.ends[which]], file.trained[begin : file.ends[which]] > 0
    cuts = [0, *(np.flatnonzero(np.diff(trained)) + 1).tolist(), len(ids)]
    return [(bool(trained[a]), tokenizer.decode(ids[a:b].tolist())) for a, b in itertools.pairwise(cuts)]


HEAD = "<|start_header_id|>{}<|end_header_id|>\n\n"
LLAMA_START = f"<|begin_of_text|>{HEAD.format('system')}Today Date: 26 Jul 2024\n\n"
EXPECTED = {
    "llama3": [
        (False, f"{LLAMA_START}<|eot_id|>{HEAD.format('user')}Hello?<|eot_id|>{HEAD.format('assistant')}"),
        (True, "Hi, I am café 日本 \U0001f642.<|eot_id|>"),
        (False, f"{HEAD.format('user')}The capital?<|eot_id|>{HEAD.format('assistant')}"),
        (True, "Paris.\nIn France<|eot_id|>"),
    ],
    "chatml": [
        (
            False,
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (True, "Hi, I am café 日本 \U0001f642.<|im_end|>"),
        (False, "\n<|im_start|>user\nThe capital?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "Paris.\nIn France<|im_end|>"),
    ],
    "mistral": [
        (False, "<s>[INST] Hello? [/INST]"),
        (True, " Hi, I am café 日本 \U0001f642.</s>"),
        (False, "[INST] The capital? [/INST]"),
        (True, " Paris.\nIn France</s>"),
    ],
    "marked": [
        (False, "<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "Hi, I am café 日本 \U0001f642.<|im_end|>"),
        (False, "\n<|im_start|>user\nThe capital?<|im_end|>\n<|im_start|>assistant\n"),
        (True, "Paris.\nIn France<|im_end|>"),
    ],
}


@pytest.mark.parametrize("family", EXPECTED)
@pytest.mark.parametrize("train_on", ["assistant", "last", "all"])
def test_each_token_is_trained_or_not_as_the_family_has_it(family: str, train_on: str, words: Any, chats: Any) -> None:
    tokenizer = words(family)
    file = tokenize_chat(chats({"messages": ENDED if train_on != "all" else TWICE}, train_on=train_on), tokenizer)
    found, turns = parts(file, tokenizer), EXPECTED[family]
    if train_on == "assistant":
        assert found == turns
    elif train_on == "last":
        assert found == [(False, "".join(text for _, text in turns[:3])), turns[3]]
    else:  # the first token is predicted by nothing
        first, *rest = found
        assert [first[0], *(trained for trained, _ in rest)] == [False, True]
        assert (first[1] + rest[0][1]).startswith("".join(text for _, text in turns))


@pytest.mark.parametrize("family", ["llama3", "chatml", "mistral", "marked", "thinking"])
def test_ids_are_those_of_transformers(family: str, words: Any, chats: Any) -> None:
    import transformers

    tokenizer = words(family)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tokenizer.path)
    messages = FIRST if family == "thinking" else TWICE
    asked = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": family == "marked"}
    theirs_chat = theirs.apply_chat_template(messages, **asked)
    if family == "llama3":  # they tell the date
        template = tokenizer.loaded.config["chat_template"].replace("strftime_now is defined", "false")
        theirs_chat = theirs.apply_chat_template(messages, chat_template=template, **asked)
    file = tokenize_chat(chats({"messages": messages}), tokenizer)
    ids = theirs_chat["input_ids"]
    assert file.array.tolist() == ids[: file.num_tokens]
    assert len(ids) - file.num_tokens <= 1, "the line end after the last turn is not read"
    if family == "marked":
        assert (file.trained > 0).astype(int).tolist() == theirs_chat["assistant_masks"][: file.num_tokens]


def test_calls_of_tools_are_trained_and_their_results_are_not(words: Any, chats: Any) -> None:
    tokenizer = words("chatml")
    file = tokenize_chat(chats({"messages": WITH_TOOL, "tools": TOOLS}), tokenizer)
    found = parts(file, tokenizer)
    assert [text for trained, text in found if trained] == [
        '<tool_call>\n{"name": "look_up"}\n</tool_call><|im_end|>',
        "In France.<|im_end|>",
    ]
    assert found[0][1].startswith('<|im_start|>system\nBe brief.\n\n# Tools\n<tools>\n{"type": "function"')
    assert "<tool_response>\nFrance\n</tool_response>" in found[2][1]
    tokenizer = words("llama3")
    found = parts(tokenize_chat(chats({"messages": WITH_TOOL}), tokenizer), tokenizer)
    assert found[1] == (True, '{"name": "look_up", "parameters": {"what": "Paris"}}<|eot_id|>')


def test_a_template_that_writes_earlier_turns_otherwise_is_refused_with_the_place(words: Any, chats: Any) -> None:
    tokenizer = words("thinking")
    with pytest.raises(UserError) as caught:
        tokenize_chat(chats({"messages": TWICE}), tokenizer)
    said = str(caught.value)
    assert "chats.jsonl:1: the tokenizer's template writes message 2 otherwise when others follow" in said
    assert "'<|im_start|>user\\nHello?<|im_end|>\\n<|im_start|>assistant\\n<think>" not in said  # some of it is enough
    assert "assistant\\n<think>" in said
    assert "write train_on='last'" in said
    last = tokenize_chat(chats({"messages": TWICE}, train_on="last"), tokenizer)
    assert parts(last, tokenizer)[-1] == (True, "<think>\n\n</think>\n\nParis.\nIn France<|im_end|>")
    named = tokenize_chat(chats({"messages": TWICE}, template="chatml"), tokenizer)
    assert [text for trained, text in parts(named, tokenizer) if trained][1] == "Paris.\nIn France<|im_end|>"


def test_a_token_over_the_border_of_a_turn_is_refused(words: Any, chats: Any) -> None:
    messages = [FIRST[0], {"role": "assistant", "content": "\n\nHi"}]
    with pytest.raises(
        UserError, match=r"chats.jsonl:1: where a turn of the assistant begins, .* one token of '\\n\\n\\n'"
    ):
        tokenize_chat(chats({"messages": messages}), words("chatml"))
    file = tokenize_chat(chats({"messages": messages}), words("llama3"))  # whose template trims
    assert parts(file, words("llama3"))[1] == (True, "Hi<|eot_id|>")


def test_a_special_token_in_a_content_is_refused_or_left_out(words: Any, chats: Any) -> None:
    bad = [FIRST[0], {"role": "assistant", "content": "Hi<|im_end|>\n<|im_start|>user"}]
    with pytest.raises(UserError, match=r"chats.jsonl:2: message 2 holds '<\|im_end\|>', which is a token of its own"):
        tokenize_chat(chats({"messages": TWICE}, {"messages": bad}), words("chatml"))
    file = tokenize_chat(chats({"messages": TWICE}, {"messages": bad}, bad="skip"), words("chatml"))
    assert (file.num_documents, file.num_skipped) == (1, 1)


def test_bytes_are_those_of_the_trained_text(words: Any, chats: Any) -> None:
    for family in EXPECTED:
        file = tokenize_chat(chats({"messages": TWICE}), words(family))
        space = 2 if family == "mistral" else 0
        assert file.num_bytes == sum(len(TWICE[i]["content"].encode()) for i in (1, 3)) + space
        assert file.num_trained == np.count_nonzero(file.trained)
        assert file.num_trained > file.num_documents


@pytest.mark.parametrize("name", NAMED)
def test_named_templates_are_exact_for_every_turn(name: str, words: Any, chats: Any) -> None:
    tokenizer = words("mistral" if name == "mistral" else "llama3" if name == "llama3" else "chatml")
    file = tokenize_chat(
        chats({"messages": [{"role": "system", "content": "Be brief."}, *ENDED]}, template=name), tokenizer
    )
    trained = [text for trained, text in parts(file, tokenizer) if trained]
    end = {"llama3": "<|eot_id|>", "mistral": "</s>"}.get(name, "<|im_end|>")
    lead = " " if name in ("mistral", "plain") else ""
    assert trained == [f"{lead}{TWICE[1]['content']}{end}", f"{lead}{TWICE[3]['content']}{end}"]


def test_named_templates_write_what_the_families_write(words: Any) -> None:
    one = Conversation(TWICE, None, "here")
    for name, family in (("llama3", "llama3"), ("mistral", "mistral"), ("chatml", "chatml")):
        named, own = (template_of(wanted, words(family)).render(one) for wanted in (name, None))
        start = {"llama3": LLAMA_START.removeprefix("<|begin_of_text|>") + "<|eot_id|>"}.get(name, "")
        start = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" if name == "chatml" else start
        assert named == own.replace(start, "", 1)


def test_bytes_have_a_turn_end_too(chats: Any) -> None:
    tokenizer = Bytes(vocab_size=257)
    file = tokenize_chat(chats({"messages": TWICE}, template="plain"), tokenizer)
    assert [text for trained, text in parts(file, tokenizer) if trained][1] == " Paris.\nIn France<|endoftext|>"
    assert file.array[-1] == tokenizer.eos_id


def test_a_question_is_asked_as_it_was_trained(words: Any, chats: Any) -> None:
    for family, end in (
        ("llama3", "<|eot_id|>"),
        ("chatml", "<|im_end|>"),
        ("mistral", "</s>"),
        ("thinking", "<|im_end|>"),
    ):
        tokenizer = words(family)
        source = chats({"messages": FIRST})
        asked = ask(source, tokenizer, "Hello?")
        file = tokenize_chat(source, tokenizer)
        begins = int(np.flatnonzero(file.trained)[0])
        assert asked.tokens == file.array[:begins].tolist()
        assert tokenizer.decode([asked.end]) == end


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("chatm", "template='chatm': no such name or file. Did you mean 'chatml'?"),
        ("{% for m in messages %}", "the template: not a Jinja template: line 1"),
        ("{{ messages | nothing }}", "the template: not a Jinja template: line 1: No filter named 'nothing'."),
    ],
)
def test_templates_that_cannot_be_used(wanted: str, message: str, words: Any) -> None:
    with pytest.raises(UserError) as caught:
        template_of(wanted, words("chatml"))
    assert str(caught.value).startswith(message)


def test_a_tokenizer_without_a_template_says_what_to_write() -> None:
    with pytest.raises(UserError, match="it has no chat template: write template= one of 'chatml', 'llama3'"):
        template_of(None, Bytes(vocab_size=257))


def test_templates_run_in_a_sandbox_and_say_what_they_refuse(words: Any, chats: Any) -> None:
    wrong = [FIRST[1], FIRST[0], FIRST[1]]
    with pytest.raises(UserError, match=r"chats.jsonl:1: .*Conversation roles must alternate"):
        tokenize_chat(chats({"messages": wrong}), words("mistral"))
    for text in ("{{ messages.__class__.__mro__ }}", "{% set x = messages.append(1) %}", "{{ strftime_now('%Y') }}"):
        with pytest.raises(UserError, match="the template cannot write this"):
            Template(text, "the template", {}).render(Conversation(FIRST, None, "here"))


def test_what_is_exported_has_the_template_that_was_trained_and_ends_with_its_turns(tmp_path: Path) -> None:
    from forgather_dsl import Chat as ChatSpec
    from forgather_dsl import Experiment, Llama
    from forgather_dsl import HFTokenizer as TokenizerSpec
    from forgather_dsl.interop.words import generation_of, tokenizer_of

    path = write_family(tmp_path / "llama3", "llama3")
    for template, eos, ends in ((None, None, 1), ("llama3", "<|begin_of_text|>", [0, 1])):
        experiment = Experiment(  # type: ignore[abstract]
            data=ChatSpec(paths="not-there.jsonl", template=template),
            tokenizer=TokenizerSpec(path=path, eos=eos),
            model=Llama(vocab_size=400, dim=32, num_layers=1, num_heads=2),
            steps=1,
        )
        tokenizer = tokenizer_of(experiment)
        tokenizer.save(tmp_path / "out")
        saved = (tmp_path / "out" / "chat_template.jinja").read_text()
        assert saved == (NAMED["llama3"] if template else LLAMA3)
        assert generation_of(experiment, tokenizer)["eos_token_id"] == ends


def test_several_templates_of_a_tokenizer(words: Any, tmp_path: Path) -> None:
    path = write_family(tmp_path / "several", "chatml")
    (tmp_path / "several" / "chat_template.jinja").unlink()
    config = json.loads((tmp_path / "several" / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "{{ tools }}"}]
    (tmp_path / "several" / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = HFTokenizer(path=path, eos=None, vocab_size=count_tokens(path))
    assert template_of(None, tokenizer).text == CHATML
    assert template_of(None, tokenizer, tools=True).text == "{{ tools }}"
