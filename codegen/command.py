"""`python -m codegen MODULE:NAME --out DIR`: one model from a class or a function that builds it."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import CodegenError, Problem

_EPILOG = """\
inputs: `--inputs 'int[2,16]<100'` is a tensor of integers below 100, `float[2,8]` one of random numbers; bool, bfloat16
and all other names of torch's number formats work too. `mask=bool[2,16]` passes it by name. Several `--inputs` are
several sets, each of which is tried. Models that begin with an embedding need none.
"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        "python -m codegen",
        description="Write a model's source as one file that needs torch alone, proven to compute the same.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "target",
        nargs="?",
        metavar="MODULE:NAME",
        help="a class of models or a function that builds one; MODULE may be a file.py",
    )
    made.add_argument("--out", metavar="DIR", help="directory to write: model.py, model.safetensors")
    made.add_argument(
        "--print", action="store_true", dest="show", help="only print the text: nothing is verified or written"
    )
    made.add_argument("--check", metavar="FILE", help="whether an emitted file is as it was emitted")
    made.add_argument("--kwargs", metavar="JSON", default="{}", help="arguments of the class or function")
    made.add_argument(
        "--inputs", nargs="+", action="append", metavar="TENSOR", help="what to try the model with; see below"
    )
    made.add_argument("--also", action="append", default=[], metavar="NAME", help="a function of MODULE to take in too")
    for name, what in (
        ("allow", "package that may stay an import"),
        ("inline", "package or module whose source is taken in"),
        ("keep", "name that is never pruned"),
        ("dynamic", "attribute that is never decided"),
        ("opaque", "module or class that is copied whole"),
    ):
        made.add_argument(f"--{name}", action="append", default=[], metavar="NAME", help=what)
    made.add_argument("--seed", type=int, default=0, help="for the initial weights (default 0)")
    made.add_argument("--no-weights", action="store_true", help="write model.py alone")
    made.add_argument("--eval-only", action="store_true", help="do not compare training; for models that cannot train")
    made.add_argument("--overwrite", action="store_true", help="replace an emitted model in DIR")
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code: 0, or 2 when something is wrong with what was asked for."""
    args = parser().parse_args(arguments)
    try:
        return _checked(args.check) if args.check else _emitted(args)
    except CodegenError as error:
        if args.debug:
            raise
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 2


def _checked(path: str) -> int:
    from .stamp import unchanged

    try:
        same = unchanged(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise CodegenError([Problem(f"{path} cannot be read: {error}")]) from None
    if same:
        print(f"{path} is as it was emitted")
        return 0
    if same is None:
        raise CodegenError([Problem(f"{path} has no digest: codegen has not written it")])
    raise CodegenError([Problem(f"{path} was changed after it was emitted", "its proof no longer holds")])


def _emitted(args: argparse.Namespace) -> int:
    if not args.target or not (args.out or args.show):
        raise CodegenError(
            [Problem("what to do is not said", "write MODULE:NAME --out DIR, MODULE:NAME --print, or --check FILE")]
        )
    from .inputs import described

    sets = [described(words) for words in args.inputs] if args.inputs else None
    module, build = _builder(args.target, args.kwargs)
    also = [_member(module, name, args.target) for name in args.also]
    import torch

    torch.manual_seed(args.seed)
    model = _built(build, args)
    options: dict[str, Any] = {name: tuple(getattr(args, name)) for name in ("allow", "keep", "opaque")}
    options |= {name: tuple(getattr(args, name)) for name in ("inline",) if getattr(args, name)}
    if args.dynamic:
        options["dynamic"] = ("training", "gradient_checkpointing", *args.dynamic)
    if args.show:
        from .tracer import trace

        print(trace(model, build, also=tuple(also), **options).text, end="")
        return 0
    from .emission import WEIGHTS, emit

    reports: list[Any] = []
    source = emit(
        model, args.out, build, inputs=sets, also=tuple(also), weights=not args.no_weights, overwrite=args.overwrite,
        train=not args.eval_only, told=reports.append, **options,
    )  # fmt: skip
    print(
        f"{args.out}: {source.root}, {len(source.text.splitlines())} lines{'' if args.no_weights else f', {WEIGHTS}'}"
    )
    print(reports[0])
    if source.requirements:
        print(f"needs torch and {', '.join(source.requirements)}")
    return 0


def _builder(target: str, kwargs: str) -> tuple[Any, Callable[[], Any]]:
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise CodegenError([Problem(f"{target!r} names nothing", "write MODULE:NAME, such as torch.nn:Transformer")])
    try:
        arguments = json.loads(kwargs)
    except ValueError as error:
        raise CodegenError([Problem(f"--kwargs is no JSON: {error}")]) from None
    if not isinstance(arguments, dict):
        raise CodegenError([Problem("--kwargs is no JSON object", '{"dim": 64}')])
    module = _module(place)
    made = _member(module, name, target)
    if not callable(made):
        raise CodegenError([Problem(f"{target} is neither a class nor a function")])
    return module, lambda: made(**arguments)


def _module(place: str) -> Any:
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        path = Path(place).resolve()
        sys.path.insert(0, str(path.parent))
        return importlib.import_module(path.stem) if path.is_file() else _missing(place)
    except CodegenError:
        raise
    except Exception as error:
        raise CodegenError([Problem(f"{place} cannot be imported: {type(error).__name__}: {error}")]) from error


def _missing(place: str) -> Any:
    raise CodegenError([Problem(f"there is no file {place}")])


def _member(module: Any, name: str, target: str) -> Any:
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise CodegenError([Problem(f"{target.rpartition(':')[0]} has no {name}")])
        found = getattr(found, part)
    return found


def _built(build: Callable[[], Any], args: argparse.Namespace) -> Any:
    from torch import nn

    try:
        model = build()
    except Exception as error:
        hint = "arguments that JSON cannot say: name a function that builds the model"
        raise CodegenError([Problem(f"{args.target} does not build: {type(error).__name__}: {error}", hint)]) from error
    if not isinstance(model, nn.Module):
        raise CodegenError([Problem(f"{args.target} gives {type(model).__name__}, which is no nn.Module")])
    return model
