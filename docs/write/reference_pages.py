"""The reference: every public name of forgather_dsl and codegen, every field of every spec, every option of every command.

In: docstrings, annotations, defaults, validators and the comments beside fields. Out: docs/reference/*.md as {file: text}.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from reference_of_code import Found, first_sentence, look_up, written
from reference_of_commands import commands_page
from reference_of_specs import spec_classes, spec_section

import forgather_dsl
from forgather_dsl import specs

NOTE = "<!-- Written by `python docs/write reference` from the source; do not edit. -->\n"
LANGUAGE = ("dsl", ("forgather_dsl/dsl",), "The language", "Words for class bodies, and functions over experiments.")
RUNNING = (
    "running",
    tuple(dict.fromkeys(f"forgather_dsl{place.replace('.', '/')}.py" for place in forgather_dsl._PLACES.values())),
    "Running",
    "From an experiment to a run, and what a run directory tells, from Python.",
)
CODEGEN = (
    "codegen",
    ("codegen",),
    "codegen",
    "Models as source that stands alone; the guide is [codegen](../codegen.md).",
)


def pages() -> dict[str, str]:
    """Every page by its path below docs/."""
    found: dict[str, str] = {}
    index: list[tuple[str, str, str]] = []
    for module in _spec_modules():
        classes = spec_classes(module)
        if classes:
            name = module.__name__.rpartition(".")[2]
            found[f"reference/{name}.md"] = _spec_page(module, classes)
            index += [
                (cls.__name__, f"{name}.md#{cls.__name__.lower()}", first_sentence(cls.__doc__)) for cls in classes
            ]
    named = {name for name, _, _ in index}
    public = [name for name in forgather_dsl.__all__ if name not in named]
    for (file, places, title, about), names in (
        (LANGUAGE, [n for n in public if look_up(n, LANGUAGE[1])]),
        (RUNNING, [n for n in public if not look_up(n, LANGUAGE[1])]),
        (CODEGEN, list(importlib.import_module("codegen").__all__)),
    ):
        items = [_found(name, places) for name in names]
        found[f"reference/{file}.md"] = f"{NOTE}# {title}\n\n{about}\n\n" + "\n".join(written(item) for item in items)
        prefix = "codegen." if file == "codegen" else ""
        index += [(prefix + item.name, f"{file}.md#{item.name.lower()}", first_sentence(item.doc)) for item in items]
    found["reference/commands.md"] = NOTE + commands_page()
    found["reference/README.md"] = _index(found, index)
    return found


def _found(name: str, places: tuple[str, ...]) -> Found:
    found = look_up(name, places)
    if found is None:
        raise LookupError(f"{name} is public and defined nowhere in {', '.join(places)}")
    return found


def _spec_modules() -> list[ModuleType]:
    names = sorted(info.name for info in pkgutil.iter_modules(specs.__path__))
    modules = [importlib.import_module(f"forgather_dsl.specs.{name}") for name in names]
    return sorted(modules, key=lambda module: (not module.__name__.endswith(".experiment"), module.__name__))


def _spec_page(module: ModuleType, classes: list[type]) -> str:
    name = module.__name__.rpartition(".")[2]
    about = " ".join(str(module.__doc__).split("\n\n")[0].split())
    source = f"[source](../../forgather_dsl/specs/{name}.py)"
    return f"{NOTE}# specs: {name.replace('_', ' ')}\n\n{about} ({source})\n\n" + "\n".join(map(spec_section, classes))


def _index(found: dict[str, str], names: list[tuple[str, str, str]]) -> str:
    parts = [
        NOTE,
        "# Reference\n\nFor looking things up: every public name, from its docstring. The verbs of the command line: ",
    ]
    parts.append(
        "[commands](commands.md). All of this is also at hand in Python, as `help(AdamW)`.\n\nA default of *derived* is "
    )
    parts.append("computed from other fields, *required* has none. Pages: ")
    pages = sorted(file.removeprefix("reference/").removesuffix(".md") for file in found)
    parts.append(", ".join(f"[{page}]({page}.md)" for page in pages) + ".\n\n| name | what it is |\n|---|---|\n")
    parts += [
        f"| [`{name}`]({link}) | {doc.replace('|', chr(92) + '|')} |\n"
        for name, link, doc in sorted(names, key=_by_name)
    ]
    return "".join(parts)


def _by_name(row: tuple[str, str, str]) -> tuple[str, str]:
    return row[0].lower(), row[0]
