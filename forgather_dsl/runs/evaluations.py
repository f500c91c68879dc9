"""Evaluating what is finished: which model a path names, its loss on named texts, and `evaluations/` of its run directory.

A record says of which step it is; `metrics.jsonl` stays what training wrote. Imports no torch before there is something to compute.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..dsl import build
from ..dsl.reading import read_json
from ..errors import UserError
from ..specs import Experiment, Source
from ..train.directory import read_config
from ..train.first_weights import CHECKPOINT, RUN, kind_of

__all__ = ["EVAL_DATA", "Subject", "evaluate_sets", "listed", "own_sets", "store", "subject_of_run"]

FOLDER = "evaluations"
EVAL_DATA = "eval_data"  # under which name the set without one is told


class Subject(NamedTuple):
    """What is evaluated."""

    path: str  # as it was named
    experiment: Experiment
    run: str | None  # the run directory, where results go; None of a folder of Hugging Face


def subject_of_run(path: str, *, trust: bool = False) -> Subject:
    """A run, or one of its checkpoints. Raises UserError for anything else."""
    kind = kind_of(path)
    if kind == RUN:
        return Subject(path, read_config(path, trust=trust), path)
    if kind == CHECKPOINT:
        run = os.path.dirname(os.path.dirname(os.path.abspath(path)))
        return Subject(path, read_config(run, trust=trust), os.path.relpath(run))
    raise UserError(f"{path} is no run and no checkpoint")


def own_sets(experiment: Experiment) -> dict[str, Source]:
    """What training evaluates on, by name."""
    data = {} if experiment.eval_data is None else {EVAL_DATA: experiment.eval_data}
    return {**data, **experiment.eval_sets}


def evaluate_sets(of: Subject, sets: Mapping[str, Source]) -> dict[str, Any]:
    """The loss on each set, a record for `store`: the number that training wrote, bit for bit on the same device.

    Raises UserError: no sets, a source that is not there, no weights, or text shorter than one sequence.
    """
    if not sets:
        raise UserError(f"{of.path} names no held-out text; write --data NAME=SOURCE, such as --data prose=book.txt")
    memo: dict[int, Any] = {}
    sources = {name: build(source, memo=memo) for name, source in sets.items()}
    problems = []
    for name, source in sources.items():
        try:
            source.check()
        except UserError as error:
            problems.append(f"{name}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    from .scorer import Scorer

    scorer = Scorer(of.path, of.experiment)
    found: dict[str, Any] = {}
    for name, source in sources.items():
        tokens = scorer.tokens(source)
        result = scorer.evaluate(tokens)
        found[name] = {
            "loss": result.loss,
            "bits_per_byte": result.bits_per_byte,
            "perplexity": result.perplexity,
            "tokens": result.tokens,
            "bytes": tokens.num_bytes,
            "fingerprint": tokens.fingerprint,
            "source": str(source),
        }
    return {**about(of, scorer), "kind": "sets", "seq_len": of.experiment.seq_len, "sets": found}


def about(of: Subject, scorer: Any) -> dict[str, Any]:
    """Of which weights, where and when."""
    import torch

    device = torch.cuda.get_device_name(scorer.device) if scorer.device.type == "cuda" else "cpu"
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    return {"when": now, "step": scorer.step, "checkpoint": os.path.basename(scorer.where), "device": device}


def store(run: str, record: Mapping[str, Any]) -> str:
    """Write a record into `evaluations/` of a run, beside what was found before of the same step. Returns the file."""
    kind, step = record["kind"], record["step"]
    folder = os.path.join(run, FOLDER)
    path = os.path.join(folder, f"{kind}-step-{step:08d}.json")
    try:
        os.makedirs(folder, exist_ok=True)
        before = read_json(path) if os.path.isfile(path) else {}
        same = isinstance(before, dict) and isinstance(before.get(kind), dict)
        merged = {**record, kind: {**(before[kind] if same else {}), **record[kind]}}
        with open(path + ".partial", "w", encoding="utf-8") as file:
            file.write(json.dumps(merged, indent=1) + "\n")
        os.replace(path + ".partial", path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; --no-save only prints") from error
    return path


def listed(run: str) -> list[dict[str, Any]]:
    """What `store` wrote, in the order of the files' names. Raises LoadError for what is no JSON."""
    folder = os.path.join(run, FOLDER)
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    found = [read_json(os.path.join(folder, name)) for name in names if name.endswith(".json")]
    return [one for one in found if isinstance(one, dict) and one.get("kind") in ("sets", "tasks")]
