"""The closure: from the model's class to everything that its code needs, round after round until nothing changes."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch.nn as nn

from .effects import effects, unit_of
from .errors import CodegenError, Problem
from .facts import Log, World
from .keys import Unit
from .modules import Module
from .record import CodeKey, code_key
from .reify import Unwritable, config_fields
from .resolve import Unresolved
from .scopes import FUNCTIONS
from .units import Units, Written, write
from .walk import Function, Scope, class_key, function_keys

_MOST_ROUNDS = 40
_FLAGS = (
    "torch.set_default_dtype", "torch.set_default_device", "torch.set_float32_matmul_precision", "torch.set_num_threads",
    "torch.manual_seed", "torch.use_deterministic_algorithms", "torch.set_printoptions", "torch.set_grad_enabled",
    "torch.autograd.set_detect_anomaly", "random.seed",
)  # fmt: skip


class Closure:
    """All units of the file, in the order in which the root needs them."""

    def __init__(
        self,
        world: World,
        model: nn.Module,
        also: Iterable[Callable[..., Any]],
        builder: Callable[[], Any] | None = None,
    ) -> None:
        self.world = world
        self.model = model  # as it was built while it was watched
        self.also = list(also)
        self.builder = builder  # its source stands in where the arguments of the root have none
        self.units: dict[Unit, Written] = {}
        self.parents: dict[Unit, Unit] = {}
        self.build = ""  # the call that builds the model
        self.root = ""
        self.also_texts: list[str] = []
        self._originally: set[str] = set()
        world.kept = {k for f in self.also for k in [code_key(f)] if k}

    @functools.cached_property
    def _foreign(self) -> bool:
        """Whether a class has a base of an allowed package, whose code may read any attribute of the model."""
        bases = {base for cls in self.world.instances for base in cls.__mro__}
        outside = {base.__module__ for base in bases if not self.world.modules.traced(base.__module__)}
        return any(name.partition(".")[0] not in ("torch", *sys.stdlib_module_names) for name in outside)

    def run(self) -> None:
        """Walk until a round finds what the round before found. Raises `CodegenError` with all problems of the last."""
        for number in range(_MOST_ROUNDS):
            self._round(number)
            settled = number > 4 and self.world.log.stable() == self.world.before.stable()
            if settled:
                break
            if number >= _MOST_ROUNDS // 2:
                self.world.hold(self.world.before, self.world.log)
            self.world.before, self.world.log = self.world.log, Log()
        else:
            raise CodegenError(
                [Problem("this is a bug in codegen: specialisation does not settle", "report it, or try opaque=")]
            )
        problems = [self._placed(unit, problem) for unit, problem in self.world.log.problems]
        if problems:
            raise CodegenError(list(dict.fromkeys(problems)))

    def _round(self, number: int) -> None:
        world = self.world
        self.units, self.parents = {}, {}
        before = world.before
        world.log.remember(before)
        world.settled = number
        world.constructing = {k for k in before.construction() if k in world.record.constants}
        stay = number < 2 or self._foreign
        world.dead_attributes = set() if stay else self._originally - before.reads - world.dynamic_names
        walker = self._root_walker()
        texts = [self._root_text(walker)]
        self.also_texts = [self._also_text(walker, function) for function in self.also]
        texts += self.also_texts
        todo: list[tuple[Unit, Unit | None]] = [
            (k, None) for t in texts for k in world.marks.keys(t) if isinstance(k, Unit)
        ]
        while todo or (todo := self._effects()):
            unit, parent = todo.pop(0)
            if unit in self.units:
                continue
            if parent is not None:
                self.parents[unit] = parent
            written = self._written(unit)
            self.units[unit] = written
            todo += [(k, unit) for k in world.marks.keys(written.text) if isinstance(k, Unit)]
        if number == 0:
            self._originally = {
                n.attr
                for module in world.modules.texts()
                for n in ast.walk(module.tree)
                if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Load)
            }

    def _effects(self) -> list[tuple[Unit, Unit | None]]:
        """Statements that change what is retained by now."""
        found: list[tuple[Unit, Unit | None]] = []
        for name in dict.fromkeys(u.module for u in self.units):
            module = self.world.modules.read(name)
            names = {u.name: u for u in self.units if u.module == name}
            for statement in effects(module, names):
                unit = unit_of(module, statement)
                if unit not in self.units:
                    found.append((unit, None))
        return found

    def _written(self, unit: Unit) -> Written:
        try:
            return write(self.world, unit)
        except Unresolved as error:
            self.world.log.problems.append((unit, Problem(f"{unit.module}.{unit.name}: {error}", error.hint)))
        except CodegenError:
            raise
        except Exception as error:
            self.bug(unit, error)
        return Written(unit, ast.Pass(), "", False)

    def bug(self, unit: Unit | None, error: Exception) -> None:
        """An error of codegen's own, shown with its place."""
        place = f"{unit.module}.{unit.name}" if unit else "the root"
        problem = Problem(
            f"this is a bug in codegen: {type(error).__name__} at {place}: {error}",
            "report it, or copy the unit whole with opaque=",
        )
        raise CodegenError([problem]) from error

    def _root_walker(self) -> Units:
        cls = type(self.model)
        walker = Units(self.world, self.world.modules.read(cls.__module__), Unit(cls.__module__, cls.__qualname__))
        building = Function(CodeKey("", 0, "build_model"), "build_model", None, None, construction=True)
        walker.scopes = [Scope("function", function=building)]
        return walker

    def _root_text(self, walker: Units) -> str:
        """The call that builds the model with the arguments that it was built with."""
        cls = type(self.model)
        walker.soft = 1
        arguments = self.world.record.root() or {}
        self.world.log.called.setdefault(class_key(cls), set()).add("construction")
        for key in function_keys(cls):
            self.world.log.called.setdefault(key, set()).add("construction")
        try:
            walker.role = "call"
            self.root = walker.reified(cls)
            walker.role = "value"
            self.build = self._call(walker, arguments)
        except (Unwritable, Unresolved) as error:
            self.build = self._builder_text(walker)
            if not self.build:
                self.build = f"{self.root}()"
                self.world.log.problems.append(
                    (None, Problem(f"an argument of {cls.__qualname__}: {error}", error.hint))
                )
        return self.build

    def _builder_text(self, walker: Units) -> str:
        """A call of the builder, when it is a function at module level of a traced module; else nothing."""
        builder = self.builder
        if not inspect.isfunction(builder) or builder.__closure__ or builder.__code__.co_argcount:
            return ""
        key = code_key(builder)
        if key is None or not self.world.modules.traced(key.module) or "<" in builder.__qualname__:
            return ""
        try:
            self.world.kept.add(key)
            self.world.log.called.setdefault(key, set()).add("construction")
            return f"{walker.reified(builder)}()"
        except (Unwritable, Unresolved):
            return ""

    def _call(self, walker: Units, arguments: dict[str, Any]) -> str:
        named = {n: v for n, v in arguments.items() if not n.startswith("*")}
        return walker.call_text(self.model, named, arguments)

    def _also_text(self, walker: Units, function: Callable[..., Any]) -> str:
        try:
            text = walker.reified(function)
        except (Unwritable, Unresolved) as error:
            self.world.log.problems.append((None, Problem(f"also: {error}", error.hint)))
            return ""
        for key in function_keys(function):
            self.world.log.called.setdefault(key, set()).add("runtime")
        return text

    def is_config(self, unit: Unit) -> bool:
        """Whether a unit is a config class."""
        return any((c.__module__, c.__qualname__) == (unit.module, unit.name) for c in self.world.configs)

    def flags(self) -> list[Problem]:
        """Statements of the traced modules that set something for the whole process."""
        return [p for module in {u.module for u in self.units} for p in process_flags(self.world.modules.read(module))]

    def _placed(self, unit: Unit | None, problem: Problem) -> Problem:
        """A problem with the chain of units that leads to it."""
        chain: list[str] = []
        while unit is not None and f"{unit.module}.{unit.name}" not in chain:
            chain.append(f"{unit.module}.{unit.name}")
            unit = self.parents.get(unit)
        return Problem(problem.reason, problem.hint, problem.file, problem.line, problem.text, tuple(chain[::-1]))


def gather(world: World, model: nn.Module) -> None:
    """Fill in the instances of traced classes that the model holds, and the configs among them."""
    seen: set[int] = set()
    todo: list[Any] = [*model.modules(), *(world.record.root() or {}).values()]
    while todo:
        value = todo.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        cls = type(value)
        if isinstance(value, (list, tuple)):
            todo += value
        elif isinstance(value, dict):
            todo += value.values()
        elif world.modules.traced(cls.__module__) and not isinstance(value, type):
            if inspect.isroutine(value):
                continue
            if config_fields(cls) and not isinstance(value, nn.Module) and _is_plain_config(world, cls):
                world.configs.setdefault(cls, []).append(value)
                todo += [getattr(value, name, None) for name in config_fields(cls)]
                continue
            for base in cls.__mro__:
                world.instances.setdefault(base, []).append(value)
            todo += getattr(value, "__dict__", {}).values()
        elif isinstance(value, nn.Module):
            for base in cls.__mro__:
                world.instances.setdefault(base, []).append(value)


def _is_plain_config(world: World, cls: type) -> bool:
    """Whether a config class holds fields and no behaviour of packages that the file does not have."""
    bases = [b for b in cls.__mro__ if b is not object and not world.modules.traced(b.__module__)]
    return all(b.__module__.partition(".")[0] in ("pydantic", "attr", "attrs", "typing", "abc") for b in bases)


def find_writers(world: World) -> None:
    """Attributes that public methods and functions store outside construction: they are toggles, not facts."""
    modules = sorted({c.__module__ for c in [*world.instances, *world.configs] if world.modules.traced(c.__module__)})
    for name in modules:
        try:
            module = world.modules.read(name)
        except Unresolved:
            continue
        for node in ast.walk(module.tree):
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    if isinstance(method, FUNCTIONS) and method.name not in ("__init__", "__post_init__", "__new__"):
                        _note(world, f"{name}.{node.name}", method)
        for node in module.tree.body:
            if isinstance(node, FUNCTIONS):
                _note(world, "", node)


def _note(world: World, owner: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
    stored = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and not isinstance(n.ctx, ast.Load)}
    if stored and not (node.name.startswith("_") and not node.name.startswith("__")):
        world.writers[owner, node.name] = stored
        world.changed |= stored


def process_flags(module: Module) -> list[Problem]:
    """Calls and assignments at module level that change torch for everyone."""
    found: list[Problem] = []
    for node in module.tree.body:
        text = ast.unparse(node)
        sets = isinstance(node, ast.Assign) and text.startswith(
            ("torch.backends.", "torch._dynamo.config.", "torch._inductor.config.")
        )
        calls = isinstance(node, ast.Expr) and text.startswith(_FLAGS)
        if sets or calls:
            reason = (
                "this sets something for the whole process when the module is imported, which the file would not do"
            )
            found.append(
                Problem(reason, "set it where the model is run", module.file, node.lineno, module.line(node.lineno))
            )
    return found
