"""`metrics.jsonl`: one JSON object a line, written by rank 0 alone, floats in full so that equality can be checked."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from typing import Any

from ..errors import UserError

MOST_LINE_BYTES = 16 * 2**20


class MetricsFile:
    """Appends records; opened at a step, it drops the lines after it (a resumed run writes them again), and of the records of
    rollbacks, which bear the step that the run went back to, those after the first `rollbacks`.
    """

    def __init__(self, path: str, *, after_step: int | None = None, rollbacks: int = 0) -> None:
        self._path = path
        if after_step is not None and os.path.exists(path):
            _drop(path, after_step, rollbacks)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 closed by close()

    def go_back(self, step: int, rollbacks: int) -> None:
        """Drop what was written after a step, but for the records of earlier rollbacks."""
        self._file.close()
        _drop(self._path, step, rollbacks)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 closed by close()

    def log(self, record: dict[str, Any]) -> None:
        """Write one record."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Nothing is written after this."""
        self._file.close()


def _drop(path: str, after_step: int, rollbacks: int) -> None:
    kept = [record for record in read(path) if record.get("step", 0) <= after_step]
    kept = [record for record in kept if record.get("rollback", {}).get("number", 0) <= rollbacks]
    partial = path + ".partial"
    with open(partial, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in kept)
    os.replace(partial, path)


def read(path: str) -> Iterator[dict[str, Any]]:
    """The records of a file; a last line that a crash cut off is left out. Raises UserError for what is no record."""
    with open(path, "rb") as file:
        for number in itertools.count(1):
            line = file.readline(MOST_LINE_BYTES + 1)
            if len(line) > MOST_LINE_BYTES:
                raise UserError(f"{path}:{number}: longer than {MOST_LINE_BYTES:,} bytes, so no record")
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: not JSON: {error}") from error
            if not isinstance(record, dict) or not isinstance(record.get("step", 0), int):
                raise UserError(f"{path}:{number}: not a record, which is a JSON object with a step")
            yield record
