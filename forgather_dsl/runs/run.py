"""A run directory as an object. Opening it executes nothing that it contains."""

from __future__ import annotations

import functools
import os
from typing import Any

from ..dsl.reading import read_json
from ..errors import UserError
from ..specs import Experiment


def is_run(path: str) -> bool:
    """Whether a folder is a run directory, or would be one if its config.json were a file."""
    return os.path.lexists(os.path.join(path, "config.json"))


class Run:
    """A finished or unfinished run.

    Raises:
        UserError: the folder is not a run directory.
    """

    def __init__(self, path: str) -> None:
        if not is_run(path):
            raise UserError(f"{path} is not a run directory: it has no config.json")
        self.path = path

    def __repr__(self) -> str:
        return f"Run({self.path!r})"

    def _repr_html_(self) -> str:  # notebooks
        from .report import report

        return report(self.path)._repr_html_()

    @functools.cached_property
    def experiment(self) -> Experiment:
        """The resolved experiment, from config.json; classes of the user's are inert."""
        from ..train.directory import read_config

        return read_config(self.path)

    @functools.cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, machine, command and target of the last start."""
        found = read_json(os.path.join(self.path, "environment.json"))
        if not isinstance(found, dict):
            raise UserError(f"{self.path}: environment.json is not a JSON object")
        return found

    @property
    def target(self) -> str:
        """What was run: `file.py:Class`."""
        return str(self.environment.get("target"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl."""
        from ..train.metrics import read

        path = os.path.join(self.path, "metrics.jsonl")
        return list(read(path)) if os.path.isfile(path) else []

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of every record that has `name`."""
        return [(record["step"], record[name]) for record in self.metrics if record.get(name) is not None]

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 100,
        temperature: float = 0.7,
        top_k: int | None = 50,
        seed: int = 0,
        chat: bool = False,
        trust: bool = False,
    ) -> str:
        """The prompt and what the model of the newest checkpoint adds.

        Args:
            chat: the prompt is a user's message, and the answer alone is returned; for runs on chat data.
            trust: import the user's own components that the run names.

        Raises:
            UserError: there is no checkpoint, or no chat template.
        """
        from .generate import generate

        experiment = self.experiment
        if trust:
            from ..train.directory import read_config

            experiment = read_config(self.path, trust=True)
        pick = {"temperature": temperature, "top_k": top_k, "seed": seed, "chat": chat}
        return generate(self.path, experiment, prompt, max_new_tokens, **pick)
