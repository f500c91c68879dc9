"""A text source as it is typed: a path (`book.txt`, `pages/`, `notes.jsonl`, `rows.parquet`), or `JsonLines(paths="x", field="body")`.

A path means all of its text; what is written out takes `split` as in a file. Only sources of this package, and plain values.
"""

from __future__ import annotations

import ast
import os

from .. import specs
from ..dsl import ConfigError, check
from ..errors import UserError
from ..specs import JsonLines, Parquet, Source, TextFiles
from ..specs.eval_sets import SET_NAME

__all__ = ["named_sources"]

KINDS = {".jsonl": JsonLines, ".jsonl.gz": JsonLines, ".parquet": Parquet}


def named_sources(texts: list[str]) -> dict[str, Source]:
    """`NAME=SOURCE` each. Raises UserError with everything that is wrong."""
    found: dict[str, Source] = {}
    problems = []
    for text in texts:
        name, equals, said = text.partition("=")
        try:
            if not equals or not SET_NAME.fullmatch(name) or not said:
                raise UserError("write NAME=SOURCE, such as --data prose=book.txt; a name has letters, digits, - and _")
            if name in found:
                raise UserError(f"{name} stands twice")
            found[name] = _source(said)
        except (UserError, ConfigError) as error:
            problems.append(f"--data {text!r}: {error}")
    if problems:
        raise UserError("\n".join(problems))
    return found


def _source(text: str) -> Source:
    kinds = {name: kind for name in specs.__all__ if _is_source(kind := getattr(specs, name))}
    if text in kinds:
        return _checked(kinds[text]())
    if not text.endswith(")") or os.path.exists(text):
        kind = next((kind for ending, kind in KINDS.items() if text.endswith(ending)), TextFiles)
        return kind(paths=text, split="all")
    try:
        call = ast.parse(text, mode="eval").body
        assert isinstance(call, ast.Call)
        assert isinstance(call.func, ast.Name)
        assert not call.args
        values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, AssertionError):
        raise UserError('write a path, or a source such as JsonLines(paths="notes.jsonl", field="body")') from None
    if call.func.id not in kinds:
        raise UserError(f"{call.func.id} is no source; write one of {', '.join(kinds)}, or a path")
    return _checked(kinds[call.func.id](**values))


def _checked(source: Source) -> Source:
    check(source)
    return source


def _is_source(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, Source) and not kind.__abstract__
