"""Records of chat data, whatever their shape, as conversations: messages with a role and a content.

Shapes: `messages` (role, content), ShareGPT's `conversations` (from, value), `prompt` with `completion`, and Alpaca's
`instruction`, `input`, `output`. In: a record and where it was read. Out: a `Conversation`, or a `UserError` that says
what is wrong with the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from forgather_dsl.data.problems import closest
from forgather_dsl.data.records import without_lone_surrogates
from forgather_dsl.data.templates import ASSISTANT, Conversation
from forgather_dsl.errors import UserError

__all__ = ["SHAPES", "conversation_of"]

ROLES = ("system", "developer", "user", ASSISTANT, "tool")
OTHER_NAMES = {
    "human": "user",
    "prompter": "user",
    "gpt": ASSISTANT,
    "model": ASSISTANT,
    "bot": ASSISTANT,
    "chatgpt": ASSISTANT,
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
    "ipython": "tool",
}
COMPLETIONS = ("completion", "response")


def conversation_of(record: Any, shape: str, system: str | None, where: str) -> Conversation:
    """The messages of a record; `system` is put before those that begin otherwise.

    Raises: UserError: it has no such shape, or nobody could be trained on it.
    """
    if not isinstance(record, Mapping):
        raise UserError(f"{where}: a {type(record).__name__}, not an object with messages.")
    messages = _reader(record, shape, where)(record, where)
    if not messages:
        raise UserError(f"{where}: no messages.")
    checked = [_checked(message, f"{where}: message {number}") for number, message in enumerate(messages, 1)]
    if system is not None and checked[0]["role"] not in ("system", "developer"):
        checked.insert(0, {"role": "system", "content": system})
    if not any(message["role"] == ASSISTANT for message in checked):
        raise UserError(f"{where}: the assistant says nothing, so there is nothing to train on.")
    tools = record.get("tools")
    if tools is not None and not isinstance(tools, list):
        raise UserError(f"{where}: tools is {type(tools).__name__}, not a list of functions.")
    return Conversation(checked, tools or None, where)


def _reader(record: Mapping[str, Any], shape: str, where: str) -> Callable[[Mapping[str, Any], str], list[Any]]:
    for name, (fields, read) in SHAPES.items():
        if shape == name or (shape == "auto" and _has(record, fields)):
            missing = [" or ".join(options) for options in fields if not any(o in record for o in options)]
            if missing:
                raise UserError(f"{where}: no {', no '.join(missing)}; there is {', '.join(map(repr, record))}.")
            return read
    known = "; ".join(" and ".join("/".join(options) for options in fields) for fields, _ in SHAPES.values())
    raise UserError(f"{where}: no shape that is known; there is {', '.join(map(repr, record))}. Known are {known}.")


def _has(record: Mapping[str, Any], fields: tuple[tuple[str, ...], ...]) -> bool:
    return all(any(record.get(option) is not None for option in options) for options in fields)


def _listed(name: str) -> Callable[[Mapping[str, Any], str], list[Any]]:
    def read(record: Mapping[str, Any], where: str) -> list[Any]:
        found = record[name]
        if not isinstance(found, list):
            raise UserError(f"{where}: {name} is {type(found).__name__}, not a list of messages.")
        return [_named(message) for message in found]

    return read


def _named(message: Any) -> Any:
    """ShareGPT's from and value as role and content."""
    if isinstance(message, Mapping) and "role" not in message and "from" in message:
        others = {key: value for key, value in message.items() if key not in ("from", "value")}
        return {"role": message["from"], "content": message.get("value"), **others}
    return message


def _prompted(record: Mapping[str, Any], where: str) -> list[Any]:
    """Both may be messages, as TRL has them, or text."""
    completion = next(record[name] for name in COMPLETIONS if name in record)
    return [*_said("user", record["prompt"]), *_said(ASSISTANT, completion)]


def _said(role: str, value: Any) -> list[Any]:
    return [_named(message) for message in value] if isinstance(value, list) else [{"role": role, "content": value}]


def _alpaca(record: Mapping[str, Any], where: str) -> list[Any]:
    question, more = record["instruction"], record.get("input")
    if isinstance(question, str) and isinstance(more, str) and more:
        question = f"{question}\n\n{more}"
    first = [{"role": "system", "content": record["system"]}] if record.get("system") else []
    return [*first, {"role": "user", "content": question}, {"role": ASSISTANT, "content": record["output"]}]


SHAPES = {
    "messages": ((("messages",),), _listed("messages")),
    "sharegpt": ((("conversations",),), _listed("conversations")),
    "prompt": ((("prompt",), COMPLETIONS), _prompted),
    "alpaca": ((("instruction",), ("output",)), _alpaca),
}


def _checked(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UserError(f"{where}: {type(message).__name__}, not an object with role and content.")
    role = message.get("role")
    role = OTHER_NAMES.get(role, role) if isinstance(role, str) else role
    if role not in ROLES:
        near = closest(role, (*ROLES, *OTHER_NAMES)) if isinstance(role, str) else None
        hint = f" Did you mean {near!r}?" if near else ""
        raise UserError(f"{where}: role {role!r} is none of {', '.join(ROLES)}.{hint}")
    content = _text(message.get("content"), where)
    more = {key: value for key, value in message.items() if key not in ("role", "content") and value is not None}
    if role == ASSISTANT and not content and not more.get("tool_calls"):
        raise UserError(f"{where}: the assistant's content is empty.")
    return {"role": role, "content": content, **more}


def _text(content: Any, where: str) -> str:
    """A content in parts, as chat interfaces have it, is their texts."""
    if isinstance(content, list):
        others = [p for p in content if not isinstance(p, Mapping) or not isinstance(p.get("text"), str)]
        if others:
            kind = others[0].get("type") if isinstance(others[0], Mapping) else type(others[0]).__name__
            raise UserError(f"{where}: a part of type {kind!r}: only text can be trained on.")
        content = "".join(part["text"] for part in content)
    if content is None:
        return ""
    if not isinstance(content, str):
        raise UserError(f"{where}: content is {type(content).__name__}, not text.")
    return without_lone_surrogates(content)
