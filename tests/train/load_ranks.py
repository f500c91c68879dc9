"""Four ranks take their stages of a Hugging Face folder of many shards; prints what each held and read as JSON.

`python load_ranks.py FOLDER`. Memory is the kernel's: pages that belong to the process alone, without those mapped from
files. `grown` is the most while weights were read, above what was there before.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))

import torch
import torch._dynamo  # what optimizers import at their first call: here once, not once per rank

torch.set_num_threads(1)

from forked_ranks import forked  # noqa: E402

from forgather_dsl import BF16, AdamW, Bytes, Experiment, Llama, Pipeline, TextFiles, patch  # noqa: E402
from forgather_dsl.dsl import build  # noqa: E402
from forgather_dsl.interop.families import to_config  # noqa: E402
from forgather_dsl.interop.folder import Folder, Stored, in_shards, write_json, write_tensors  # noqa: E402
from forgather_dsl.parallel.launch import STORE  # noqa: E402
from forgather_dsl.train import directory  # noqa: E402
from forgather_dsl.train.prepare import prepare  # noqa: E402
from forgather_dsl.train.session import Session, run_session  # noqa: E402

SHARD = 12_000_000  # bytes


class Large(Experiment):
    """60 MB of bfloat16 in all, a third of it in the embedding and the head."""

    seq_len, batch_size, microbatch_size, steps, log_every = 16, 4, 1, 1, 1
    sampling, loggers, eval_data, precision, optimizer, tokenizer = None, (), None, BF16(), AdamW(lr=1e-3), Bytes()
    data = TextFiles(paths="corpus", held_out=0.2)
    init_from = "hf"
    parallel = Pipeline(stages=4)
    model = patch(Llama, vocab_size=20_000, dim=256, num_layers=16, num_heads=4, ffn_dim=1400)


class Loaded(BaseException):
    """The rank has what it needs; nothing is trained."""


def anonymous() -> int:
    """Bytes resident of this process alone."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Peak:
    """The most of `anonymous` while it is entered, looked at every millisecond."""

    def __enter__(self) -> Peak:
        self.begin = self.most = anonymous()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self.most = max(self.most, anonymous())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.most = max(self.most, anonymous())


def load(rank: int) -> int:
    """Build this rank's part and take its weights, with eyes on memory and on what is read."""
    os.environ[STORE] = os.path.abspath("run/store")
    begin_with, tensors, found = Session.begin_with, Folder.tensors, {}

    def beginning(session: Session, source: str) -> None:
        read: dict[str, int] = {}

        def reading(self: Folder, names: Any, slices: Any) -> Any:
            for key, tensor in tensors(self, names, slices):
                read[key] = tensor.nbytes
                yield key, tensor

        Folder.tensors = reading
        with Peak() as peak:
            begin_with(session, source)
        own = {key: parameter.nbytes for key, parameter in session.parameters.items()}
        found.update(
            grown=peak.most - peak.begin,
            read=sum(read.values()),
            own=sum(own.values()),
            same=set(read) == set(own),
        )
        raise Loaded

    Session.begin_with = beginning
    experiment = Large()
    prepared = prepare(experiment)
    with Peak() as peak, contextlib.suppress(Loaded):
        run_session(experiment, "run", prepared, resume="auto", changes=[])
    Path(f"rank{rank}.json").write_text(json.dumps({**found, "whole": peak.most - peak.begin}))
    return 0


def main(folder: str) -> None:
    os.chdir(folder)
    os.environ["FORGATHER_CACHE"] = f"{folder}/cache"
    Path("corpus").mkdir()
    Path("corpus", "a.txt").write_text("a line of text\n" * 400)
    experiment = Large()
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in build(experiment.model).named_parameters()}
    stored = in_shards({name: Stored(shape, "BF16", "") for name, shape in shapes.items()}, SHARD)
    Path("hf").mkdir()
    write_tensors(
        "hf", stored, ((name, torch.full(shape, 0.5, dtype=torch.bfloat16)) for name, shape in shapes.items())
    )
    write_json("hf/config.json", to_config(experiment.model, 64))
    directory.write(experiment, "run", None, None)
    prepare(experiment)
    codes = forked(4, load)
    ranks = [json.loads(Path(f"rank{rank}.json").read_text()) for rank in range(4)] if not any(codes) else []
    total = sum(torch.Size(shape).numel() for shape in shapes.values()) * 2
    files = len({entry.file for entry in stored.values()})
    print(json.dumps({"codes": codes, "ranks": ranks, "total": total, "files": files}))


if __name__ == "__main__":
    main(sys.argv[1])
