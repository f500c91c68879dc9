"""What one round over the sources finds out, for the next round to build on, until a round finds nothing new."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from .errors import Problem
from .keys import Marks, Unit
from .record import CodeKey, Record
from .resolve import Modules
from .source import Decision

Parameter = tuple[CodeKey, str]


@dataclass
class Log:
    """The findings of one round."""

    reads: set[str] = field(default_factory=set)  # attributes that the retained code reads, by name
    open_reads: set[str] = field(default_factory=set)  # those of objects other than self
    tested: set[Unit] = field(default_factory=set)  # classes that are named as types
    fields: set[tuple[type, str]] = field(default_factory=set)  # fields of configs that it reads
    fixed: set[Parameter] = field(default_factory=set)  # parameters that decided something
    fixed_fields: set[tuple[type, str]] = field(default_factory=set)
    folded: set[tuple[type, str]] = field(default_factory=set)  # attributes that decided something
    dead: set[Parameter] = field(default_factory=set)  # parameters whose uses are all gone
    dead_locals: set[Parameter] = field(default_factory=set)
    empty: set[CodeKey] = field(default_factory=set)  # functions that do nothing any more
    called: dict[CodeKey, set[str]] = field(default_factory=dict)  # "construction", "runtime"
    escaped: set[CodeKey] = field(default_factory=set)  # functions that are passed on as values
    pinned: set[CodeKey] = field(default_factory=set)  # functions whose parameters cannot be left out of some call
    loose: set[str] = field(default_factory=set)  # methods called on objects that are not known
    whole: set[type] = field(default_factory=set)  # configs that are handed on to other code
    tainted_attributes: dict[str, str] = field(default_factory=dict)
    tainted_parameters: dict[Parameter, str] = field(default_factory=dict)
    tainted_units: dict[Unit, str] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)  # attributes stored outside construction
    decisions: set[Decision] = field(default_factory=set)
    checks: set[tuple[str, int]] = field(default_factory=set)
    problems: list[tuple[Unit | None, Problem]] = field(default_factory=list)

    def stable(self) -> tuple[Any, ...]:
        """What the next round depends on."""
        return (
            self.reads, self.open_reads, self.tested, self.fields, self.fixed, self.fixed_fields, self.folded, self.dead, self.dead_locals, self.empty,
            self.called, self.escaped, self.pinned, self.loose, self.whole, self.tainted_attributes,
            self.tainted_parameters, self.tainted_units, self.written,
        )  # fmt: skip

    def remember(self, before: Log) -> None:
        """Start from what is never taken back."""
        self.tainted_attributes = dict(before.tainted_attributes)
        self.tainted_parameters = dict(before.tainted_parameters)
        self.tainted_units = dict(before.tainted_units)

    def construction(self) -> set[CodeKey]:
        """Functions that are called during construction alone."""
        return {k for k, where in self.called.items() if where == {"construction"} and k not in self.escaped}


@dataclass
class Options:
    """What the caller asks for."""

    keep: Collection[str] = ()
    dynamic: Collection[str] = ()
    opaque: Collection[Any] = ()


@dataclass
class World:
    """All that is known about the model while its sources are walked."""

    modules: Modules
    marks: Marks
    record: Record
    options: Options
    instances: dict[type, list[Any]] = field(default_factory=dict)
    configs: dict[type, list[Any]] = field(default_factory=dict)
    before: Log = field(default_factory=Log)
    log: Log = field(default_factory=Log)
    stuck: set[CodeKey] = field(default_factory=set)  # functions whose parameters stay, for reasons of text
    staying: set[Parameter] = field(default_factory=set)  # parameters and locals that stay, come what may
    constructing: set[CodeKey] = field(default_factory=set)  # functions that run during construction alone
    passed: dict[CodeKey, set[tuple[str, int]]] = field(
        default_factory=dict
    )  # the checks of functions that are empty now
    settled: int = 0  # rounds walked so far
    dead_attributes: set[str] = field(default_factory=set)
    writers: dict[tuple[str, str], set[str]] = field(default_factory=dict)  # (class, method) -> attributes it stores
    kept: set[CodeKey] = field(default_factory=set)  # functions that were asked for by name
    changed: set[str] = field(default_factory=set)  # attributes that public code stores outside construction

    @property
    def dynamic_names(self) -> set[str]:
        """Names that stay, because the caller says so."""
        return {*self.options.keep, *self.options.dynamic}

    def is_opaque(self, module: str, qualname: str = "") -> bool:
        """Whether a module or class is to be copied as it is."""
        for item in self.options.opaque:
            if isinstance(item, type):
                if (item.__module__, item.__qualname__) == (module, qualname):
                    return True
            elif module == item or module.startswith(f"{item}.") or f"{module}.{qualname}" == item:
                return True
        return False

    def hold(self, one: Log, other: Log) -> None:
        """Two rounds disagree, again and again: let stay what they disagree about."""
        for a, b in ((one.fixed, other.fixed), (one.dead, other.dead), (one.dead_locals, other.dead_locals)):
            self.staying |= a ^ b

    def removable(self, parameter: Parameter) -> bool:
        """Whether a parameter leaves the signature and every call."""
        gone = parameter in self.before.fixed or parameter in self.before.dead
        key = parameter[0]
        return (
            gone
            and parameter not in self.staying
            and key not in self.before.pinned
            and key not in self.before.escaped
            and key not in self.stuck
        )
