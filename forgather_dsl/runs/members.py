"""What a sweep is made of: experiments, one by one or in batches, with the names by which people tell them apart.

In: a list, tuple or dict of experiments (or their classes), or a generator function. Out: `Member`s. A generator that takes what
`yield` returns (`run = yield experiment`) is adaptive: it is asked for the next experiment when the last one is trained.
"""

from __future__ import annotations

import dis
import inspect
import itertools
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..dsl import ConfigError, Lazy, digest, explain, replace
from ..dsl.compare import leaves
from ..dsl.errors import place
from ..dsl.load import is_root
from ..specs import Experiment

__all__ = ["Item", "Member", "batches", "changed", "described", "is_adaptive", "is_sweep_source", "with_seeds"]

MOST_MEMBERS = 10_000
SEED = "seed"


class Item(NamedTuple):
    """An experiment as it was listed: under its class's name, or under its key."""

    name: str
    experiment: Experiment


class Member(NamedTuple):
    """An experiment of a sweep. `group` is the same for members that differ in their seed alone."""

    experiment: Experiment
    digest: str
    label: str
    group: str
    group_label: str


def is_sweep_source(value: Any) -> bool:
    """Whether a value of a file is meant as a sweep; a generator function is not called to find out."""
    if inspect.isgeneratorfunction(value):
        return all(p.default is not p.empty or p.kind in (2, 4) for p in inspect.signature(value).parameters.values())
    items = list(value.values()) if isinstance(value, Mapping) else value
    return isinstance(items, (list, tuple)) and bool(items) and all(map(_is_experiment, items))


def _is_experiment(value: Any) -> bool:
    cls = value if isinstance(value, type) else type(value)
    return issubclass(cls, Lazy) and is_root(cls)


def is_adaptive(source: Any) -> bool:
    """Whether a generator function does something with what one of its own `yield`s returns."""
    if not inspect.isgeneratorfunction(source):
        return False
    code = [step for step in dis.get_instructions(source) if step.opname not in ("RESUME", "EXTENDED_ARG")]
    pairs = [(a, b) for a, b in itertools.pairwise(code) if a.opname == "YIELD_VALUE"]
    return any(after.opname not in ("POP_TOP", "JUMP_BACKWARD_NO_INTERRUPT") for _, after in pairs)


def batches(source: Any, what: str) -> Generator[list[Item], Sequence[Any], None]:
    """Experiments to be trained before more are asked for: all of them, or what an adaptive generator yields next.

    The runs of a batch are sent back (None for one that failed); a generator that yields one experiment receives one run, and
    one that yields a list a list. Raises ConfigError for what is no experiment, and where the generator fails.
    """
    if not is_adaptive(source):
        made = _called(source, what) if callable(source) and not isinstance(source, type) else source
        yield _items(made, what)
        return
    generator: Any = _called(source, what)
    sent: Any = None
    while True:
        try:
            said = generator.send(sent)
        except StopIteration:
            return
        except Exception as error:
            raise _failed(what, error) from error
        many = isinstance(said, (list, tuple, Mapping))
        runs = yield _items(said if many else [said], what)
        sent = list(runs) if many or len(runs) != 1 else runs[0]


def _called(source: Any, what: str) -> Any:
    try:
        return source()
    except ConfigError:
        raise
    except Exception as error:
        raise _failed(what, error) from error


def _failed(what: str, error: Exception) -> ConfigError:
    if isinstance(error, ConfigError):
        return error
    last = traceback.extract_tb(error.__traceback__)[-1]
    return ConfigError(f"{what} raised {type(error).__name__}: {error} ({place(last.filename, last.lineno)})")


def _items(values: Any, what: str) -> list[Item]:
    """Raises ConfigError naming everything that is no experiment."""
    if not isinstance(values, (Mapping, Iterable)) or isinstance(values, (str, bytes)):
        raise ConfigError(f"{what} is {values!r}, not a list of experiments; write [A(), B()] or a generator of them")
    pairs: Iterator[tuple[Any, Any]] = (
        iter(values.items()) if isinstance(values, Mapping) else ((None, v) for v in values)
    )
    found, wrong = [], []
    try:
        for number, (name, value) in enumerate(pairs, start=1):
            if number > MOST_MEMBERS:
                raise ConfigError(f"{what} has more than {MOST_MEMBERS:,} experiments; does its generator ever end?")
            if not _is_experiment(value):
                wrong.append(
                    f"{what}: number {number} is {value!r}, not an experiment; write Mine() or replace(Mine(), ...)"
                )
                continue
            experiment = value() if isinstance(value, type) else value
            found.append(Item(str(name) if name is not None else type(experiment).__name__, experiment))
    except Exception as error:  # of the user's generator
        raise _failed(what, error) from error
    if wrong:
        raise ConfigError("\n".join(wrong), wrong)
    if not found:
        raise ConfigError(f"{what} has no experiment; write [A(), B()] or a generator of them")
    return found


def changed(items: Iterable[Item], change: Callable[[Experiment], Iterable[Experiment]]) -> list[Item]:
    """What `change` makes of each: one, or several that are told apart by what differs."""
    return [Item(item.name, made) for item in items for made in change(item.experiment)]


def with_seeds(experiment: Experiment, seeds: Sequence[int] | int) -> list[Experiment]:
    """The same experiment with other seeds: those given, or so many, from its own on."""
    chosen = range(experiment.seed, experiment.seed + seeds) if isinstance(seeds, int) else seeds
    return [replace(experiment, seed=seed) for seed in chosen]


def described(items: Sequence[Item]) -> list[Member]:
    """Members with labels: the name where names differ, and the values that were chosen and differ among those of one name."""
    texts = [leaves(item.experiment) for item in items]
    several = len({item.name for item in items}) > 1
    members = []
    for item, own in zip(items, texts):
        alike = [other for it, other in zip(items, texts) if it.name == item.name]
        parts = [f"{path}={own[path]}" for path in _told_apart_by(item.experiment, own, alike)]
        seed = f"{SEED}={own[SEED]}"
        parts.sort(key=lambda part: part == seed)  # last
        named = [item.name] if several or not parts else []
        group = digest(replace(item.experiment, seed=0))
        group_label = " ".join([*named, *(part for part in parts if part != seed)]) or item.name
        members.append(Member(item.experiment, digest(item.experiment), " ".join([*named, *parts]), group, group_label))
    return members


def _told_apart_by(experiment: Experiment, own: dict[str, str], alike: list[dict[str, str]]) -> list[str]:
    """Paths of this experiment whose text differs from that of another; not below a type that differs, nor what is computed."""
    paths: list[str] = []
    for path, text in own.items():
        below = any(path.startswith(f"{above}.") for above in paths)
        if path and not below and any(other.get(path) != text for other in alike) and _chosen(experiment, path):
            paths.append(path)
    return paths


def _chosen(experiment: Experiment, path: str) -> bool:
    """Whether somebody wrote the value, rather than a rule that follows from others."""
    if "[" in path:
        return True
    said = explain(experiment, path)
    return not said or said[0].value != "computed"
