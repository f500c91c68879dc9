"""What a user can run into below the language: bad data, no room, a run that failed.

`UserError` is printed without a traceback; its exit code follows the command line's contract
(2 the experiment is wrong, 3 it does not fit the hardware, 4 training failed).
"""

from __future__ import annotations


class UserError(Exception):
    """A failure explained for the person at the keyboard: what is wrong, where, what to write instead."""

    def __init__(self, message: str, *, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Interrupted(UserError):
    """Ctrl-C or SIGTERM: the run stopped after saving a checkpoint."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_code=130)
