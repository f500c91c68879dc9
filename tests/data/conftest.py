"""Sources and token streams small enough to check by hand; caches go to a temporary folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forgather_dsl.data.documents import Document, Source, in_memory
from forgather_dsl.data.sources import TextFiles
from forgather_dsl.data.tokens import TokenFile


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FORGATHER_CACHE", str(folder))
    return folder


class Texts(Source):
    """Documents given as strings; counts how often it was read."""

    def __init__(self, documents: Sequence[str], split: str = "all", held_out: float = 0.0) -> None:
        super().__init__(split=split, held_out=held_out)
        self.texts = list(documents)
        self.reads = 0

    def all_documents(self) -> Iterator[Document]:
        self.reads += 1
        yield from map(in_memory, self.texts)

    def check(self) -> None:
        pass

    def identity(self) -> dict[str, Any]:
        return {"texts": self.texts, "split": self.split, "held_out": self.held_out}

    def __str__(self) -> str:
        return f"{len(self.texts)} texts"


@pytest.fixture(scope="session")
def texts() -> type[Texts]:
    return Texts


@pytest.fixture
def text_files() -> Callable[..., TextFiles]:
    def make(*paths: object, **changes: Any) -> TextFiles:
        settings = {"encoding": "utf-8", "separator": None, "split": "all", "held_out": 0.0, **changes}
        return TextFiles(paths=tuple(map(str, paths)), **settings)

    return make


@pytest.fixture(scope="session")
def stream() -> Callable[[Sequence[int]], TokenFile]:
    """A token file that was never on disk."""

    def make(ids: Sequence[int]) -> TokenFile:
        array = np.array(ids, np.uint16)
        return TokenFile(Path(), array, len(array), len(array), 1, "fingerprint", None)

    return make
