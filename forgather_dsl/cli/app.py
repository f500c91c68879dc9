"""The verbs. Each one parses, calls one function and prints; what goes wrong ends in `output.guarded` and an exit code.

In: the words after `python -m forgather_dsl`. Out: text or JSON on stdout, problems on stderr, and 0, 2 (the experiment or
the command line is wrong), 3 (it does not fit), 4 (training failed) or 130 (interrupted and saved).
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from .. import __version__
from ..errors import UserError
from . import (
    comparing,
    controlling,
    evaluating,
    examining,
    exporting,
    gallery,
    importing,
    listing,
    planning,
    reporting,
    running,
    saved,
    sourcing,
)
from .arguments import Debug, Json, Settings, Target, complete_target
from .arguments import end as _end
from .completion import whole_targets
from .output import WRONG, complain, on_terminal, print_json, print_table, say
from .quick import QuickCommand, QuickGroup

SCRIPT = "forgather_dsl"


def prog() -> str:
    """How this program was called, for messages."""
    return SCRIPT if os.path.basename(sys.argv[0]) == SCRIPT else f"python -m {SCRIPT}"


app = typer.Typer(
    cls=QuickGroup,
    help="Experiments as Python classes. TARGET is file.py:Class, file.py (its only experiment), a dotted module, or a run.",
    rich_markup_mode="rich" if on_terminal() else None,  # rich takes a fifth of a second to import
    pretty_exceptions_enable=False,
    add_completion=prog() == SCRIPT,  # shells complete a program, not a `python -m`
)


FORMS = ("tree", "mermaid", "dot", "json")


@app.callback(invoke_without_command=True)
def overview(
    ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="print the version")] = False
) -> None:
    """What is here, and what to do next."""
    if version:
        print(f"forgather_dsl {__version__}")
    elif ctx.invoked_subcommand is None:
        from .overview import print_overview

        _end(print_overview, debug=False)


@app.command(cls=QuickCommand)
def ls(
    path: Annotated[str | None, typer.Argument(help="a folder or file; default: experiments, or what is here")] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """List experiments."""

    def work() -> None:
        rows = listing.rows(path if path is not None else listing.default_place())
        print_json(rows) if json else print_table(("target", "bases", "", "what"), map(_listed, rows))

    _end(work, debug)


def _listed(row: dict[str, Any]) -> tuple[str, str, str, str]:
    state = (
        "error" if row["error"] else "abstract" if row["abstract"] else "incomplete" if row["missing"] else row["kind"]
    )
    return row["target"], ", ".join(row["bases"]), state, row["error"] or row["doc"]


@app.command(cls=QuickCommand)
def init(folder: Annotated[str, typer.Argument(metavar="DIR", help="where to")], debug: Debug = False) -> None:
    """Copy the experiments that come with the package, to start from."""

    def work() -> None:
        for file in gallery.copy_to(folder):
            print(file)
        print(f"next: {prog()} run {os.path.join(folder, gallery.FIRST)}:First")

    _end(work, debug)


@app.command(cls=QuickCommand)
def show(
    target: Target,
    set_: Settings = None,
    why: Annotated[bool, typer.Option("--why", help="add who set each value")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Print the resolved configuration."""

    def work() -> None:
        from ..dsl import warnings
        from .describing import said_by, values
        from .sweeping import members, show_members, source_of

        if (source := source_of(target)) is not None:
            show_members(members(target, source, set_ or []), target, json)
            return
        found, texts = values(target, set_ or [])
        for text in warnings(found):
            complain(text, "warning")
        said = {path: said_by(found, path) for path in texts} if why else {}
        if json:
            print_json(
                {"target": target, "class": type(found).__qualname__, "values": texts, **({"why": said} if why else {})}
            )
            return
        for path, text in texts.items():
            say(f"{path} = {text}" + (f"    # {said[path]}" if said.get(path) else ""))

    _end(work, debug)


@app.command(cls=QuickCommand)
def explain(
    target: Target,
    field: Annotated[str, typer.Argument(help="a path such as optimizer.lr")],
    set_: Settings = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show every class and line that had a say in a value, the winner first."""

    def work() -> None:
        from .describing import explained

        rows = explained(target, field, set_ or [])
        if json:
            print_json(rows)
        else:
            print_table(("value", "said by", "where"), [(row["value"], row["who"], row["where"]) for row in rows])

    _end(work, debug)


@app.command(cls=QuickCommand)
def diff(
    left: Annotated[str, typer.Argument(metavar="A", autocompletion=complete_target)],
    right: Annotated[str, typer.Argument(metavar="B", autocompletion=complete_target)],
    set_: Settings = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what differs between two experiments or runs."""

    def work() -> None:
        from .describing import differences

        rows = differences(left, right, set_ or [])
        if json:
            print_json(rows)
            return
        texts = [(r["path"], r["left"] or "-", r["left_by"], r["right"] or "-", r["right_by"]) for r in rows]
        if texts:
            print_table(("path", "A", "set by", "B", "set by"), texts)
        else:
            print("no difference")

    _end(work, debug)


@app.command(cls=QuickCommand)
def graph(
    target: Target,
    set_: Settings = None,
    form: Annotated[
        str, typer.Option("--format", metavar="|".join(FORMS), help="how to draw it", autocompletion=lambda: FORMS)
    ] = "tree",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Draw the object graph, down to the stages that each rank builds and the head of its schedule."""

    def work() -> None:
        from .drawing import as_data, draw
        from .targets import find_checked

        if form not in FORMS:
            raise UserError(f"--format {form!r}: write one of {', '.join(FORMS)}")
        found = find_checked(target, set_ or [])
        if json or form == "json":
            print_json(as_data(found))
        else:
            say(draw(found, form), end="")

    _end(work, debug)


@app.command(cls=QuickCommand)
def generate(
    run: Annotated[str, typer.Argument(help="a run directory", autocompletion=complete_target)],
    prompt: Annotated[str, typer.Argument(help="how the text begins")],
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1)] = 100,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, help="0: the likeliest token")] = 0.7,
    top_k: Annotated[int, typer.Option("--top-k", min=0, help="0: all tokens")] = 50,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    chat: Annotated[
        bool, typer.Option("--chat", help="the prompt is a user's message, written by the run's template")
    ] = False,
    trust: Annotated[bool, typer.Option("--trust", help="import the user's own code that the run names")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Let a trained model write."""

    def work() -> None:
        from ..runs.run import Run

        options = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_k": top_k or None, "seed": seed}
        text = Run(run).generate(prompt, **options, chat=chat, trust=trust)
        print_json({"text": text}) if json else say(text)

    _end(work, debug)


app.command("doctor", cls=QuickCommand)(examining.doctor_verb)
app.command("run", cls=QuickCommand)(running.run_verb)
app.command("plan", cls=QuickCommand)(planning.plan_verb)
app.command("codegen", cls=QuickCommand)(sourcing.codegen_verb)
app.command("export", cls=QuickCommand)(exporting.export_verb)
app.command("import", cls=QuickCommand)(importing.import_verb)
app.command("eval", cls=QuickCommand)(evaluating.eval_verb)
app.command("compare", cls=QuickCommand)(comparing.compare_verb)
app.command("checkpoints", cls=QuickCommand)(saved.checkpoints_verb)
app.command("report", cls=QuickCommand)(reporting.report_verb)
app.command("control", cls=QuickCommand)(controlling.control_verb)


def run_command(arguments: list[str]) -> int:
    """Run one command line. Returns the exit code."""
    try:
        whole_targets(lambda: app(arguments, prog_name=prog()))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else WRONG if end.code else 0
    return 0
