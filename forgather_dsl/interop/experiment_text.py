"""An experiment as the text of a Python file: only what differs from the defaults is written."""

from __future__ import annotations

import re
from typing import Any

from ..dsl import ConfigError, Lazy, diff
from ..dsl.lazy import given

__all__ = ["class_name", "experiment_text", "spec_text"]

FINE_TUNING_LR, STEPS, LONGEST = 2e-5, 1000, 1024  # to begin with; a user's to change

_FILE = '''"""{what}, to be trained on from its weights.

python -m forgather_dsl run {file}:{name}
"""

from forgather_dsl import {imports}


class {name}(Experiment):
    """Subclass it, or write your own data and numbers here."""

    init_from = {init_from}
    tokenizer = {tokenizer}
    model = {model}

    # data = TextFiles(paths="my-texts")  # Python's own library without it
    seq_len = {seq_len}
    steps = {steps}
    optimizer = AdamW(lr={lr!r})  # small steps: the weights are good already
'''


def class_name(text: str, otherwise: str) -> str:
    """A name for a class, from that of a folder: `tiny-llama` becomes `TinyLlama`, `Qwen2.5-0.5B` becomes `Qwen2_5_0_5B`."""
    words = [word[0].upper() + word[1:] for word in re.split(r"[\W_]+", text, flags=re.ASCII) if word]
    name = "".join(f"_{word}" if i and word[0].isdigit() else word for i, word in enumerate(words))
    return name if name.isidentifier() else otherwise


def experiment_text(
    what: str, file: str, name: str, init_from: str, tokenizer: Lazy[Any], model: Lazy[Any], longest: int
) -> str:
    """The file of an experiment that trains an imported model on."""
    used = {"AdamW", "Experiment", *_names(tokenizer), *_names(model)}
    return _FILE.format(
        what=_in_docstring(what),
        file=_in_docstring(file),
        name=name,
        imports=_imports(sorted(used, key=lambda word: (not word.isupper(), word))),
        init_from=_text(init_from),
        tokenizer=spec_text(tokenizer),
        model=_on_lines(spec_text(model), 4),
        seq_len=min(longest, LONGEST),
        steps=STEPS,
        lr=FINE_TUNING_LR,
    )


def _in_docstring(text: str) -> str:
    return text.replace("\\", "/").replace('"""', "'''")


def spec_text(spec: Lazy[Any]) -> str:
    """A Lazy of this package as an expression."""
    kept = _kept(spec)
    return f"{type(spec).__name__}({', '.join(f'{key}={_text(value)}' for key, value in kept.items())})"


def _kept(spec: Lazy[Any]) -> dict[str, Any]:
    """What has to be given so that the same comes out."""
    kept = dict(given(spec))
    for key in list(kept):
        try:
            same = not diff(spec, type(spec)(**{k: v for k, v in kept.items() if k != key}))
        except ConfigError:  # it is required
            continue
        if same:
            del kept[key]
    return kept


def _text(value: Any) -> str:
    if isinstance(value, Lazy):
        return spec_text(value)
    text = repr(value)
    return f'"{text[1:-1]}"' if isinstance(value, str) and text[0] == "'" and '"' not in text else text


def _names(spec: Any) -> set[str]:
    below = [_names(value) for value in _kept(spec).values() if isinstance(value, Lazy)]
    return {type(spec).__name__}.union(*below)


def _imports(names: list[str]) -> str:
    line = ", ".join(names)
    if len(line) < 90:
        return line
    return "(\n" + "".join(f"    {name},\n" for name in names) + ")"


def _on_lines(call: str, indent: int) -> str:
    """A call with an argument to a line."""
    head, _, rest = call.partition("(")
    depth, arguments, start = 0, [], 0
    inner = rest[:-1]
    for i, char in enumerate(inner):
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            arguments.append(inner[start:i].strip())
            start = i + 1
    arguments.append(inner[start:].strip())
    space = " " * (indent + 4)
    return f"{head}(\n" + "".join(f"{space}{a},\n" for a in arguments if a) + " " * indent + ")"
