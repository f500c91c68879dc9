"""Trackio: metrics kept on this machine, or shown by a Space. A resumed run goes on under the name of its first start."""

from __future__ import annotations

from typing import Any

from .services import RunFacts, Service, series_of

__all__ = ["TrackioLogger"]


class TrackioLogger(Service):
    """Sends numbers to a project; texts stay in metrics.jsonl."""

    def __init__(self, project: str, space: str | None) -> None:
        super().__init__("Trackio", _Backend(project, space))


class _Backend:
    def __init__(self, project: str, space: str | None) -> None:
        self._project, self._space = project, space
        self._run: Any = None

    def start(self, about: RunFacts) -> None:
        import trackio  # type: ignore[import-not-found]

        name = series_of(about, "trackio")
        options: dict[str, Any] = {} if self._space is None else {"space_id": self._space}
        self._run = trackio.init(project=self._project, name=name, config=about.config, resume="allow", **options)

    def log(self, step: int, values: dict[str, float], texts: dict[str, str]) -> None:
        if values:
            self._run.log(values, step=step)

    def finish(self) -> None:
        self._run.finish()
