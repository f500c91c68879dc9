"""Trace, prove, write: a directory with model.py and its weights, complete or not there at all."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from .compare import unwrapped
from .errors import CodegenError, Problem
from .inputs import Inputs
from .proof import Report, verify
from .source import Source
from .stamp import stamped, unchanged
from .tracer import rebuilder, trace
from .weights import save, untied

TEXT, WEIGHTS = "model.py", "model.safetensors"
_OWN = {TEXT, WEIGHTS, "__pycache__"}  # what a directory may hold that is written anew


def emit(
    model: nn.Module,
    directory: str | os.PathLike[str],
    build: Callable[[], nn.Module] | None = None,
    *,
    inputs: Inputs | list[Inputs] | None = None,
    calls: Mapping[str, str] | None = None,
    weights: bool = True,
    overwrite: bool = False,
    train: bool = True,
    timeout: float = 300.0,
    told: Callable[[Report], None] | None = None,
    also: Sequence[Any] = (),
    **options: Any,
) -> Source:
    """Write model.py, and model.safetensors beside it, once the file is proven to be the model.

    `options` go to `trace`; inputs, calls, train, timeout to `verify`; `told` gets its report. An emitted model that
    is there already is replaced with `overwrite`. Raises CodegenError; nothing is written then.
    """
    target = Path(directory)
    _require_place(target, overwrite)
    model = unwrapped(model)
    source = trace(model, build, also=also, **options)
    source = dataclasses.replace(source, text=stamped(source.text))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        (part / TEXT).write_text(source.text, encoding="utf-8", newline="")
        save(part / WEIGHTS, untied(model.state_dict()))
        report = verify(
            source, model, build or rebuilder(model), inputs=inputs, calls=calls, also=also, train=train, timeout=timeout,
            weights=str(part / WEIGHTS),
        )  # fmt: skip
        if not weights:
            (part / WEIGHTS).unlink()
        part.chmod(0o777 & ~_umask())
        _replace(part, target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    if told is not None:
        told(report)
    return source


def _require_place(target: Path, overwrite: bool) -> None:
    """The directory is free, or holds an emitted model and nothing else and may be replaced."""
    if not target.exists() and not target.is_symlink():
        return
    if not target.is_dir():
        raise CodegenError([Problem(f"{target} is no directory", "name another one")])
    held = {path.name for path in target.iterdir()}
    if not held:
        return
    text = target / TEXT
    if not text.is_file() or unchanged(text.read_text(encoding="utf-8", errors="replace")) is None or held - _OWN:
        others = sorted(held - _OWN) or [TEXT]
        reason = f"{target} holds {', '.join(others[:3])}{', ...' if others[3:] else ''}, not an emitted model alone"
        raise CodegenError([Problem(reason, "name another directory")])
    if not overwrite:
        raise CodegenError(
            [Problem(f"{target} holds an emitted model already", "overwrite=True (--overwrite) replaces it")]
        )


def _replace(part: Path, target: Path) -> None:
    """Puts the new directory in the place of the old one, which comes back if that fails."""
    aside = part.with_name(part.name + "-old")
    had = target.exists()
    if had:
        os.rename(target, aside)
    try:
        os.rename(part, target)
    except OSError:
        if had:
            os.rename(aside, target)
        raise
    if had:
        with contextlib.suppress(OSError):
            shutil.rmtree(aside)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
