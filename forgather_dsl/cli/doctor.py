"""What this machine is: versions, GPUs, memory, cores, disk, cache, and whether two ranks can talk. torch runs in children only."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from typing import Any

from ..data.cache import cache_root
from ..plan.hardware import GIB, gpus, host_memory

PACKAGES = (
    "torch",
    "attrs",
    "cattrs",
    "numpy",
    "tokenizers",
    "safetensors",
    "transformers",
    "datasets",
    "typer",
    "rich",
)
PING_SECONDS = 120.0  # two interpreters import torch meanwhile


def examine() -> dict[str, Any]:
    """Everything, as JSON data."""
    root = cache_root()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in ("forgather_dsl", *PACKAGES)},
        "gpus": [{"name": card.name, "memory_bytes": card.memory_bytes} for card in gpus()],
        "host_memory_bytes": host_memory(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "disk_free_bytes": shutil.disk_usage(os.getcwd()).free,
        "cache": {"path": str(root), "bytes": _folder_bytes(str(root))},
        "ping": ping_between_ranks(),
    }


def as_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for a person: a name and a text each."""
    versions = found["versions"]
    cards = [f"{card['name']}, {card['memory_bytes'] / GIB:.1f} GiB" for card in found["gpus"]]
    ping = found["ping"]
    if "error" in ping:
        answer = f"failed: {ping['error']}"
    else:
        speed = f"{ping['bytes_per_second'] / 1e9:.2f} GB/s"
        answer = f"{ping['seconds'] * 1e6:.0f} microseconds there and back, {speed}, between two ranks over gloo"
    return [
        ("python", f"{found['python']} on {found['platform']}"),
        *((name, version or "not installed") for name, version in versions.items()),
        ("GPUs", "; ".join(cards) or "none"),
        ("memory", f"{found['host_memory_bytes'] / GIB:.1f} GiB"),
        ("cores", str(found["cores"])),
        ("free disk", f"{found['disk_free_bytes'] / GIB:.1f} GiB here"),
        ("cache", f"{found['cache']['path']}, {found['cache']['bytes'] / 2**20:.1f} MiB"),
        ("ping", answer),
    ]


def ping_between_ranks() -> dict[str, Any]:
    """`seconds` per round trip and `bytes_per_second` between two processes over gloo, or `error`."""
    with tempfile.TemporaryDirectory(prefix="forgather-ping-") as folder:
        command = [sys.executable, "-m", "forgather_dsl.cli.ping"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        environment = {name: value for name, value in environment.items() if name not in ("RANK", "WORLD_SIZE")}
        ranks = [
            subprocess.Popen(
                [*command, str(rank), os.path.join(folder, "meet")],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for rank in range(2)
        ]
        try:
            told = [rank.communicate(timeout=PING_SECONDS) for rank in ranks]
        except subprocess.TimeoutExpired:
            return {"error": f"no answer within {PING_SECONDS:.0f} s"}
        finally:
            for rank in ranks:
                rank.kill()
                rank.wait()
        if any(rank.returncode for rank in ranks):
            lines = [line for _, stderr in told for line in stderr.strip().splitlines()[-1:]]
            return {"error": "; ".join(lines) or "a rank died"}
        return json.loads(told[0][0])


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        from .. import __version__

        return __version__ if name == "forgather_dsl" else None


def _folder_bytes(root: str) -> int:
    total = 0
    for folder, _, files in os.walk(root):
        for name in files:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size
            except OSError:  # another process tidies up
                continue
    return total
