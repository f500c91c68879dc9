"""Values that belong to the machine that traces, not to the model: the environment, devices, time, chance, versions."""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

import torch

_MODULES = (
    "time",
    "random",
    "platform",
    "socket",
    "datetime",
    "uuid",
    "secrets",
    "getpass",
    "pwd",
    "tempfile",
    "locale",
)
_TORCH = {
    "torch.cuda": ("is_available", "device_count", "get_device_capability", "get_device_properties", "get_device_name",
                   "current_device", "mem_get_info", "is_bf16_supported", "memory_allocated"),
    "torch.xpu": ("is_available", "device_count"),
    "torch.mps": ("is_available", "device_count"),
    "torch.accelerator": ("is_available", "current_accelerator", "device_count"),
    "torch.distributed": ("is_available", "is_initialized", "get_rank", "get_world_size"),
    "torch": ("get_default_dtype", "get_default_device", "get_num_threads", "get_float32_matmul_precision",
              "is_grad_enabled", "initial_seed", "seed", "get_autocast_dtype", "is_autocast_enabled",
              "are_deterministic_algorithms_enabled"),
}  # fmt: skip
_OS = ("environ", "getenv", "cpu_count", "getcwd", "getpid", "uname", "listdir", "urandom")
_SYS = ("platform", "version", "version_info", "argv", "byteorder", "maxsize", "executable", "path", "implementation")


def of_module(module: str) -> str | None:
    """Why a whole module belongs to the machine."""
    top = module.partition(".")[0]
    if top in _MODULES:
        return top
    if module.startswith("torch.backends") or module == "torch.version" or module == "importlib.metadata":
        return module
    return None


def of_attribute(module: ModuleType, name: str) -> str | None:
    """Why an attribute of a module belongs to the machine; None if it does not."""
    why = of_module(module.__name__)
    if why:
        return f"{module.__name__}.{name}"
    if (module is os and name in _OS) or (module is sys and name in _SYS):
        return f"{module.__name__}.{name}"
    if name in ("__version__", "version_info") or name in _TORCH.get(module.__name__, ()):
        return f"{module.__name__}.{name}"
    return None


def _values() -> dict[int, str]:
    found: dict[int, str] = {id(os.environ): "os.environ", id(os.getenv): "os.getenv", id(os.environ.get): "os.environ"}
    for module, names in _TORCH.items():
        live = sys.modules.get(module) or getattr(torch, module.rpartition(".")[2], None)
        for name in names:
            if callable(value := getattr(live, name, None)):
                found[id(value)] = f"{module}.{name}"
    return found


_BY_IDENTITY = _values()


def of_value(value: Any) -> str | None:
    """Why an object that some name stands for belongs to the machine."""
    if isinstance(value, ModuleType):
        return of_module(value.__name__)
    if id(value) in _BY_IDENTITY:
        return _BY_IDENTITY[id(value)]
    if value is open or value is input:
        return "open" if value is open else "input"
    if callable(value) and (getattr(value, "__module__", None) or "").partition(".")[0] in (
        "time",
        "random",
        "platform",
    ):
        return f"{value.__module__}.{getattr(value, '__name__', '')}"
    return None
