"""A corpus of a few small files and an experiment that trains on it in a second."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

SMALL = """
from forgather_dsl import *

class Small(Experiment):
    seq_len = 32
    batch_size = 8
    microbatch_size = 2
    steps = 6
    log_every = 1
    sampling = None
    loggers = ()
    data = TextFiles(paths="{corpus}", held_out=0.2)
    tokenizer = Bytes()
    model = patch(Llama, dim=32, num_layers=4, num_heads=2)
    optimizer = Muon()

class Hard(Small):
    "Everything that could depend on the layout: tied weights, dropout, documents, recomputation, clipping."
    model = patch(Llama, tie_embeddings=True, dropout=0.1)
    isolate_documents = True
    recompute = FullRecompute()
    clip_norm = 0.5
    save_every = 3

class HardPP2(Hard):
    parallel = Pipeline(stages=2)

class HardPP4(Hard):
    parallel = Pipeline(stages=4, schedule=ZeroBubble())

class HardReplicas(Hard):
    parallel = Pipeline(stages=2, replicas=2)
"""


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(30):
        lines = [f"def function_{number}_{i}(x, y={i}):\n    return x * {i} + y - {number}\n" for i in range(12)]
        (folder / f"file{number}.txt").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    os.environ["FORGATHER_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["FORGATHER_CACHE"]


@pytest.fixture(scope="session")
def experiments(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A file with `Small`, `Hard`, `HardPP2`, `HardPP4` and `HardReplicas`."""
    file = tmp_path_factory.mktemp("experiments") / "small.py"
    file.write_text(SMALL.format(corpus=corpus))
    return file


@pytest.fixture(scope="session")
def small(experiments: Path) -> Any:
    """The module of `experiments`."""
    from forgather_dsl.dsl.load import load_file

    return load_file(str(experiments))
