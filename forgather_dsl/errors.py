"""What a user can run into below the language: bad data, no room, a run that failed.

`UserError` is printed without a traceback; its exit code follows the command line's contract
(2 the experiment is wrong, 3 it does not fit the hardware, 4 training failed).
"""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """Text that may come from anyone, for a terminal: characters that would steer it become `\\u001b`, as JSON writes them.

    Lines and tabs stay. Control characters, marks that turn the direction of writing, and halves of surrogate pairs go.
    """
    if text.isascii() and (text.isprintable() or text.replace("\n", "").replace("\t", "").isprintable()):
        return text
    return "".join(f"\\u{ord(c):04x}" if c not in "\n\t" and _steers(c) else c for c in text)


def _steers(c: str) -> bool:
    kind = unicodedata.category(c)
    return (
        kind in ("Cc", "Cs", "Zl", "Zp")
        or "\u202a" <= c <= "\u202e"
        or "\u2066" <= c <= "\u2069"
        or c in "\u200e\u200f\u061c"
    )


class UserError(Exception):
    """A failure explained for the person at the keyboard: what is wrong, where, what to write instead."""

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(UserError):
    """Ctrl-C or SIGTERM: the run stopped after saving a checkpoint."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=130)
