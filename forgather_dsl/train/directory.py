"""The run directory: everything that report, diff, generate and resume need, in plain files.

`config.json`, `snapshot.txt`, `plan.json`, `source/`, `environment.json`, `metrics.jsonl`, `checkpoints/`. What may change when
one is opened again: `changes`.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from ..dsl import digest, from_dict, snapshot, to_dict
from ..dsl.load import loaded_from
from ..dsl.reading import read_json
from ..errors import UserError
from ..plan import layout as layouts
from ..plan.contract import to_dict as plan_to_dict
from ..plan.hardware import Hardware, gpus, host_memory
from ..plan.planner import Plan
from ..plan.prediction import predict
from ..plan.profile import Profile, own_profile
from ..specs import Experiment

PACKAGES = (
    "forgather_dsl",
    "torch",
    "numpy",
    "attrs",
    "cattrs",
    "tokenizers",
    "safetensors",
    "transformers",
    "datasets",
)


def choose(experiment: Experiment, out: str | None, resume: str, kind: str = "") -> str:
    """The directory of a run: `--out`, or `runs/<name>[-<kind>]-<digest8>`, numbered when it exists and must not be resumed."""
    if out is not None:
        return out
    path = os.path.join("runs", f"{type(experiment).__name__}{kind and '-'}{kind}-{digest(experiment)[:8]}")
    if resume != "never":
        return path
    number, free = 2, path
    while os.path.exists(free):
        free, number = f"{path}-{number}", number + 1
    return free


def require_place(path: str) -> None:
    """Raises UserError unless a run directory can be made at `path`, or is there and can be written."""
    wrong = None
    if not path or "\0" in path:
        wrong = "this is no name for a folder"
    elif os.path.lexists(path) and not os.path.isdir(path):
        wrong = "this is a file"
    else:
        place = os.path.abspath(path)
        while not os.path.lexists(place):
            place = os.path.dirname(place)
        if not os.path.isdir(place):
            wrong = f"{place} is a file"
        elif not os.access(place, os.W_OK | os.X_OK):
            wrong = f"{place} cannot be written"
    if wrong:
        raise UserError(f"--out {path!r}: {wrong}; write a folder, new or of an earlier run")


def require_checkpoint(resume: str) -> None:
    """Raises UserError where `--resume` names a path that is no checkpoint. Its files are verified by the ranks."""
    if resume in ("auto", "never") or os.path.isfile(os.path.join(resume, "manifest.json")):
        return
    below = os.path.join(resume, "checkpoints") if os.path.isdir(os.path.join(resume, "checkpoints")) else resume
    inside = sorted(os.listdir(below)) if os.path.isdir(below) else []
    steps = [name for name in inside if os.path.isfile(os.path.join(below, name, "manifest.json"))]
    hint = os.path.join(below, steps[-1]) if steps else "RUN/checkpoints/step-00000100"
    raise UserError(
        f"--resume {resume!r} is no checkpoint: it has no manifest.json; write auto, never, or a folder such as {hint}"
    )


def write(
    experiment: Experiment,
    path: str,
    target: str | None,
    command: list[str] | None,
    beside: Mapping[str, object] | None = None,
    planned: Mapping[str, object] | None = None,
) -> None:
    """Create the directory, or bring its description up to date before a resume.

    Args:
        beside: what a member of a sweep shares the machine with: its times are not those of a run alone.
        planned: what plan.json holds besides.
    """
    config = json.dumps(to_dict(experiment), indent=1) + "\n"
    try:
        os.makedirs(os.path.join(path, "checkpoints"), exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {path}: {error.strerror}; write a folder that can be made") from error
    _replace(os.path.join(path, "config.json"), config)
    _replace(os.path.join(path, "snapshot.txt"), snapshot(experiment))
    described = {**environment(), "target": target or type(experiment).__qualname__, "command": command or sys.argv}
    described |= {} if beside is None else {"sweep": dict(beside)}
    _replace(os.path.join(path, "environment.json"), json.dumps(described, indent=1) + "\n")
    _replace(os.path.join(path, "plan.json"), json.dumps({**plan(experiment), **(planned or {})}, indent=1) + "\n")
    for file in sources(experiment):
        os.makedirs(os.path.join(path, "source"), exist_ok=True)
        shutil.copy(file, os.path.join(path, "source", os.path.basename(file)))


def plan(experiment: Experiment) -> dict[str, Any]:
    """The layout that ranks build from, and what `plan --json` tells of the run on what is here."""
    run, profile = predict(experiment, Hardware(gpus(), host_memory())), own_profile(experiment)
    measured = None if profile is None else Profile.of(profile, experiment)
    return {"layout": layouts.to_dict(run.layout), **plan_to_dict(Plan(run, experiment.hardware, profile=measured))}


def read_layout(path: str) -> layouts.Layout:
    """The layout that `write` planned: all ranks build from one plan, even where a search found it."""
    with open(os.path.join(path, "plan.json"), encoding="utf-8") as file:
        return layouts.from_dict(json.load(file)["layout"])


def read_config(path: str, *, trust: bool = False) -> Experiment:
    """The experiment of a run directory. Without `trust` nothing of the directory is executed.

    Raises:
        UserError: it has none. ConfigError: `config.json` is malformed, with everything that is wrong in it.
    """
    file = os.path.join(path, "config.json")
    if not os.path.lexists(file):
        raise UserError(f"{path} is not a run directory: it has no config.json")
    found = from_dict(read_json(file), trust=trust)
    if not isinstance(found, Experiment):
        raise UserError(f"{file} describes {type(found).__name__}, which is no experiment")
    return found


def sources(experiment: Experiment) -> list[str]:
    """The files that the experiment's own classes were written in."""
    files = []
    for cls in type(experiment).__mro__:
        file = loaded_from(cls.__module__) or getattr(sys.modules.get(cls.__module__), "__file__", None)
        if file and not cls.__module__.startswith("forgather_dsl") and cls.__module__ not in ("builtins", "typing"):
            files.append(file)
    return [file for file in dict.fromkeys(files) if os.path.isfile(file)]


def environment() -> dict[str, Any]:
    """Versions, machine and git state, for the record."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "versions": versions,
        "git": _git(),
    }


def _git() -> dict[str, Any] | None:
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5)
        if commit.returncode:
            return None
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.stdout.strip(), "dirty": bool(dirty.stdout.strip())}


def _replace(path: str, text: str) -> None:
    partial = path + ".partial"
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)
