"""From what is typed to an experiment: `file.py:Class`, `file.py`, a dotted module, or a run directory, and `--set` on top."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..dsl import ConfigError, Lazy, LoadError, check, is_mixin, load, override
from ..dsl.load import is_root
from ..plan.layout import schedule_problems
from ..runs.members import is_sweep_source
from ..runs.run import Run, is_run
from ..train.directory import read_config
from .output import say


def find(target: str, settings: Sequence[str] = (), trust: bool = False) -> Lazy[Any]:
    """The experiment or component that `target` names, with `--set` applied. Of a run with `trust`, its own code too.

    Raises:
        ConfigError: it cannot be found or imported, or a setting does not apply.
    """
    values = parse_settings(settings)
    if is_run(target):
        return overridden(read_config(target, trust=True) if trust else Run(target).experiment, values)
    if os.path.isdir(target):
        raise LoadError(f"{target} is a folder without config.json, so no run; write file.py:Class, or see ls {target}")
    with printing_to_stderr():
        found = load(target)
        if isinstance(found, type) and issubclass(found, Lazy):
            found = found()
    if is_sweep_source(found):
        raise LoadError(f"{target} names several experiments; `run`, `show` and `plan` take them, other verbs take one")
    if not isinstance(found, Lazy):
        raise LoadError(f"{target} is {found!r}, not an experiment; write class Mine(Experiment): ...")
    return overridden(found, values)


def find_checked(target: str, settings: Sequence[str] = (), trust: bool = False) -> Lazy[Any]:
    """The same, complete and free of contradictions. Raises ConfigError with every problem."""
    found: Any = find(target, settings, trust)
    check(found, schedule_problems(found) if is_root(type(found)) else ())
    return found


def find_experiment(target: str, settings: Sequence[str] = (), trust: bool = False) -> Any:
    """The same, to be trained. Raises ConfigError for what is no experiment."""
    found = find_checked(target, settings, trust)
    if not is_root(type(found)):
        raise ConfigError(f"{target} is a {type(found).__name__}, not an experiment; only experiments can be run")
    return found


def shrunk(experiment: Any, out: str | None, resume: str) -> tuple[Any, str]:
    """An experiment as `--smoke` runs it, and its run directory, a new one each time; tells what is different about it.

    Raises ConfigError for a model that cannot be shrunk.
    """
    from ..plan.choosing import chosen
    from ..plan.smoke import smoke
    from ..train.directory import choose

    small, told = smoke(chosen(experiment))
    if os.environ.get("RANK", "0") == "0":
        for line in told:
            say(f"smoke   {line}")
    return small, choose(small, out, "never" if resume == "auto" else resume, "smoke")


def is_abstract(found: Lazy[Any]) -> bool:
    """Whether a class is there to be subclassed: it says so, or its patches find nothing to apply to."""
    return type(found).__abstract__ or is_mixin(found)


def parse_settings(settings: Sequence[str]) -> dict[str, str]:
    """`path=value` texts as a mapping; of two for one path the later counts. Raises ConfigError for anything else."""
    pairs = [text.partition("=") for text in settings]
    wrong = [text for text, (path, equals, _) in zip(settings, pairs) if not equals or not path.strip()]
    if wrong:
        problems = [f"--set {text!r}: write --set path=value, such as --set optimizer.lr=1e-4" for text in wrong]
        raise ConfigError("\n".join(problems), problems)
    return {path.strip(): value for path, _, value in pairs}


def overridden(found: Lazy[Any], values: Mapping[str, str], option: str = "--set") -> Lazy[Any]:
    """The same with values from the command line. Raises ConfigError that names the option."""
    if not values:
        return found
    try:
        return override(found, values)
    except ConfigError as error:
        problems = [f"{option} {problem}" for problem in error.problems]
        raise ConfigError("\n".join(problems), problems) from error


@contextlib.contextmanager
def printing_to_stderr() -> Iterator[None]:
    """While a user's file is imported: what it prints must not mix with the JSON on stdout."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
