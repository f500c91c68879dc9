"""Bad input, said once and in full: a collector that turns many problems into one `UserError`, and did-you-mean.

In: facts about paths, lines and fields. Out: messages that name the place and what to write instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from forgather_dsl.errors import UserError

SHOWN = 20  # problems listed in one message; a folder of ten thousand bad files should not fill the terminal


class Problems:
    """A list of problems; `raise_any` makes one error of them."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def add(self, message: str) -> None:
        """Remember a problem, one or more lines of text."""
        self.messages.append(message)

    def raise_any(self) -> None:
        """Raise: UserError: listing what was added, if anything was."""
        if not self.messages:
            return
        shown = self.messages[:SHOWN]
        if len(self.messages) > SHOWN:
            shown.append(f"... and {len(self.messages) - SHOWN} more")
        raise UserError("\n".join(shown))


def closest(name: str, options: Iterable[str]) -> str | None:
    """The option most like `name`, or None when none is near."""
    matches = difflib.get_close_matches(name, list(options), n=1)
    return matches[0] if matches else None


def no_such_field(field: str, fields: Iterable[str], where: str, parameter: str = "field") -> str:
    """Message for a name that is not there: what there is, and the nearest of it."""
    fields = list(fields)
    near = closest(field, fields)
    hint = f" Write {parameter}={near!r}?" if near else ""
    return f"{where}: no {parameter} {field!r}; there is {', '.join(map(repr, fields)) or 'none'}.{hint}"


def text_of(record: Any, field: str, where: str) -> str | None:
    """The text in a record's field; None where the field is null (such a record is no document).

    Raises: UserError: the record has no such field, or it holds something else than text.
    """
    if not isinstance(record, Mapping):
        hint = " One object a line is wanted; a JSON array is not." if isinstance(record, list) else ""
        raise UserError(f"{where}: a {type(record).__name__}, not an object with a field {field!r}.{hint}")
    if field not in record:
        raise UserError(no_such_field(field, record, where))
    value = record[field]
    if value is None or isinstance(value, str):
        return value
    texts = [name for name, other in record.items() if isinstance(other, str)]
    raise UserError(
        f"{where}: field {field!r} holds {type(value).__name__}, not text; "
        f"fields with text: {', '.join(map(repr, texts)) or 'none'}."
    )
