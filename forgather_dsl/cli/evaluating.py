"""`eval`: finished models on held-out text, or on the tasks of lm-eval; results go into the run's directory."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..errors import UserError
from .arguments import Debug, Json, complete_target, end
from .output import print_json, print_table, say
from .source_text import named_sources

HELP = """Evaluate finished models: runs, checkpoints, or Hugging Face folders.

eval RUN: the loss on what training held out, the number that training wrote.

eval RUN... --data NAME=SOURCE: on other text; SOURCE is a path, or a source such as JsonLines(paths="x.jsonl", field="body").
Compare models with different tokenizers by bits per byte, never by loss or perplexity.

eval RUN --tasks hellaswag,piqa: through lm-eval (pip install 'forgather_dsl[eval]'), on the exported model.

Results are kept in RUN/evaluations, where `report` finds them."""


def eval_verb(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="runs, checkpoints, Hugging Face folders", autocompletion=complete_target
        ),
    ],
    data: Annotated[
        list[str] | None, typer.Option("--data", metavar="NAME=SOURCE", help="text to evaluate on; repeatable")
    ] = None,
    tasks: Annotated[str | None, typer.Option("--tasks", metavar="A,B,..", help="tasks of lm-eval")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="examples of each task; default: all")] = None,
    task_folder: Annotated[
        str | None, typer.Option("--task-folder", metavar="DIR", help="with tasks of your own")
    ] = None,
    save: Annotated[bool, typer.Option("--save/--no-save", help="keep the results in the run directory")] = True,
    trust: Annotated[bool, typer.Option("--trust", help="import the user's own code that a run names")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate finished models on held-out text, or on tasks of lm-eval."""

    def work() -> None:
        if tasks is None and (limit is not None or task_folder is not None):
            raise UserError("--limit and --task-folder are for --tasks; add it, such as --tasks hellaswag")
        if tasks is not None and data:
            raise UserError("write --data or --tasks; each is an evaluation of its own")
        from .subjects import subject

        sets = named_sources(data or [])
        subjects = [subject(model, trust) for model in models]
        if tasks is not None:
            from ..interop.harness import require_harness

            require_harness()
        found = []
        for of in subjects:
            record = _of_tasks(of, tasks, limit, task_folder, trust) if tasks else _of_sets(of, sets)
            found.append({"model": of.path, **record, "file": _kept(of, record) if save else None})
        print_json(found if len(found) > 1 else found[0]) if json else _print(found)

    end(work, debug)


eval_verb.__doc__ = HELP


def _of_sets(of: Any, sets: dict[str, Any]) -> dict[str, Any]:
    from ..runs.evaluations import evaluate_sets, own_sets

    return evaluate_sets(of, sets or own_sets(of.experiment))


def _of_tasks(of: Any, tasks: str, limit: int | None, folder: str | None, trust: bool) -> dict[str, Any]:
    from ..interop.harness import evaluate_tasks

    return evaluate_tasks(of, [task.strip() for task in tasks.split(",") if task.strip()], limit, folder, trust)


def _kept(of: Any, record: dict[str, Any]) -> str | None:
    from ..runs.evaluations import store

    return store(of.run, record) if of.run is not None else None


def _print(found: list[dict[str, Any]]) -> None:
    rows = []
    for record in found:
        name = record["model"] + ("" if record["step"] is None else f" at step {record['step']:,}")
        if record["kind"] == "sets":
            for key, one in record["sets"].items():
                perplexity = "-" if one["perplexity"] is None else f"{one['perplexity']:.4g}"
                rows.append(
                    (name, key, f"{one['bits_per_byte']:.4f}", f"{one['loss']:.4f}", perplexity, f"{one['tokens']:,}")
                )
        else:
            for task, metrics in record["tasks"].items():
                for metric, value in metrics.items():
                    if not metric.endswith("_stderr"):
                        error = metrics.get(f"{metric}_stderr")
                        rows.append((name, task, metric, f"{value:.4f}", "" if error is None else f"± {error:.4f}"))
    if found[0]["kind"] == "sets":
        print_table(("model", "text", "bits/byte", "loss", "perplexity", "tokens"), rows)
    else:
        print_table(("model", "task", "metric", "value", "standard error"), rows)
    for record in found:
        if record["file"]:
            say(f"kept    {record['file']}")
