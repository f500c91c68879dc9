"""Tasks of lm-eval (EleutherAI's harness) on the model as it is exported, which is what others will read.

In: a run, a checkpoint or a Hugging Face folder, names of tasks. Out: a record of metrics by task.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib import metadata
from typing import Any

from ..errors import UserError

__all__ = ["evaluate_tasks", "require_harness"]


def require_harness() -> None:
    """Raises UserError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UserError("--tasks needs lm-eval, which is not installed; write pip install 'forgather_dsl[eval]'")


def evaluate_tasks(of: Any, tasks: Sequence[str], limit: int | None, folder: str | None, trust: bool) -> dict[str, Any]:
    """Run them in this process, on a GPU if there is one.

    Args:
        of: a `runs.evaluations.Subject`. limit: examples of each task; None: all. folder: with tasks of the user's own.

    Raises:
        UserError: tasks that are not known, with near ones; data that cannot be had.
    """
    require_harness()
    if folder is not None and not os.path.isdir(folder):
        raise UserError(f"--task-folder {folder} is no folder; write one with the YAML files of tasks")
    import torch
    from lm_eval import simple_evaluate  # type: ignore[import-not-found]  # the extra `eval`
    from lm_eval.tasks import TaskManager  # type: ignore[import-not-found]

    manager = TaskManager(include_path=folder)
    _require_tasks(tasks, manager)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    quiet = redirect_stdout(sys.stderr)  # what a task prints must not mix with the JSON on stdout
    with quiet, _exported(of, trust) as (path, step, checkpoint):
        arguments = {"pretrained": path, "dtype": "auto", "trust_remote_code": of.run is not None}
        try:
            found = simple_evaluate(
                model="hf",
                model_args=arguments,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                batch_size="auto" if device == "cuda" else 8,
                device=device,
                log_samples=False,
                bootstrap_iters=1000,
            )
        except (OSError, ConnectionError) as error:  # a data set that is not here
            raise UserError(f"lm-eval could not run {', '.join(tasks)}: {error}", exit_code=4) from error
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    about = {"kind": "tasks", "when": now, "step": step, "checkpoint": checkpoint, "device": device, "limit": limit}
    return {**about, "lm_eval": metadata.version("lm_eval"), "tasks": _metrics(found["results"])}


def _require_tasks(tasks: Sequence[str], manager: Any) -> None:
    import difflib

    known = manager.all_tasks
    unknown = [task for task in tasks if task not in known]
    if not tasks or unknown:
        near = difflib.get_close_matches(unknown[0], known, n=3) if unknown else []
        hint = f"; did you mean {', '.join(near)}?" if near else "; `lm_eval ls tasks` lists them"
        raise UserError(f"--tasks: {', '.join(unknown) or 'none'}: lm-eval knows no such task{hint}")


def _metrics(results: dict[str, Any]) -> dict[str, dict[str, float]]:
    """`acc,none` and `acc_stderr,none` as `acc` and `acc_stderr`; other filters keep their name."""
    found: dict[str, dict[str, float]] = {}
    for task, values in results.items():
        own = found.setdefault(task, {})
        for key, value in values.items():
            name, _, kind = key.partition(",")
            if isinstance(value, (int, float)) and kind:
                error = name.endswith("_stderr")
                plain = name.removesuffix("_stderr") + ("" if kind == "none" else f",{kind}")
                own[plain + "_stderr" * error] = float(value)
    return found


@contextmanager
def _exported(of: Any, trust: bool) -> Iterator[tuple[str, int | None, str]]:
    """A Hugging Face folder of the subject, its step and the name of its checkpoint; a run's is made and goes again."""
    if of.run is None:
        yield of.path, None, os.path.basename(os.path.abspath(of.path))
        return
    from ..train.checkpoint.folder import place
    from .export import export
    from .outgoing import open_outgoing

    where = open_outgoing(of.path, of.experiment, trust=trust).saved.path
    at = place(os.path.abspath(where))
    with tempfile.TemporaryDirectory(prefix="forgather-eval-") as folder:
        out = os.path.join(folder, "model")
        try:
            export(where, "hf", out, of.experiment, proof=False, trust=trust)
        except UserError:  # no architecture that transformers has
            export(where, "hf-remote", out, of.experiment, proof=False, trust=trust)
        yield out, None if at is None else at[0], os.path.basename(where)
