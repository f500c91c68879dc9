"""What there is to run on: cards as they are written down ("4x24GB,link=12GB/s"), or the GPUs and the memory of this
machine, found without torch.

In: an experiment's `hardware`. Out: `Hardware`. GPUs are asked for through NVML (`pynvml` when it is installed, else the
program nvidia-smi), and only when the answer matters. Vendors write GB on a card that holds GiB, so "24GB" is 24 * 2**30;
rates are in powers of ten.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from ..dsl import ConfigError
from . import cards

__all__ = ["BANDWIDTH_SUSTAINED", "FLOPS_SUSTAINED", "GIB", "Device", "Hardware", "Speed", "for_ranks", "gpus"]
__all__ += ["host_memory", "parse", "speed"]

GIB = 2**30
MOST_CARDS = 1024  # a larger number is a typing error
LINK = 12e9  # bytes per second between two cards, each way, when not said: PCIe 4.0 x16 through the host
LATENCY = 30e-6  # seconds, when not said
CORE_FLOPS = 100e9  # of a processor's core, fp32: two AVX2 multiply-adds a cycle at 3 GHz
HOST_BANDWIDTH = 30e9  # bytes per second that all cores share
HOST_LINK, HOST_LATENCY = 1e9, 200e-6  # between two processes, over gloo
FLOPS_SUSTAINED = 0.7  # of a card's peak, by products of these sizes; LLMQ reaches 0.71 on RTX 4090s (arXiv 2512.15306)
BANDWIDTH_SUSTAINED = 0.8  # of a card's peak, by operations that only move memory
_UNITS = {"": 2**30, "g": 2**30, "gb": 2**30, "gib": 2**30, "m": 2**20, "mb": 2**20, "mib": 2**20}
_CARDS = re.compile(r"(?:(\d+)\s*[x*]\s*)?(\d+(?:\.\d+)?)\s*([a-z]*)", re.IGNORECASE)
_MODELS = re.compile(r"(?:(\d+)\s*[x*]\s*)?(\w[\w -]*)", re.IGNORECASE)
_NUMBER = re.compile(r"(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([a-z/]*)", re.IGNORECASE)
_RATES = {"kb/s": 1e3, "mb/s": 1e6, "gb/s": 1e9, "tb/s": 1e12}
_FLOPS = {"gflop/s": 1e9, "tflop/s": 1e12, "pflop/s": 1e15}
_OPTIONS = {  # what may follow the cards, its units, an example
    "link": (_RATES, "12GB/s"),
    "latency": ({"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}, "30us"),
    "tflops": ({"": 1e12}, "165"),
    "bandwidth": (_RATES, "1.0TB/s"),
    "host": ({unit: float(size) for unit, size in _UNITS.items() if unit}, "128GB"),
    "gather": (_RATES, "5GB/s"),
    "products": (_FLOPS, "115TFLOP/s"),
    "copies": (_RATES, "800GB/s"),
}


@dataclass(frozen=True)
class Device:
    """A card: `kind` is "gpu" for one that is in this machine, "named" for one that was only written down. Or "host", the
    share that one rank has of a machine without cards."""

    name: str
    memory_bytes: int
    kind: Literal["gpu", "named", "host"]
    flops: float | None = None  # per second, of matrix products, where it was said; None: by its name or memory
    bandwidth: float | None = None  # bytes per second, likewise
    products: float | None = (
        None  # flops that products of a layer's size reach, where measured; None: a share of the peak
    )
    copies: float | None = None  # bytes per second that copies read and write, likewise
    shared_by: int = 1  # ranks on this card; memory is one rank's share of it, speeds are the card's


@dataclass(frozen=True)
class Hardware:
    """Cards in the order of the ranks that use them, the memory of the host that they share, and what is between them."""

    devices: tuple[Device, ...]
    host_memory_bytes: int
    link: float | None = None  # bytes per second from one rank to the next, each way; None: not said
    latency: float | None = None  # seconds
    host_known: bool = True  # False: named cards are in another machine, of whose memory nothing was said
    gather: float | None = None  # bytes per second that a rank sends in collectives over all ranks; None: as `link`
    products: float | None = None  # as of a `Device`; of a host without cards, which all its ranks share
    copies: float | None = None


def for_ranks(found: Hardware, ranks: int) -> Hardware:
    """With one device for each rank. Cards that are too few are shared in turn, memory and speed alike; without cards the
    ranks share the host.
    """
    devices = found.devices
    if not devices:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        memory, flops = found.host_memory_bytes // ranks, CORE_FLOPS * cores / ranks
        share = Device("this host", memory, "host", flops, HOST_BANDWIDTH / ranks)
        if found.products:
            share = replace(share, products=found.products / ranks)
        if found.copies:
            share = replace(share, copies=found.copies / ranks)
        return replace(found, devices=(share,) * ranks)
    sharing = [len(range(card, ranks, len(devices))) for card in range(len(devices))]
    shares = [
        replace(device, memory_bytes=device.memory_bytes // max(n, 1), shared_by=max(n, 1))
        for device, n in zip(devices, sharing)
    ]
    return replace(found, devices=tuple(shares[rank % len(devices)] for rank in range(ranks)))


class Speed(NamedTuple):
    """What a device can do, and by which card that is known."""

    flops: float  # per second, matrix products
    bandwidth: float  # bytes per second
    card: str | None  # None where both were said, or for a host
    fp8: float | None  # flops with float8 factors, of a device whose flops were said twice those; None: it has none
    products: float  # flops that are sustained: as measured, or a share of the peak
    copies: float  # bytes per second, likewise


def speed(device: Device, bf16: bool) -> Speed:
    """One rank's share of a device, in the number format of its matrix products: as said, else of the card it is, or most
    likely is.
    """
    ranks = device.shared_by
    if device.flops and device.bandwidth:
        flops, bandwidth, name, fp8 = device.flops, device.bandwidth, None, 2 * device.flops / ranks
    else:
        card = cards.by_name(device.name) or cards.by_memory(device.memory_bytes * ranks / GIB)
        flops = device.flops or (card.bf16_tflops if bf16 else card.fp32_tflops) * 1e12
        bandwidth, name = device.bandwidth or card.bandwidth_gbs * 1e9, card.name
        fp8 = None if card.fp8_tflops is None else card.fp8_tflops / card.bf16_tflops * flops / ranks
    products, copies = device.products or flops * FLOPS_SUSTAINED, device.copies or bandwidth * BANDWIDTH_SUSTAINED
    return Speed(flops / ranks, bandwidth / ranks, name, fp8, products / ranks, copies / ranks)


def parse(text: str) -> Hardware:
    """Cards joined by `+`, by memory (`24GB`) or model (`RTX4090`), with their number (`4x24GB`); or `auto`: the GPUs of
    this machine, none perhaps. After commas: `link=12GB/s`, `latency=30us`, `tflops=165` and `bandwidth=1.0TB/s` per card,
    `host=128GB` of memory beside them; and what `doctor --links` measures: `gather=5GB/s`, `products=115TFLOP/s`,
    `copies=800GB/s`.

    Raises:
        ConfigError: the text is none of these.
    """
    first, *rest = text.split(",")
    said = dict(_option(part.strip(), text) for part in rest)
    if first.strip().lower() == "auto":
        devices = list(gpus())
    else:
        devices = [device for part in first.split("+") for device in _named(part.strip(), text)]
    measured = {"products": said.get("products"), "copies": said.get("copies")}
    speeds = {"flops": said.get("tflops"), "bandwidth": said.get("bandwidth"), **measured}
    if any(speeds.values()):
        devices = [replace(device, **speeds) for device in devices]
    here = not devices or devices[0].kind == "gpu"
    host = int(said.get("host", 0)) or host_memory()
    known, between = here or "host" in said, (said.get("link"), said.get("latency"))
    return Hardware(tuple(devices), host, *between, known, said.get("gather"), **measured)


def _option(part: str, text: str) -> tuple[str, float]:
    name, _, value = (piece.strip().lower() for piece in part.partition("="))
    if name not in _OPTIONS:
        known = ", ".join(f"{option}={example}" for option, (_, example) in _OPTIONS.items())
        raise ConfigError(
            f"hardware = {text!r}: {part!r} is not an option; write one of {known}, or + before another card"
        )
    units, example = _OPTIONS[name]
    match = _NUMBER.fullmatch(value)
    if match is None or match[2] not in units or float(match[1]) <= 0:
        raise ConfigError(f"hardware = {text!r}: {part!r} is not understood; write {name}={example}")
    return name, float(match[1]) * units[match[2]]


def _named(part: str, text: str) -> list[Device]:
    match = _CARDS.fullmatch(part)
    unit = _UNITS.get(match[3].lower()) if match else None
    if match is None or unit is None or (not match[3] and cards.by_name(match[2])):  # 4x4090
        return _of_model(part, text)
    count, memory = int(match[1] or 1), round(float(match[2]) * unit)
    if not 1 <= count <= MOST_CARDS or memory < 1:
        raise ConfigError(f"hardware = {text!r}: {part!r} is {count} cards of {memory} bytes; write 1x24GB or more")
    return [Device(f"{match[2]}{match[3].upper() or 'GB'} card", memory, "named")] * count


def _of_model(part: str, text: str) -> list[Device]:
    match = _MODELS.fullmatch(part)
    card = cards.by_name(match[2]) if match else None
    if match is None or card is None or not 1 <= int(match[1] or 1) <= MOST_CARDS:
        names = ", ".join(card.name.replace(" ", "") for card in cards.CARDS)
        raise ConfigError(
            f"hardware = {text!r}: {part!r} is not a card; write 4x24GB for four cards of 24 GB, "
            f"24GB+12GB for two different ones, auto for what is in this machine, or a model, as in 4xRTX4090, of {names}"
        )
    return [Device(card.name, int(card.memory_gib * GIB), "named")] * int(match[1] or 1)


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
