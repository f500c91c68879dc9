"""Stores: those that nothing reads any more go; of the others it is noted what they hold."""

from __future__ import annotations

import ast
from typing import Any

import torch
import torch.nn as nn

from .calls import Calls
from .record import SIMPLE
from .scopes import is_plain
from .walk import Function, Unknown


class Stores(Calls):
    """The walk over assignments."""

    depth = 0  # of blocks within the function

    single: frozenset[str] = frozenset()  # local names that are stored once

    def _statement_assign(self, node: ast.Assign) -> tuple[bool, bool]:
        if all(self._dead_store(t, node.value) for t in node.targets):
            self._gone(node.value)
            return True, False
        self._note_store(node.targets, node.value)
        self.expr(node.value)
        for target in node.targets:
            self._target_of_store(target)
        return False, False

    def _statement_annassign(self, node: ast.AnnAssign) -> tuple[bool, bool]:
        if node.value is not None and self._dead_store(node.target, node.value):
            self._gone(node.value)
            return True, False
        if node.value is not None:
            self._note_store([node.target], node.value)
        self.annotation(node.annotation)
        self.expr(node.value)
        if node.value is not None:
            self._target_of_store(node.target)
        return False, False

    def _statement_augassign(self, node: ast.AugAssign) -> tuple[bool, bool]:
        self.expr(node.value)
        if isinstance(node.target, ast.Name) and (scope := self.scope_of(node.target.id)):
            scope.loads.add(node.target.id)
        elif isinstance(node.target, ast.Attribute):
            self.log.reads.add(node.target.attr)
        self.expr(node.target)
        return False, False

    def _target_of_store(self, target: ast.expr) -> None:
        """What is stored for sure, at the top of a function, is not what a parameter held."""
        scope = self.scopes[-1] if self.scopes else None
        if isinstance(target, ast.Name) and scope is not None and scope.kind == "function" and self.depth == 0:
            scope.first.setdefault(target.id, "store")
        self.expr(target)

    def _dead_store(self, target: ast.expr, value: ast.expr) -> bool:
        """A store that nothing reads any more, of a value without effects."""
        if self.opaque or not is_plain(self._chosen(value)):
            return False
        if self.scopes and self.scopes[-1].kind == "class":
            return isinstance(target, ast.Name) and self.unread(target.id)
        function = self.function
        if function is None:
            return False
        if isinstance(target, ast.Name) and self.scopes[-1].kind == "function":
            local = (function.key, target.id)
            return local in self.before.dead_locals and local not in self.world.staying
        if not isinstance(target, ast.Attribute) or not self._mine(target, function) or not function.construction:
            return False
        if function.owner is None or target.attr not in self.world.dead_attributes or self._inherits(function.owner):
            return False
        held = [self.held(i, target.attr) for i in self.world.instances.get(function.owner, ())]
        return not any(isinstance(v, (nn.Module, torch.Tensor)) for v in held)

    def _inherits(self, cls: type) -> bool:
        """Whether a class has code of torch beside that of every module, which may read what it stores."""
        outside = [base for base in cls.__mro__ if not self.world.modules.traced(base.__module__)]
        return any(base.__module__.partition(".")[0] == "torch" and base is not nn.Module for base in outside)

    def _chosen(self, value: ast.expr) -> ast.expr:
        """The arm that a conditional expression takes, if that is known."""
        while isinstance(value, ast.IfExp) and (found := self.decide(value.test)) is not None:
            value = value.body if found[0] else value.orelse
        return value

    def _gone(self, value: ast.expr) -> None:
        """Note the choice that went with a store."""
        while isinstance(value, ast.IfExp) and (found := self.decide(value.test)) is not None:
            self.decided(value.test, str(found[0]), found[1])
            value = value.body if found[0] else value.orelse

    def unread(self, name: str) -> bool:
        """Whether nothing that is retained reads a constant of the class that is being walked."""
        raise NotImplementedError

    def held(self, instance: Any, name: str) -> Any:
        """An attribute of an instance without properties."""
        for store in ("__dict__", "_parameters", "_buffers", "_modules"):
            if name in getattr(instance, store, {}):
                return getattr(instance, store)[name]
        return None

    def _note_store(self, targets: list[ast.expr], value: ast.expr) -> None:
        """Local names with frozen values; values that belong to the machine; what decided attributes rest on."""
        function = self.function
        why = self.taint(value)
        for target in targets:
            if isinstance(target, ast.Name) and self.scopes and self.scopes[-1].kind == "function":
                scope = self.scopes[-1]
                if why:
                    scope.tainted[target.id] = why
                elif target.id in self.single:
                    try:
                        found, used = self.known(value)
                    except Unknown:
                        continue
                    if isinstance(found, (*SIMPLE, type)) or type(found) in self.world.configs or callable(found):
                        scope.known[target.id] = (found, tuple(used))
            elif isinstance(target, ast.Attribute) and function is not None and self._mine(target, function):
                self._note_attribute(target, value, function, why)

    def _mine(self, target: ast.Attribute, function: Function) -> bool:
        return isinstance(target.value, ast.Name) and target.value.id == function.self_name

    def _note_attribute(self, target: ast.Attribute, value: ast.expr, function: Function, why: str | None) -> None:
        if why:
            held = [self.held(i, target.attr) for i in self.world.instances.get(function.owner or type(None), ())]
            self.log.tainted_attributes[target.attr] = why
            if function.construction and not any(isinstance(v, (nn.Module, torch.Tensor)) for v in held):
                self.problem(
                    target,
                    f"self.{target.attr} holds {why}, which belongs to this machine rather than to the model",
                    "make it an argument of the constructor, or ask for it in forward",
                )
        owner = function.owner
        if owner is None or not function.construction:
            return
        if any(
            name == target.attr and (issubclass(owner, c) or issubclass(c, owner)) for c, name in self.before.folded
        ):
            self._fixes(value, fixed=True)
