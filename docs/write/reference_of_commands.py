"""The command line as a page: every verb of `python -m forgather_dsl` with its arguments and options."""

from __future__ import annotations

import inspect
from typing import Any

import typer
from reference_of_code import first_sentence

from forgather_dsl.cli.app import app

HEAD = """# Commands

For looking up what a verb takes: `python -m forgather_dsl VERB ...`, and `VERB --help` says the same. TARGET is `file.py:Class`, `file.py` (its
only experiment), a dotted module, or a run directory. Verbs that read take `--json` and print JSON alone.

| exit code | |
|---|---|
| 0 | done; `plan` of what does not fit too, with `fits` false |
| 2 | the experiment or the command line is wrong |
| 3 | it does not fit the hardware |
| 4 | training failed: diverged, data, disk, a dead rank |
| 130 | interrupted, a checkpoint saved |

"""


def commands_page() -> str:
    """Markdown of all verbs, in the order of their names."""
    group: Any = typer.main.get_command(app)
    verbs = sorted(group.commands.items())
    index = "".join(f"| [`{name}`](#{name}) | {_cell(first_sentence(verb.help))} |\n" for name, verb in verbs)
    return f"{HEAD}| verb | |\n|---|---|\n{index}\n" + "\n".join(_section(name, verb) for name, verb in verbs)


def _section(name: str, verb: Any) -> str:
    arguments = [p for p in verb.params if p.param_type_name == "argument"]
    options = [p for p in verb.params if p.param_type_name == "option"]
    line = " ".join([name, *(_argument(p) for p in arguments), "[OPTIONS]"])
    rows = [(f"`{_argument(p)}`", p.help or "") for p in arguments if p.help]
    rows += [(_option(p), _with_default(p)) for p in options]
    table = "".join(f"| {_cell(left)} | {_cell(right)} |\n" for left, right in rows)
    return f"## {name}\n\n`python -m forgather_dsl {line}`\n\n{_prose(verb.help)}\n\n| | |\n|---|---|\n{table}"


def _argument(parameter: Any) -> str:
    name = parameter.metavar or parameter.name.upper()
    shown = name if parameter.required else f"[{name.strip('[]')}]"
    return shown + ("..." if parameter.nargs == -1 and not shown.endswith("...") else "")


def _option(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
    kinds = {
        int: "N",
        float: "X",
    }  # as the default is; typer keeps the type in places that change from version to version
    return names + (
        "" if parameter.is_flag else f" `{parameter.metavar or kinds.get(type(parameter.default), 'TEXT')}`"
    )


def _with_default(parameter: Any) -> str:
    plain = isinstance(parameter.default, (int, float, str)) and not isinstance(parameter.default, bool)
    return (parameter.help or "") + (f" (default: {parameter.default})" if plain else "")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _prose(text: str | None) -> str:
    """Paragraphs; a line that begins with an option or a verb in a paragraph of such lines is an item."""
    lines = inspect.cleandoc((text or "").replace("\b", "")).splitlines()
    return "\n".join(
        f"- `{head}`:{rest}" if (head := _said(line)) and (rest := line[len(head) + 1 :]) else line for line in lines
    )


def _said(line: str) -> str:
    """`codegen RUN --out DIR` of the line "codegen RUN --out DIR: the same ..."."""
    head, colon, _ = line.partition(": ")
    return head if colon and "--" in head and "," not in head else ""
