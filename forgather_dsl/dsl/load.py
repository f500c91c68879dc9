"""Finding an experiment: `file.py:Class`, `file.py` (its only concrete class), a dotted module, `module:Class`.

A file is imported under the dotted name it has from its project root when that works, so that `from experiments.x import Base`
and `experiments/x.py:Base` are one class; otherwise under a name made from its absolute path, registered before it runs
(pickle and inspect need that) and removed when it fails.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import re
import sys
import traceback
from types import ModuleType
from typing import Any

from .errors import ConfigError, LoadError, place, suggest

_files: dict[str, str] = {}  # module name -> absolute path, for modules that a file path brought in
ROOT_MARKS = ("pyproject.toml", "setup.py", ".git")


def loaded_from(module: str) -> str | None:
    """The file a module was loaded from by path, or None for an ordinarily imported one."""
    return _files.get(module)


def load(target: str) -> Any:
    """The class or value that `target` names. Raises LoadError with suggestions, ConfigError from the file itself."""
    where, name = split_target(target)
    if not where.endswith(".py"):
        return (
            _attribute(_import(where, target), name, where) if name else only_experiment(_import(where, target), where)
        )
    module = load_file(where)
    return _attribute(module, name, where) if name else only_experiment(module, where)


def split_target(target: str) -> tuple[str, str]:
    """`C:\\\\x.py:Class` and `x.py:Class` alike: the last colon, when a name follows it."""
    where, colon, name = target.rpartition(":")
    if colon and re.fullmatch(r"[A-Za-z_][\w.]*", name) and where:
        return where, name
    return target, ""


def load_class(path: str) -> type:
    """A class by the path that `pickling.path_of` gave."""
    found = load(path)
    if not isinstance(found, type):
        raise LoadError(f"{path} is {found!r}, not a class")
    return found


def load_file(file: str) -> ModuleType:
    """Import a Python file by path; once per process."""
    path = os.path.realpath(file)
    if not os.path.isfile(path):
        raise LoadError(f"no file {file}{_near_file(path)}")
    root = project_root(path)
    name = _module_name(path, root)
    if name in sys.modules:
        return sys.modules[name]
    if root not in sys.path:
        sys.path.insert(0, root)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise LoadError(f"{file} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name], _files[name] = module, path
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name], _files[name]
        if isinstance(error, (ConfigError, KeyboardInterrupt, SystemExit)):
            raise
        raise LoadError(f"{file} does not import: {_reason(error, path)}") from error
    return module


def project_root(path: str) -> str:
    """The nearest folder above with a project file, else the file's own folder."""
    folder = os.path.dirname(path)
    while True:
        if any(os.path.exists(os.path.join(folder, mark)) for mark in ROOT_MARKS):
            return folder
        above = os.path.dirname(folder)
        if above == folder:
            return os.path.dirname(path)
        folder = above


def _module_name(path: str, root: str) -> str:
    parts = os.path.relpath(path, root)[: -len(".py")].split(os.sep)
    dotted = ".".join(parts)
    if len(parts) > 1 and all(part.isidentifier() for part in parts):
        top = sys.modules.get(parts[0])
        places = [os.path.realpath(p) for p in getattr(top, "__path__", ())] if top else [os.path.join(root, parts[0])]
        if os.path.join(root, parts[0]) in places and (dotted not in sys.modules or _same(sys.modules[dotted], path)):
            return dotted
    return "_experiment_" + re.sub(r"\W", "_", path)


def _same(module: ModuleType, path: str) -> bool:
    return os.path.realpath(getattr(module, "__file__", None) or "") == path


def _import(name: str, target: str) -> ModuleType:
    if os.path.exists(name) or "/" in name:
        raise LoadError(f"{target} is not a Python file; write file.py:Class, or the folder of a finished run")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(error.name + ".")):
            hint = f"; is it the file {name}.py?" if os.path.exists(f"{name}.py") else ""
            raise LoadError(f"no module or file named {name!r}{hint}") from error
        raise LoadError(f"{name} does not import: {error}") from error


def _attribute(module: ModuleType, name: str, where: str) -> Any:
    try:
        return functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        from .lazy import Lazy

        known = [k for k, v in vars(module).items() if isinstance(v, type) and issubclass(v, Lazy)]
        raise LoadError(f"{where} has no {name!r}{suggest(name, known, 'it has')}") from None


def experiments_in(module: ModuleType) -> list[type]:
    """The root classes that a module itself defines, in the order of its lines."""
    from .lazy import Lazy

    found = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Lazy) and v.__module__ == module.__name__
    ]
    return [cls for cls in dict.fromkeys(found) if is_root(cls)]


def is_root(cls: type) -> bool:
    """Whether a class is an experiment: a Lazy that says it can be run."""
    return bool(getattr(cls, "__root__", False))


def only_experiment(module: ModuleType, where: str) -> type:
    """The one experiment of a file that can run. Raises LoadError naming them all when there are several."""
    roots = experiments_in(module)
    concrete = [cls for cls in roots if not cls.__abstract__]  # type: ignore[attr-defined]
    if len(concrete) == 1:
        return concrete[0]
    if not roots:
        raise LoadError(f"{where} defines no Experiment; write class Mine(Experiment): ...")
    names = ", ".join(f"{where}:{cls.__qualname__}" for cls in concrete or roots)
    what = f"defines {len(concrete)} experiments" if concrete else "defines abstract experiments only"
    raise LoadError(f"{where} {what}; choose one: {names}")


def _near_file(path: str) -> str:
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        return ""
    return suggest(os.path.basename(path), [f for f in os.listdir(folder) if f.endswith(".py")], "Python files there")


def _reason(error: BaseException, path: str) -> str:
    """The error and the line of this file that led to it."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} ({place(error.filename or path, error.lineno)})"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if os.path.realpath(f.filename) == path]
    return f"{type(error).__name__}: {error} ({place(path, lines[-1] if lines else None)})"
