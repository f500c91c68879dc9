"""What there is to run on: cards by name ("4x24GB"), or the GPUs and the memory of this machine, found without torch.

In: an experiment's `hardware`. Out: `Hardware`. GPUs are asked for through NVML (`pynvml` when it is installed, else the
program nvidia-smi), and only when the answer matters. Vendors write GB on a card that holds GiB, so "24GB" is 24 * 2**30.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..dsl import ConfigError

__all__ = ["GIB", "Device", "Hardware", "gpus", "host_memory", "parse"]

GIB = 2**30
MOST_CARDS = 1024  # a larger number is a typing error
_UNITS = {"": 2**30, "g": 2**30, "gb": 2**30, "gib": 2**30, "m": 2**20, "mb": 2**20, "mib": 2**20}
_CARDS = re.compile(r"(?:(\d+)\s*[x*]\s*)?(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Device:
    """A card. `kind` is "gpu" for one that is in this machine, "named" for one that was only written down."""

    name: str
    memory_bytes: int
    kind: Literal["gpu", "named"]


@dataclass(frozen=True)
class Hardware:
    """Cards in the order of the ranks that use them, and the memory of the host that they share."""

    devices: tuple[Device, ...]
    host_memory_bytes: int


def parse(text: str) -> Hardware:
    """`"4x24GB"`, `"24GB+12GB"`, `"2x24GB+12GB"`, or `"auto"`: the GPUs of this machine, none perhaps.

    Raises:
        ConfigError: the text is none of these.
    """
    if text.strip().lower() == "auto":
        return Hardware(gpus(), host_memory())
    devices: list[Device] = []
    for part in text.split("+"):
        devices += _named(part.strip(), text)
    return Hardware(tuple(devices), host_memory())


def _named(part: str, text: str) -> list[Device]:
    match = _CARDS.fullmatch(part)
    unit = _UNITS.get(match[3].lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(
            f"hardware = {text!r}: {part!r} is not a card; write 4x24GB for four cards of 24 GB, "
            "24GB+12GB for two different ones, or auto for what is in this machine"
        )
    count, memory = int(match[1] or 1), round(float(match[2]) * unit)
    if not 1 <= count <= MOST_CARDS or memory < 1:
        raise ConfigError(f"hardware = {text!r}: {part!r} is {count} cards of {memory} bytes; write 1x24GB or more")
    return [Device(f"{match[2]}{match[3].upper() or 'GB'} card", memory, "named")] * count


def host_memory() -> int:
    """Bytes of memory that this process may use: of the machine, or of its control group when that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")  # macOS and Linux know both names
    limits = [machine]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(file, encoding="ascii") as opened:
                limits.append(int(opened.read()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return min(limits)


def gpus() -> tuple[Device, ...]:
    """The NVIDIA cards of this machine that CUDA_VISIBLE_DEVICES leaves, in its order; none where there is no driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return ()
    found = _from_nvml()
    return _visible(_from_nvidia_smi() if found is None else found, visible)


_Found = list[tuple[str, Device]]  # (uuid, card), by index


def _from_nvml() -> _Found | None:
    """None without pynvml; an empty list without a driver."""
    try:
        import pynvml  # type: ignore[import-not-found]  # optional
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        found: _Found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            name, uuid = _text(pynvml.nvmlDeviceGetName(handle)), _text(pynvml.nvmlDeviceGetUUID(handle))
            found.append((uuid, Device(name, int(pynvml.nvmlDeviceGetMemoryInfo(handle).total), "gpu")))
        return found
    finally:
        pynvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # older versions give bytes


def _from_nvidia_smi(seconds: float = 3.0) -> _Found:
    query = ["nvidia-smi", "--query-gpu=uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=seconds, check=True)
    except (OSError, subprocess.SubprocessError):  # not installed, no driver, or it hangs
        return []
    return parse_nvidia_smi(done.stdout)


def parse_nvidia_smi(text: str) -> _Found:
    """Lines of `uuid, name, MiB`; a card that does not tell its memory is left out."""
    found: _Found = []
    for line in text.strip().splitlines():
        uuid, _, rest = line.partition(",")
        name, _, memory = rest.rpartition(",")
        if memory.strip().isdigit():
            found.append((uuid.strip(), Device(name.strip(), int(memory) * 2**20, "gpu")))
    return found


def _visible(found: Sequence[tuple[str, Device]], visible: str | None) -> tuple[Device, ...]:
    """CUDA's rule: indices or beginnings of UUIDs, in order, up to the first that does not exist."""
    if visible is None:
        return tuple(device for _, device in found)
    chosen: list[Device] = []
    for item in (part.strip() for part in visible.split(",")):
        if item.isdigit() and int(item) < len(found):
            chosen.append(found[int(item)][1])
        elif matches := [device for uuid, device in found if item.startswith("GPU-") and uuid.startswith(item)]:
            chosen.append(matches[0])
        else:
            break
    return tuple(chosen)
