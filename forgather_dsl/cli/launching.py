"""`run --print-launch`: what to start where, for an experiment on several machines. Prints, and never submits. No torch.

In: the experiment, and what `run` was given. Out: a script to save and start: for torchrun one for all machines, for Slurm a batch
script, for SkyPilot a task. Ranks are numbered by the machine's number (torchrun's static rendezvous), so that rank 0, which
writes the metrics, is on the first machine, whatever their addresses.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import UserError
from ..plan.machines import Machines, on_machines
from ..runs.run import is_run
from ..specs.experiment import world_size
from ..train.directory import choose
from ..train.settled import settled

__all__ = ["LAUNCHERS", "PASSED_ON", "launch_script"]

PORT = 29400
PASSED_ON = (
    "FORGATHER_CACHE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_DATASETS_OFFLINE",
    "TRANSFORMERS_OFFLINE",
)
SKY_NAMES = {"A100": "A100-80GB", "A100 40GB": "A100", "RTX 6000 Ada": "RTX6000-Ada", "H100 PCIe": "H100"}
HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
NAME = re.compile(r"[A-Za-z0-9_.:@-]{1,15}")  # of an interface


class _Asked(NamedTuple):
    """What `run` was asked besides the experiment."""

    launcher: str
    words: Sequence[str]
    """The command line of the run, without what is of this option's."""
    place: str
    gpus_per_node: int | None
    hosts: str | None
    interface: str | None


class _Job(NamedTuple):
    name: str
    world: int
    machines: Machines
    words: str
    place: str
    hosts: tuple[str, ...]
    port: int
    interface: str | None

    @property
    def what(self) -> str:
        """Ranks and machines, in words."""
        one = self.machines.nodes == 1
        return (
            f"{self.name}: {_number(self.world, 'rank')} on {_number(self.machines.nodes, 'machine')}"
            f"{'' if one else f', {self.machines.per_node} on each'}"
        )


def launch_script(
    experiment: Any,
    target: str,
    settings: Sequence[str],
    out: str | None,
    resume: str,
    profile: bool,
    flags: Mapping[str, bool],
    launcher: str | None,
    *said: Any,
) -> str:
    """What starts `run TARGET` with these options; `said`: cards of a machine, hosts, interface.

    Raises UserError, with every problem at once, for what cannot be launched so.
    """
    if launcher is None:
        names = ("--gpus-per-node", "--hosts", "--interface")
        idle = ", ".join(name for name, value in zip(names, said) if value is not None)
        raise UserError(f"{idle}: of --print-launch {'|'.join(LAUNCHERS)}, which is not given")
    if profile:
        raise UserError(
            "--profile measures on one machine; run it there first, then give the file as parallel.schedule.profile"
        )
    place = out if out is not None else target if is_run(target) else choose(experiment, None, resume)
    words = ["run", target, *(word for setting in settings for word in ("--set", setting)), "--out", place]
    words += ["--resume", resume] if resume != "auto" else []
    words += [flag for flag, on in flags.items() if on]
    return _text(settled(experiment, place, None)[0], _Asked(launcher, words, place, *said))


def _text(experiment: Any, asked: _Asked) -> str:
    problems: list[str] = []
    if asked.launcher not in LAUNCHERS:
        problems.append(f"--print-launch {asked.launcher}: write one of {', '.join(LAUNCHERS)}")
    machines = None
    try:
        machines = on_machines(experiment, asked.gpus_per_node)
    except UserError as error:
        problems.append(str(error))
    hosts, port = _hosts(asked.hosts, problems)
    if hosts and machines is not None and len(hosts) != machines.nodes:
        problems.append(
            f"--hosts names {_number(len(hosts), 'machine')}, and {world_size(experiment)} ranks with {machines.per_node} on "
            f"each need {machines.nodes}"
        )
    if hosts and asked.launcher in ("slurm", "skypilot"):
        problems.append(f"--hosts: {asked.launcher} chooses the machines itself; leave it out")
    if asked.interface is not None and not NAME.fullmatch(asked.interface):
        problems.append(
            f"--interface {asked.interface!r} is no name of a network interface; `ip -brief address` lists them"
        )
    problems += _outside(asked)
    if problems or machines is None:
        raise UserError("\n".join(problems))
    words = " ".join(shlex.quote(word) for word in asked.words)
    name, world = type(experiment).__qualname__, world_size(experiment)
    job = _Job(name, world, machines, words, asked.place, hosts, port, asked.interface)
    return LAUNCHERS[asked.launcher](job)


def _hosts(text: str | None, problems: list[str]) -> tuple[tuple[str, ...], int]:
    """The machines, and the port on the first, where ranks meet."""
    if text is None:
        return (), PORT
    first, *rest = (part.strip() for part in text.split(","))
    head, colon, number = first.partition(":")
    hosts = (head, *rest)
    if wrong := [host for host in hosts if not HOST.fullmatch(host)]:
        problems.append(
            f"--hosts: {', '.join(map(repr, wrong))} is no name or IPv4 address; write first[:port],second,..."
        )
    if doubled := sorted({host for host in hosts if hosts.count(host) > 1}):
        problems.append(f"--hosts names {', '.join(doubled)} more than once; a machine takes all of its ranks as one")
    if len(hosts) > 1 and (here := [h for h in hosts if h == "localhost" or h.startswith("127.")]):
        problems.append(
            f"--hosts: {', '.join(here)} is this machine to itself only; write the address that the others reach"
        )
    port = int(number) if number.isdigit() else PORT
    if colon and not (number.isdigit() and 1024 <= port < 65536):
        problems.append(f"--hosts: {number!r} is no port that a user may open; write 1024 to 65535")
    return hosts, port


def _outside(asked: _Asked) -> list[str]:
    """SkyPilot copies this folder and nothing else."""
    if asked.launcher != "skypilot":
        return []
    paths = [word.rpartition(":")[0] or word for word in asked.words if word.endswith(".py") or ".py:" in word]
    away = [path for path in paths if os.path.relpath(path).startswith("..") or os.path.isabs(path)]
    return [f"{path}: SkyPilot copies the working directory alone; call this from a folder above it" for path in away]


def _torchrun(job: _Job) -> str:
    machines = job.machines
    run = f"-m forgather_dsl {job.words}"
    if machines.nodes == 1:
        alone = f"python {run}"
        if job.world == 1:
            return f"# {job.what}: no launcher is needed\n{alone}\n"
        return f"# {job.what}; the same without torchrun: {alone}\ntorchrun --standalone --nproc-per-node={job.world} {run}\n"
    head = f"${{2:-{job.hosts[0]}}}" if job.hosts else "${2:?an address of machine 0 that all the others reach}"
    starts = [
        f"#   ssh {host} 'bash -s {node}' < launch.sh"
        if job.hosts
        else f"#   bash launch.sh {node} ADDRESS_OF_MACHINE_0"
        for node, host in enumerate(job.hosts or range(machines.nodes))
    ]
    interface = job.interface or "$(ip -o -4 addr show to \"$OWN\" | awk '{print $2; exit}')"
    lines = [
        "#!/usr/bin/env bash",
        f"# {job.what}. Save as launch.sh and start it once on every machine, in any order, within ten minutes:",
        *starts,
        *_everywhere(job),
        "set -euo pipefail",
        "NODE=${1:?the number of this machine, from 0}",
        f"HEAD=$(getent ahostsv4 \"{head}\" | awk '{{print $1; exit}}')  # machine 0",
        "OWN=$(ip -o route get \"$HEAD\" | sed -n 's/.* src \\([0-9.]*\\).*/\\1/p')  # this machine's address on the way there",
        f"INTERFACE={interface}",
        'export GLOO_SOCKET_IFNAME="$INTERFACE" NCCL_SOCKET_IFNAME="$INTERFACE"',
        *_environment(),
        *_here(),
        'exec "$PYTHON" -m torch.distributed.run \\',  # torchrun
        f'  --nnodes={machines.nodes} --nproc-per-node={machines.per_node} --node-rank="$NODE" \\',
        f'  --master-addr="$HEAD" --master-port={job.port} --local-addr="$OWN" \\',
        f"  {run}",
    ]
    return "\n".join(lines) + "\n"


def _slurm(job: _Job) -> str:
    machines = job.machines
    cards = [f"#SBATCH --gpus-per-node={machines.gpus}"] if machines.gpus else []
    bind = " --gpu-bind=none" if machines.gpus else ""
    interface = (
        [f"export GLOO_SOCKET_IFNAME={job.interface} NCCL_SOCKET_IFNAME={job.interface}"] if job.interface else []
    )
    lines = [
        "#!/bin/bash",
        f"# {job.what}. Save as job.sbatch; sbatch job.sbatch. The same job again goes on from the last checkpoint.",
        "# Add what your cluster wants: --partition, --account, --time.",
        *_everywhere(job),
        f"#SBATCH --job-name={job.name}",
        f"#SBATCH --nodes={machines.nodes}",
        f"#SBATCH --ntasks-per-node={machines.per_node}",
        *cards,
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --signal=TERM@120",
        "set -euo pipefail",
        *_here(),
        *_environment(),
        *interface,
        "# Two minutes before the time is up every rank gets SIGTERM: a checkpoint is saved. Each task has to see all cards of its",
        "# machine, so no --gpus-per-task. Ranks end by themselves when one is lost; srun need not kill those that save.",
        f'srun --kill-on-bad-exit=0{bind} "$PYTHON" -m forgather_dsl {job.words}',
    ]
    return "\n".join(lines) + "\n"


def _skypilot(job: _Job) -> str:
    machines = job.machines
    name = re.sub(r"[^a-z0-9-]+", "-", job.name.lower()).strip("-")
    if machines.gpus:
        card = SKY_NAMES.get(machines.card or "", (machines.card or "").replace(" ", ""))
        known = machines.card is not None and not machines.card.endswith("card")
        wanted = f"  accelerators: {card}:{machines.gpus}" if known else f"  accelerators: RTX4090:{machines.gpus}"
        resources = [wanted + ("" if known else f"  # {machines.card or 'cards'}, of no named model: put yours here")]
    else:
        resources = ["  cpus: 4+"]
    several = machines.nodes > 1
    notes = [f"# {line.removeprefix('# ')}" for line in _everywhere(job)] if several else []
    passed = [f"  {name_}: {_yaml(os.environ[name_])}" for name_ in PASSED_ON if name_ in os.environ]
    torchrun = (
        f'torchrun --nnodes="$SKYPILOT_NUM_NODES" --nproc-per-node={machines.per_node} --node-rank="$SKYPILOT_NODE_RANK" \\\n'
        f'    --master-addr="$HEAD" --master-port={job.port} \\\n    -m forgather_dsl {job.words}'
    )
    run = ['  HEAD=$(echo "$SKYPILOT_NODE_IPS" | head -n1)', f"  {torchrun}"]
    lines = [
        f"# {job.what}. Save as task.yaml; sky launch -c {name} task.yaml",
        *notes,
        f"name: {name}",
        f"num_nodes: {machines.nodes}",
        "resources:",
        *resources,
        "workdir: .",
        *(["envs:", *passed] if passed else []),
        "setup: |",
        "  python -c 'import forgather_dsl' || pip install -e .  # workdir is a checkout of it; else install it from where you have it",
        "run: |",
        *(run if several else [f"  python -m forgather_dsl {job.words}"]),
    ]
    return "\n".join(lines) + "\n"


def _everywhere(job: _Job) -> list[str]:
    """What has to be so on every machine."""
    if job.machines.nodes == 1:
        return []
    return [
        "# Every machine needs this folder's code, the same Python packages, and the same data (or its cache, FORGATHER_CACHE);",
        f"# {job.place} has to be one folder on a file system that all of them share. Both are checked when ranks meet.",
    ]


def _here() -> list[str]:
    """Where the code is, and what runs it: a shell of ssh or Slurm has no virtual environment of its own."""
    return [f"cd {shlex.quote(os.getcwd())}", f"PYTHON=${{PYTHON:-{shlex.quote(sys.executable)}}}"]


def _environment() -> list[str]:
    """What is set here and read by ranks: caches, and whether anything may be downloaded."""
    return [f"export {name}={shlex.quote(os.environ[name])}" for name in PASSED_ON if name in os.environ]


def _yaml(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'s' if count != 1 else ''}"


LAUNCHERS: dict[str, Callable[[_Job], str]] = {"torchrun": _torchrun, "slurm": _slurm, "skypilot": _skypilot}
