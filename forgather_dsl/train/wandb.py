"""Weights & Biases. A resumed run goes on under the id of its first start; steps are a field, since a resume may go back."""

from __future__ import annotations

import uuid
from typing import Any

from .services import RunFacts, Service, series_of

__all__ = ["WandBLogger"]


class WandBLogger(Service):
    """Sends numbers, and the newest sample as part of the summary."""

    def __init__(self, project: str, entity: str | None, mode: str | None) -> None:
        super().__init__("W&B", _Backend(project, entity, mode))


class _Backend:
    def __init__(self, project: str, entity: str | None, mode: str | None) -> None:
        self._project, self._entity, self._mode = project, entity, mode
        self._run: Any = None

    def start(self, about: RunFacts) -> None:
        import wandb  # type: ignore[import-not-found]

        mode: Any = self._mode
        self._run = wandb.init(
            project=self._project,
            entity=self._entity,
            mode=mode,
            id=series_of(about, "wandb", lambda: uuid.uuid4().hex[:8]),
            name=about.name,
            dir=about.path,
            config=about.config,
            resume="allow",
            settings=wandb.Settings(console="off"),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float], texts: dict[str, str]) -> None:
        if values:
            self._run.log({**values, "step": step})
        for name, text in texts.items():
            self._run.summary[name] = text

    def finish(self) -> None:
        self._run.finish()
