"""One emitted file against what its original did: in a process of its own, which ends with a result in the job's folder."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from .leaves import Leaf, difference
from .observe import StepFailed, observe

NAME = "emitted_model"  # of the emitted file as a module


def flags() -> dict[str, Any]:
    """The settings of this process that choose between ways to compute the same, but not what is computed."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "mkldnn": torch.backends.mkldnn.enabled,  # type: ignore[attr-defined]
        "cudnn": [torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic],
    }


def set_flags(wanted: Mapping[str, Any]) -> None:
    """Makes this process compute as the one that `flags` were read in."""
    torch.set_num_threads(wanted["threads"])
    if any(wanted[name] != flags()[name] for name in ("deterministic", "warn_only")):  # the call imports for a second
        torch.use_deterministic_algorithms(wanted["deterministic"], warn_only=wanted["warn_only"])
    torch.set_float32_matmul_precision(wanted["matmul"])
    torch.backends.mkldnn.enabled = wanted["mkldnn"]  # type: ignore[attr-defined]
    torch.backends.cudnn.enabled, torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = wanted["cudnn"]


def attempt(job: Mapping[str, Any]) -> None:
    """Writes result.json: what differs and what was compared, or which step failed and where."""
    result = _result(job)
    path = os.path.join(job["folder"], "result.json")
    with open(path + ".part", "w") as file:
        json.dump(result, file)
    os.replace(path + ".part", path)


def _result(job: Mapping[str, Any]) -> dict[str, Any]:
    try:
        set_flags(job["flags"])
        given = torch.load(os.path.join(job["folder"], "original.pt"), weights_only=True)
        try:
            module = _imported(job["text"])
        except Exception as error:
            raise StepFailed("importing the file") from error
        names = {name: getattr(module, there) for name, there in job["names"].items()}
        build = getattr(module, job["build"])

        def load() -> torch.nn.Module:
            return getattr(module, job["load"])(job["weights"], device=given["plan"]["device"])

        found = observe(load, build if job["fresh"] else None, names, given["plan"])
        return _compared(given["seen"], found)
    except StepFailed as failure:
        return _failure(failure.step, failure.__cause__ or failure, job["text"])
    except Exception as error:
        return _failure("the comparison", error, job["text"])


def _imported(path: str) -> Any:
    spec = importlib.util.spec_from_file_location(NAME, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)
    return module


def _compared(expected: Mapping[str, Leaf], found: Iterator[tuple[str, Leaf]]) -> dict[str, Any]:
    differences: list[tuple[str, str]] = []
    counts: Counter[str] = Counter()
    remaining = dict(expected)
    try:
        for key, leaf in found:
            if key not in remaining:
                differences.append((key, "the original has none"))
            elif how := difference(remaining.pop(key), leaf):
                differences.append((key, how))
            else:
                counts[kind_of(key)] += 1
    except StepFailed:
        if not differences:
            raise
    else:
        differences += [(key, "the emitted model has none") for key in remaining]
    return {"differences": differences, "compared": counts}


def kind_of(key: str) -> str:
    """What a key of an observation counts as in a report."""
    words = key.split()
    if words[0] == "the":
        return "structure"
    if words[0] in ("initial", "loaded"):
        return f"{words[0]} values"
    if words[0] == "call":
        return "results of calls"
    mode, what = words[0], next(word for word in words[1:] if not word.isdigit())
    return f"{mode} {what.partition('[')[0].partition('.')[0]}"


def _failure(step: str, error: BaseException, text: str) -> dict[str, Any]:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == text]
    if isinstance(error, SyntaxError) and error.filename == text:
        lines.append(error.lineno)
    last = traceback.format_exception_only(error)[-1].strip()
    return {"failed": step, "error": last, "line": lines[-1] if lines else 0, "missing": getattr(error, "name", None)}
