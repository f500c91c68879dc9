"""TensorBoard's event files, by torch's writer. A resumed run writes on in the same folder; what it trains again replaces the old."""

from __future__ import annotations

import os
from typing import Any

from .services import RunFacts, Service

__all__ = ["TensorBoardLogger"]


class TensorBoardLogger(Service):
    """Writes scalars and texts below `folder`, or `tensorboard/` of the run."""

    def __init__(self, folder: str | None) -> None:
        super().__init__("TensorBoard", _Backend(folder))


class _Backend:
    def __init__(self, folder: str | None) -> None:
        self._folder, self._writer = folder, None

    def start(self, about: RunFacts) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        folder = self._folder or os.path.join(about.path, "tensorboard")
        again = about.step + 1 if about.resumed else None  # readers drop what was written of these steps before
        writer: Any = SummaryWriter(folder, purge_step=again)
        if not about.resumed:
            writer.add_text("settings", "\n".join(f"    {line}" for line in about.settings.splitlines()), 0)
        self._writer = writer

    def log(self, step: int, values: dict[str, float], texts: dict[str, str]) -> None:
        writer: Any = self._writer
        for name, value in values.items():
            writer.add_scalar(name, value, step)
        for name, text in texts.items():
            writer.add_text(name, "\n".join(f"    {line}" for line in text.splitlines()), step)  # as it is, no Markdown

    def finish(self) -> None:
        writer: Any = self._writer
        writer.close()
