"""Attributes as facts: of configs, modules, enums, classes, and of objects of which all instances agree."""

from __future__ import annotations

import enum
import inspect
from types import ModuleType
from typing import Any

import torch
import torch.nn as nn

from . import taint
from .questions import Questions
from .record import SIMPLE, same
from .walk import Unknown, Use, class_key

METHODS = ("startswith", "endswith", "lower", "upper", "strip", "get", "split", "removeprefix", "removesuffix")


class _Object:
    """Some module or tensor: all that is known is that it is not None."""

    def __repr__(self) -> str:
        return "not None"


OBJECT: Any = _Object()


class Attributes(Questions):
    """Frozen attributes of known objects; `used` collects the facts that a value rests on."""

    used: list[Use]

    def attribute_of(self, base: Any, name: str) -> Any:
        """A frozen attribute of a known object. Raises `Unknown`."""
        if base is OBJECT:
            raise Unknown
        if isinstance(base, ModuleType):
            if taint.of_attribute(base, name):
                raise Unknown
            return getattr(base, name)
        if type(base) in self.world.configs:
            if name in self.world.changed or name in self.world.options.dynamic or not hasattr(base, name):
                raise Unknown
            self.used.append(("field", type(base), name))
            return getattr(base, name)
        if isinstance(base, enum.Enum) and name in ("value", "name"):
            return getattr(base, name)
        if isinstance(base, type) and issubclass(base, enum.Enum):
            return getattr(base, name)
        if isinstance(base, type):
            found = inspect.getattr_static(base, name)
            if isinstance(found, type) or inspect.isfunction(found):
                return found
            raise Unknown
        if type(base) in self.world.instances:
            return self.attribute(type(base), name)
        if isinstance(base, str) and name in METHODS:
            return getattr(base, name)
        raise Unknown

    def attribute(self, cls: type, name: str) -> Any:
        """An attribute that is the same in all instances of `cls` and never changes. Raises `Unknown`."""
        if name in self.world.options.dynamic or name in self.world.changed or name in self.before.written:
            raise Unknown
        if name in self.before.tainted_attributes or "runtime" in self.before.called.get(class_key(cls), ()):
            raise Unknown
        values = [_held(instance, name) for instance in self.world.instances.get(cls, ())]
        if not values:
            raise Unknown
        if all(isinstance(v, (nn.Module, torch.Tensor)) for v in values):
            return OBJECT
        if all(same(values[0], v) for v in values[1:]) and not isinstance(values[0], (nn.Module, torch.Tensor)):
            self.used.append(("attribute", cls, name))
            return values[0]
        if all(v is not None for v in values):
            return OBJECT
        raise Unknown


def _held(instance: Any, name: str) -> Any:
    """An attribute as the instance or its class holds it. Raises `Unknown` for properties and where there is none."""
    for store in ("__dict__", "_parameters", "_buffers", "_modules"):
        held = getattr(instance, store, {})
        if name in held:
            return held[name]
    try:
        found = inspect.getattr_static(type(instance), name)
    except AttributeError:
        raise Unknown from None
    if isinstance(found, SIMPLE):
        return found
    if inspect.isdatadescriptor(found) and not isinstance(found, property) and hasattr(instance, name):
        return getattr(instance, name)  # a slot
    raise Unknown
