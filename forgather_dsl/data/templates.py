"""Chat templates: messages in, text out, and which parts of the text the assistant has to write itself.

A template is Jinja as transformers renders it: the tokenizer's own, one of `NAMED`, a file, or a text. It runs in a
sandbox and is not told the date: text that changed every day would never be found in a cache. Where it has
`{% generation %}` marks they are taken at their word; otherwise `spans` renders the conversation up to each turn.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

from forgather_dsl.data.problems import closest
from forgather_dsl.data.tokenizers import Tokenizer
from forgather_dsl.errors import UserError

__all__ = ["NAMED", "Conversation", "Span", "Template", "template_of"]

ASSISTANT = "assistant"
_BEGIN, _END = "\ufdd0", "\ufdd1"  # noncharacters: no text has them
_CONTEXT = 40  # characters shown on each side of a place

NAMED = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}"
        "<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% set said = namespace(system='') %}{% for m in messages %}"
        "{% if m.role == 'system' %}{% set said.system = m.content ~ '\n\n' %}"
        "{% elif m.role == 'user' %}[INST] {{ said.system }}{{ m.content }} [/INST]{% set said.system = '' %}"
        "{% elif m.role == 'assistant' %} {{ m.content | trim }}{{ eos_token }}"
        "{% else %}{{ raise_exception('this template knows system, user and assistant, not ' ~ m.role) }}{% endif %}"
        "{% endfor %}"
    ),
    "plain": (
        "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}{{ eos_token if m.role == 'assistant' else '' }}\n"
        "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
}


class Conversation(NamedTuple):
    """Messages in order, and where they were read."""

    messages: list[dict[str, Any]]  # role, content, and whatever else the record has for the template
    tools: list[Any] | None
    where: str


class Span(NamedTuple):
    """Characters of a rendered text that are trained."""

    start: int
    stop: int


class _Generation(jinja2.ext.Extension):
    """`{% generation %}`: what is inside is marked."""

    tags = {"generation"}  # noqa: RUF012  as jinja2 has it

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        """The block as a call of `_marked`."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        return f"{_BEGIN}{caller()}{_END}"


class Template:
    """A chat template with the special tokens of a tokenizer."""

    def __init__(self, text: str, name: str, special: Mapping[str, str]) -> None:
        """`special`: names that the template may use, such as eos_token. Raises: UserError: it is not Jinja."""
        self.text, self.name, self.special = text, name, dict(special)
        try:
            self._compiled = _environment().from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise UserError(f"{name}: not a Jinja template: line {error.lineno}: {error.message}") from error
        self.marked = "generation" in text and "endgeneration" in text

    def render(self, conversation: Conversation, count: int | None = None, prompt: bool = False) -> str:
        """The text of the first `count` messages; with `prompt` up to where the assistant begins to write.

        Raises: UserError: the template refuses them.
        """
        return self._render(conversation, count, prompt).replace(_BEGIN, "").replace(_END, "")

    def _render(self, conversation: Conversation, count: int | None, prompt: bool) -> str:
        messages, tools, where = conversation
        try:
            return self._compiled.render(
                messages=messages[:count], tools=tools, documents=None, add_generation_prompt=prompt, **self.special
            )
        except Exception as error:  # whatever a template does
            hint = ""
            if "strftime_now" in str(error):
                hint = "; the date is not told here: copy the template and write one into it"
            raise UserError(f"{where}: {self.name} cannot write this: {type(error).__name__}: {error}{hint}") from error

    def spans(self, conversation: Conversation, train_on: str) -> tuple[str, list[Span]]:
        """The text, and the parts of it that are trained, in order.

        Without marks a turn of the assistant is what follows its prompt, as `generate` would be given it, up to the special
        token that ends it (where none does, to the end of what the template writes for it). `train_on`: "assistant" all
        turns, "last" the last one, "all" everything. Raises: UserError: the template writes a turn otherwise when others
        follow, with the place.
        """
        if train_on == "all":
            text = self.render(conversation)
            return text, [Span(0, len(text))] if text else []
        turns = [i for i, message in enumerate(conversation.messages) if message["role"] == ASSISTANT]
        whole = conversation._replace(messages=conversation.messages[: turns[-1] + 1])  # nothing after it is trained
        if self.marked:
            text, spans = _without_marks(self._render(whole, None, False))
            if not spans:
                raise UserError(f"{conversation.where}: {self.name} marks nothing of this as generated.")
            return text, spans[-1:] if train_on == "last" else spans
        text = self.render(whole)
        chosen = turns[-1:] if train_on == "last" else turns
        return text, [self._turn(whole, text, turn) for turn in chosen]

    def _turn(self, whole: Conversation, text: str, turn: int) -> Span:
        before = self.render(whole, turn, prompt=True)
        upto = text if turn + 1 == len(whole.messages) else self.render(whole, turn + 1)
        for alone in (before, upto):
            if not text.startswith(alone):
                raise UserError(_diverges(self.name, whole.where, turn, alone, text))
        return Span(len(before), len(before) + len(self._ended(upto[len(before) :])))

    def _ended(self, turn: str) -> str:
        """Without the white space that follows a special token: the model is done by then."""
        bare = turn.rstrip()
        return bare if bare != turn and bare.endswith(tuple(self._ends)) else turn

    @functools.cached_property
    def _ends(self) -> list[str]:
        return [token for token in self.special.get("all_special_tokens", ()) if token] or ["\0"]


def template_of(wanted: str | None, tokenizer: Tokenizer, tools: bool = False) -> Template:
    """The template that is wanted: None for the tokenizer's own, a name, a file, or Jinja.

    `tools`: a tokenizer that has several is asked for the one with tools. Raises: UserError: there is none.
    """
    text, name = _find(wanted, tokenizer, tools)
    return Template(text, name, _special(tokenizer))


def _find(wanted: str | None, tokenizer: Tokenizer, tools: bool) -> tuple[str, str]:
    if wanted is None:
        own = tokenizer.loaded.config.get("chat_template")
        if isinstance(own, list):  # as tokenizer_config.json has several
            own = {entry["name"]: entry["template"] for entry in own}
        if isinstance(own, dict):
            own = own.get("tool_use" if tools and "tool_use" in own else "default")
        if not isinstance(own, str):
            names = ", ".join(map(repr, NAMED))
            raise UserError(f"{tokenizer}: it has no chat template: write template= one of {names}, a file, or Jinja.")
        return own, "the tokenizer's template"
    if wanted in NAMED:
        return NAMED[wanted], f"template {wanted!r}"
    if "{{" in wanted or "{%" in wanted:
        return wanted, "the template"
    file = Path(wanted).expanduser()
    if not file.is_file():
        near = closest(wanted, NAMED)
        hint = f" Did you mean {near!r}?" if near else f" Names are {', '.join(map(repr, NAMED))}."
        raise UserError(f"template={wanted!r}: no such name or file.{hint}")
    return file.read_text(encoding="utf-8"), wanted


def _special(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a template may call by name: bos_token and the others of the configuration, and the list of all."""
    backend, eos, config = tokenizer.loaded
    named = {key: _content(value) for key, value in config.items() if key.endswith("_token")}
    all_of_them = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    return {
        **{key: value for key, value in named.items() if isinstance(value, str)},
        "eos_token": eos,
        "all_special_tokens": sorted({*all_of_them, eos}),
    }


def _content(value: Any) -> Any:
    return value.get("content") if isinstance(value, dict) else value  # transformers may write a token with its options


@functools.cache
def _environment() -> jinja2.Environment:
    found = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
    )
    found.filters["tojson"] = _tojson  # jinja2's own escapes what HTML would
    found.globals["raise_exception"] = _refuse
    return found


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


def _without_marks(text: str) -> tuple[str, list[Span]]:
    parts, spans, position, begun = [], [], 0, 0
    for piece in re.split(f"([{_BEGIN}{_END}])", text):
        if piece == _BEGIN:
            begun = position
        elif piece == _END:
            spans.append(Span(begun, position))
        else:
            parts.append(piece)
            position += len(piece)
    return "".join(parts), [span for span in spans if span.start < span.stop]


def _diverges(name: str, where: str, turn: int, alone: str, text: str) -> str:
    at = next((i for i, (a, b) in enumerate(zip(alone, text)) if a != b), min(len(alone), len(text)))
    shown = [repr(one[max(0, at - _CONTEXT) : at + _CONTEXT]) for one in (alone, text)]
    return (
        f"{where}: {name} writes message {turn + 1} otherwise when others follow: character {at} is in {shown[0]} up to that "
        f"turn, in {shown[1]} of the whole, so the model would not be asked as it was trained; write train_on='last', or a "
        "template with {% generation %} marks, such as template='chatml'"
    )
