"""A rank that srun started, told in torchrun's words. Imports no torch.

In: what Slurm sets for a step of several tasks. Out: RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT.
A shell of salloc and the script of sbatch have SLURM_NTASKS and SLURM_PROCID too, but no step of several tasks: there our
own launcher starts the ranks.
"""

from __future__ import annotations

import os
import re
from collections.abc import MutableMapping

__all__ = ["adopt_slurm", "first_host"]

FIRST_PORT, PORTS = 15000, 15000  # below the ports that systems hand out by themselves


def adopt_slurm(env: MutableMapping[str, str] = os.environ) -> bool:
    """Set the variables that a rank is started with, from Slurm's, unless they are set. Whether this is a task of srun."""
    if "RANK" in env or int(env.get("SLURM_STEP_NUM_TASKS", 1)) < 2 or "SLURM_PROCID" not in env:
        return False
    tasks = int(env["SLURM_STEP_NUM_TASKS"])
    node, local = int(env.get("SLURM_NODEID", 0)), env.get("SLURM_LOCALID", "0")
    per_node = _tasks_per_node(env.get("SLURM_STEP_TASKS_PER_NODE", env.get("SLURM_TASKS_PER_NODE", str(tasks))))
    found = {
        "RANK": env["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": local,
        "LOCAL_WORLD_SIZE": str(per_node[node] if node < len(per_node) else tasks),
        "MASTER_ADDR": _address(env, len(per_node)),
        "MASTER_PORT": str(
            FIRST_PORT + (int(env.get("SLURM_JOB_ID", 0)) * 7 + int(env.get("SLURM_STEP_ID", 0))) % PORTS
        ),
    }
    for name, value in found.items():
        env.setdefault(name, value)
    return True


def _address(env: MutableMapping[str, str], nodes: int) -> str:
    """Where rank 0 is."""
    if nodes == 1:
        return "127.0.0.1"
    hosts = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or ""
    return first_host(hosts) or env.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")


def first_host(nodes: str) -> str:
    """Of Slurm's short form: `gpu[03-05,9],login` is gpu03."""
    match = re.match(r"([^,\[]*)(?:\[(\d+)[^\]]*\]([^,\[]*))?", nodes)
    return "" if match is None else "".join(part or "" for part in match.groups())


def _tasks_per_node(text: str) -> list[int]:
    """`2(x3),1` is [2, 2, 2, 1]."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if match:
            counts += [int(match[1])] * int(match[2] or 1)
    return counts
