"""Where a name in a module comes from: lexically, and where the text leaves a choice, by the object that is there."""

from __future__ import annotations

import ast
import builtins
import importlib
import inspect
import sys
from collections import Counter
from collections.abc import Iterable
from types import ModuleType

from .keys import Builtin, Import, Key, Package, Unit
from .modules import Module, SourceMissing, module_of
from .record import VARIES

_USUAL = {"torch": "torch", "torch.nn": "nn", "torch.nn.functional": "F"}


class Unresolved(Exception):
    """A name whose origin cannot be told; the message says why, `hint` what to do."""

    def __init__(self, reason: str, hint: str = "") -> None:
        super().__init__(reason)
        self.hint = hint


class Modules:
    """The traced modules, and which modules are traced, imported or neither."""

    def __init__(self, inline: Iterable[str], allow: Iterable[str]) -> None:
        self.inline = tuple(inline)
        self.allow = tuple(allow)
        self.spellings: dict[Import, Counter[str]] = {}  # how the sources import something
        self.required: set[str] = set()
        self._modules: dict[str, Module] = {}

    def traced(self, name: str) -> bool:
        """Whether the source of this module is taken in; the longest matching prefix decides."""
        inline = max((len(p) for p in self.inline if _within(name, p)), default=-1)
        return inline > max((len(p) for p in self.allow if _within(name, p)), default=-1)

    def read(self, name: str) -> Module:
        """The text of a traced module. Raises `Unresolved` when there is none."""
        if name not in self._modules:
            live = sys.modules.get(name) or importlib.import_module(name)
            try:
                self._modules[name] = module_of(live)
            except SourceMissing as error:
                raise Unresolved(str(error), "define the class in a file that is imported") from None
        return self._modules[name]

    def texts(self) -> list[Module]:
        """All modules read, by name."""
        return [self._modules[name] for name in sorted(self._modules)]

    def outside(self, module: str, name: str = "", spelling: str = "") -> Import:
        """The import of something that is not traced. Raises `Unresolved` unless torch, the standard library or `allow`."""
        top = module.partition(".")[0]
        if top != "torch" and top not in sys.stdlib_module_names:
            if not any(_within(module, p) for p in self.allow):
                raise Unresolved(
                    f"the code needs {module!r}, which is neither traced nor torch nor the standard library",
                    f"add {top!r} to inline= (its source goes into the file) or to allow= (it stays a requirement), "
                    "or keep the code behind a choice that this model does not take",
                )
            self.required.add(top)
        if top == "importlib":
            raise Unresolved("importlib makes the needed names undecidable", "import the names that are used")
        key = Import(module, name)
        self.spellings.setdefault(key, Counter())[spelling or _spelling(module, name)] += 1
        return key

    def resolve(self, module: Module, name: str) -> Key | Package | Builtin:
        """What `name` at module level of `module` stands for. Raises `Unresolved`."""
        live = vars(module.live).get(name, VARIES)
        found = module.bindings.get(name, [])
        if not found:
            return self._unbound(module, name, live)
        for statement, alias in found:
            if alias is None:
                continue
            if isinstance(statement, ast.Import):
                if isinstance(live, ModuleType):
                    return self._module(live.__name__, _respelled(live.__name__, alias, statement))
                continue
            assert isinstance(statement, ast.ImportFrom)
            source = module.origin(statement)
            value = _attribute(source, alias.name)
            if value is VARIES and isinstance(live, ModuleType) and live.__name__ == f"{source}.{alias.name}":
                value = live
            if value is VARIES or (live is not VARIES and value is not live):
                continue  # the other arm of a try or an if
            if isinstance(value, ModuleType):
                return self._module(value.__name__, ast.unparse(ast.ImportFrom(source, [alias], 0)))
            if self.traced(source):
                return self.resolve(self.read(source), alias.name)
            if (unit := self.home(value)) is not None:
                return unit
            return self.outside(source, alias.name, ast.unparse(ast.ImportFrom(source, [alias], 0)))
        if any(alias is None for _, alias in found):
            return Unit(module.name, name)
        raise Unresolved(f"cannot tell where {name!r} comes from")

    def home(self, value: object) -> Unit | None:
        """The traced definition that a module outside only passes on."""
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
        if (
            not (isinstance(value, type) or inspect.isroutine(value))
            or not isinstance(module, str)
            or not self.traced(module)
        ):
            return None
        return Unit(module, name) if getattr(sys.modules.get(module), name, None) is value else None

    def _unbound(self, module: Module, name: str, live: object) -> Key | Package | Builtin:
        for statement in module.stars if live is not VARIES else ():
            source = module.origin(statement)
            if _attribute(source, name) is live:
                if self.traced(source):
                    return self.resolve(self.read(source), name)
                return self.outside(source, name)
        if hasattr(builtins, name) or name in ("__name__", "__doc__"):
            return Builtin(name)
        if live is not VARIES:
            raise Unresolved(
                f"{name!r} exists at run time, but no statement in the file binds it (globals(), setattr, exec?)"
            )
        raise Unresolved(f"{name!r} is not defined")

    def _module(self, name: str, spelling: str) -> Key | Package:
        if self.traced(name) or (not self._outside_allowed(name) and any(_within(p, name) for p in self.inline)):
            return Package(name)
        return self.outside(name, spelling=spelling)

    def _outside_allowed(self, name: str) -> bool:
        top = name.partition(".")[0]
        return top == "torch" or top in sys.stdlib_module_names or any(_within(name, p) for p in self.allow)

    def statement(self, key: Import) -> tuple[str, str]:
        """(the import statement, the name that it binds), in the spelling that the sources use most."""
        counts = self.spellings.get(key) or Counter({_spelling(key.module, key.name): 1})
        usual = _USUAL.get(key.module) if not key.name else None
        fitting = {s: c for s, c in counts.items() if usual is None or _binds(s) == usual}
        if not fitting:
            return _spelling(key.module, key.name), usual or key.name
        best = min(fitting, key=lambda s: (-fitting[s], s))
        return best, _binds(best)


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _attribute(module: str, name: str) -> object:
    try:
        return getattr(importlib.import_module(module), name, VARIES)
    except Exception:  # the arm that was not taken: whatever the package raises
        return VARIES


def _spelling(module: str, name: str) -> str:
    if name:
        return f"from {module} import {name}"
    usual = _USUAL.get(module)
    if usual and usual != module:
        return f"import {module} as {usual}"
    return f"import {module}"


def _respelled(module: str, alias: ast.alias, statement: ast.Import) -> str:
    if alias.asname:
        return ast.unparse(ast.Import([ast.alias(module, None if alias.asname == module else alias.asname)]))
    return f"import {module}"


def _binds(spelling: str) -> str:
    return spelling.rpartition(" ")[2]
