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

from .errors import ConfigError, LoadError, place, suggest, title

_files: dict[str, str] = {}  # module name -> absolute path, for modules that a file path brought in
ROOT_MARKS = ("pyproject.toml", "setup.py", ".git")


def loaded_from(module: str) -> str | None:
    """The file a module was loaded from by path, or None for an ordinarily imported one."""
    return _files.get(module)


def load(target: str, /) -> Any:
    """The class or value that `target` names. Raises LoadError with suggestions, ConfigError from the file itself."""
    where, name = split_target(target)
    if ".py:" in where:
        raise LoadError(f"{target!r}: {where.partition('.py:')[2]!r} is not the name of a class; write file.py:Class")
    module = load_file(where) if where.endswith(".py") else _import(where, target)
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
    main = sys.modules.get("__main__")
    if main is not None and _same(main, path):
        return main  # the script that is running; a second copy would have classes of its own
    root = project_root(path)
    if root not in sys.path:
        sys.path.insert(0, root)
    if os.path.dirname(path) not in sys.path:
        sys.path.append(
            os.path.dirname(path)
        )  # neighbours under their bare names too, after all that has another right to them
    importlib.invalidate_caches()  # the file may be younger than the last look at its folder
    name = _dotted_name(path, root) or "_experiment_" + re.sub(r"\W", "_", path)
    if name in sys.modules:
        _files.setdefault(name, path)
        return sys.modules[name]
    _files[name] = path
    try:
        return _executed(name, path) if name.startswith("_experiment_") else importlib.import_module(name)
    except BaseException as error:
        del _files[name]
        if isinstance(error, (ConfigError, KeyboardInterrupt)):
            raise
        raise LoadError(f"{file} does not import: {_reason(error, path)}") from error


def _executed(name: str, path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
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


def _dotted_name(path: str, root: str) -> str | None:
    """The name under which an import statement finds this very file, if there is one."""
    parts = os.path.relpath(path, root)[: -len(".py")].split(os.sep)
    name = ".".join(parts)
    if not all(part.isidentifier() for part in parts):
        return None
    if name in sys.modules:
        return name if _same(sys.modules[name], path) else None
    try:
        spec = importlib.util.find_spec(name)
    except Exception:  # a package above it fails to import, or is another thing of that name
        return None
    return name if spec is not None and spec.origin and os.path.realpath(spec.origin) == path else None


def _same(module: ModuleType, path: str) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and os.path.realpath(file) == path


def _import(name: str, target: str) -> ModuleType:
    if not name:
        raise LoadError("no target; write file.py:Class, a dotted module, or the folder of a finished run")
    if os.path.exists(name) or "/" in name or os.sep in name:
        what = (
            "is a folder"
            if os.path.isdir(name)
            else "is not a Python file"
            if os.path.exists(name)
            else "does not exist"
        )
        raise LoadError(f"{target} {what}; write file.py:Class, a dotted module, or the folder of a finished run")
    try:
        return importlib.import_module(name)
    except (ConfigError, KeyboardInterrupt):
        raise
    except BaseException as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and (name == missing or name.startswith(missing + ".")):
            hint = f"; is it the file {name}.py?" if os.path.exists(f"{name}.py") else ""
            raise LoadError(f"no module or file named {name!r}{hint}") from error
        raise LoadError(f"{name} does not import: {_reason(error, _file_of(name))}") from error


def _file_of(name: str) -> str:
    try:
        spec = importlib.util.find_spec(name)
    except Exception:
        return ""
    return os.path.realpath(spec.origin) if spec is not None and spec.origin else ""


def _attribute(module: ModuleType, name: str, where: str) -> Any:
    from .lazy import Lazy

    try:
        return functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        public = [k for k in vars(module) if not k.startswith("_")]
        lazies = {k: v for k in public if isinstance(v := vars(module)[k], type) and issubclass(v, Lazy)}
        own = [k for k, v in lazies.items() if v.__module__ == module.__name__] or list(lazies)
        hint = suggest(name, own, "it has")
        near = suggest(name, public)
        raise LoadError(f"{where} has no {name!r}{near if near.startswith('; did') else hint}") from None


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
    from .check import is_mixin

    roots = experiments_in(module)
    concrete = [cls for cls in roots if not cls.__abstract__ and not is_mixin(cls())]  # type: ignore[attr-defined]
    if len(concrete) == 1:
        return concrete[0]
    if not roots:
        raise LoadError(f"{where} defines no Experiment; write class Mine(Experiment): ...")
    names = ", ".join(f"{where}:{title(cls)}" for cls in concrete or roots)
    what = f"defines {len(concrete)} experiments" if concrete else "defines no experiment that stands alone"
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
    if isinstance(error, SystemExit):
        return f"it exits (code {error.code}); put what should run only as a script under if __name__ == '__main__'"
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if os.path.realpath(f.filename) == path]
    where = f" ({place(path, lines[-1])})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"
