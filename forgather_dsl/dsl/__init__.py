"""The language: typed, frozen, lazily resolved descriptions of Python objects, overridden by subclassing.

Words for class bodies: `Lazy, REQUIRED, derived, patch, swap, call, Cycle, Factory`. Functions over instances: `build, replace,
override, check, explain, diff, snapshot, digest, to_dict, from_dict, graph`. Nothing here imports what it describes.
"""

from .annotations import Factory
from .build import build
from .check import check, is_mixin, missing, problems, warnings
from .compare import Difference, diff, digest, snapshot
from .errors import ConfigError, CycleError, Frozen, LoadError, MissingValue, PatchError, UnknownField, Untrusted
from .explain import Said, explain
from .graph import Graph, graph, walk
from .lazy import Lazy, replace
from .load import load
from .overlay import override
from .serialize import from_dict, to_dict
from .special import Call, Cycle, call
from .words import REQUIRED, derived, patch, swap

__all__ = [
    "REQUIRED",
    "Call",
    "ConfigError",
    "Cycle",
    "CycleError",
    "Difference",
    "Factory",
    "Frozen",
    "Graph",
    "Lazy",
    "LoadError",
    "MissingValue",
    "PatchError",
    "Said",
    "UnknownField",
    "Untrusted",
    "build",
    "call",
    "check",
    "derived",
    "diff",
    "digest",
    "explain",
    "from_dict",
    "graph",
    "is_mixin",
    "load",
    "missing",
    "override",
    "patch",
    "problems",
    "replace",
    "snapshot",
    "swap",
    "to_dict",
    "walk",
    "warnings",
]
