"""Runs to do harm to: started in sessions of their own, watched through metrics and /proc, counted by a mark in their environment."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MARK = "FORGATHER_TEST_MARK"

EXPERIMENTS = """
import os, time
import torch
from forgather_dsl import *

class Faulty(torch.nn.Module):
    "A scale, with faults: rank 1 loops for ever once there is a file `loop`; rank FAULT_RANK kills itself at FAULT_STEP."
    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.calls = torch.nn.Parameter(torch.ones(dim)), 0

    def reset_parameters(self):
        torch.nn.init.ones_(self.weight)

    def forward(self, x):
        while os.environ.get("RANK") == "1" and os.path.exists("loop"):
            pass
        self.calls += torch.is_grad_enabled()
        if os.environ.get("RANK") == os.environ.get("FAULT_RANK", "-") and self.calls == 4 * int(os.environ["FAULT_STEP"]) - 2:
            with open("died", "w") as file:
                file.write(str(time.time()))
            os.kill(os.getpid(), 9)
        return x * self.weight

class WithFaults(Norm[Faulty]):
    pass

class Small(Experiment):
    seq_len, batch_size, microbatch_size, steps, log_every = 16, 4, 1, 1_000_000, 1
    sampling, loggers = None, ()
    data = TextFiles(paths="corpus", held_out=0.2)
    tokenizer = Bytes()
    model = patch(Llama, dim=16, num_layers=4, num_heads=2)

class Two(Small):
    parallel = Pipeline(stages=2)

class Three(Small):
    parallel = Pipeline(stages=3)

class Watched(Three):
    watchdog = Watchdog(seconds=4.0, first_step_seconds=60.0)

class WatchedTwo(Two):
    watchdog = Watchdog(seconds=10.0, first_step_seconds=60.0)

class Looping(Watched):
    model = patch(Llama, norm=WithFaults())

class Dying(Three):
    steps = 6
    parallel = patch(Pipeline, cuts=(1, 2, 1))
    model = patch(Llama, norm=WithFaults())

class Validated(Two):
    parallel = Pipeline(stages=2, post_validation=True)
"""


def project(folder: Path) -> Path:
    """`exp.py` and a corpus."""
    (folder / "exp.py").write_text(EXPERIMENTS)
    (folder / "corpus").mkdir()
    for number in range(20):
        text = "".join(f"def function_{number}_{i}(x):\n    return x * {i}\n\n" for i in range(8))
        (folder / "corpus" / f"{number}.txt").write_text(text)
    return folder


class Started:
    """A process and everything that comes of it, under a mark."""

    def __init__(self, command: Sequence[str], folder: Path, name: str = "run", **env: str) -> None:
        self.mark, self.folder, self.name = uuid.uuid4().hex, folder, name
        self._seen: dict[int, str] = {}  # when each process of the mark was started
        self.log = folder / f"{name}.log"
        environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", MARK: self.mark, **env}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def said(self) -> str:
        """Both streams."""
        return self.log.read_text(errors="replace")

    @property
    def errors(self) -> list[str]:
        """The lines that begin with `error:`."""
        return [line for line in self.said.splitlines() if line.startswith("error: ")]

    def alive(self) -> list[int]:
        """Every process that carries the mark, zombies apart; one that is ending may have lost the mark before its life."""
        self._seen |= {pid: started(pid) for pid in marked(self.mark)}
        return [pid for pid, when in self._seen.items() if state(pid) not in "ZX" and started(pid) == when]

    def ranks(self) -> dict[int, int]:
        """Process id by rank."""
        found = {}
        for pid in self.alive():
            env, command = environ(pid), cmdline(pid)
            if "RANK" in env and b"python" in command and b"resource_tracker" not in command:
                found.setdefault(int(env["RANK"]), pid)
        return found

    def step(self) -> int:
        """The last step in metrics.jsonl; -1 before its first line."""
        try:
            lines = (self.folder / self.name / "metrics.jsonl").read_text().splitlines()
            return max((json.loads(line)["step"] for line in lines[-3:]), default=-1)
        except (OSError, ValueError):
            return -1

    def until(self, condition: Callable[[], Any], seconds: float = 300.0) -> float:
        """Poll until `condition()`; returns the seconds it took."""
        begin = time.monotonic()
        while not condition():
            assert time.monotonic() - begin < seconds, f"did not happen in {seconds} s:\n{self.said[-3000:]}"
            time.sleep(0.02)
        return time.monotonic() - begin

    def until_step(self, step: int = 2) -> None:
        """Until a step is done."""
        self.until(lambda: self.step() >= step or self.process.poll() is not None, 90.0)
        assert self.process.poll() is None, self.said

    def until_over(self, seconds: float = 300.0) -> float:
        """Until nothing is left; returns the seconds. The exit code is in `code` then."""
        took = self.until(lambda: self.process.poll() is not None and not self.alive(), seconds)
        return took

    @property
    def code(self) -> int | None:
        """The exit code."""
        return self.process.poll()

    def __enter__(self) -> Started:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


def run(experiment: str, folder: Path, *more: str, **env: str) -> Started:
    """`python -m forgather_dsl run exp.py:EXPERIMENT --out run`, with our launcher."""
    command = [sys.executable, "-m", "forgather_dsl", "run", f"exp.py:{experiment}", "--out", "run", *more]
    return Started(command, folder, **env)


def torchrun(experiment: str, folder: Path, *more: str, log: str = "run", ranks: int = 2, **env: str) -> Started:
    """The same under torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", *more, f"--nproc-per-node={ranks}"]
    command += ["-m", "forgather_dsl", "run", f"exp.py:{experiment}", "--out", "run"]
    return Started(command, folder, log, **env)


def script(text: str, folder: Path, **env: str) -> Started:
    """A Python script."""
    (folder / "script.py").write_text(textwrap.dedent(text))
    return Started([sys.executable, "script.py"], folder, **env)


def marked(mark: str) -> list[int]:
    """Processes with the mark in their environment, zombies apart."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if wanted in Path(f"/proc/{name}/environ").read_bytes() and state(int(name)) not in "ZX":
                    found.append(int(name))
            except OSError:
                continue
    return found


def environ(pid: int) -> dict[str, str]:
    """Of a process."""
    try:
        parts = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(part.decode(errors="replace").split("=", 1) for part in parts if b"=" in part)


def cmdline(pid: int) -> bytes:
    """Of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def state(pid: int) -> str:
    """R, S, T (stopped), Z (zombie), ...; X when it is gone."""
    return (_stat(pid) or "X")[0]


def started(pid: int) -> str:
    """When the kernel started it, in its own units; empty when it is gone."""
    found = _stat(pid)
    return found[19] if found else ""


def _stat(pid: int) -> list[str]:
    """What the kernel says of a process, from its state on; nothing when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class TwoHosts:
    """Two network namespaces with a cable between them; needs root."""

    def __init__(self) -> None:
        tag = uuid.uuid4().hex[:6]
        self.names = [f"fg-{tag}-{i}" for i in range(2)]
        self.ends = [f"fg{tag}{i}" for i in range(2)]

    def __enter__(self) -> TwoHosts:
        for name in self.names:
            _ip("netns", "add", name)
        _ip("link", "add", self.ends[0], "type", "veth", "peer", "name", self.ends[1])
        for number, (name, end) in enumerate(zip(self.names, self.ends), start=1):
            _ip("link", "set", end, "netns", name, "name", "eth0")
            _ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", name, "link", "set", device, "up")
        return self

    def cut(self) -> None:
        """Pull the cable: packets are lost, nobody is told."""
        for (
            name
        ) in self.names:  # an address of nobody's: the other's answer no longer finds its way, and no error comes back
            _ip("-n", name, "neigh", "replace", "10.77.0.1", "lladdr", "02:00:00:00:00:99", "dev", "eth0")
            _ip("-n", name, "neigh", "replace", "10.77.0.2", "lladdr", "02:00:00:00:00:99", "dev", "eth0")

    def start(self, experiment: str, folder: Path) -> list[Started]:
        """One agent on each, with one rank each."""
        port = 29400 + os.getpid() % 500
        return [
            Started(
                [
                    "ip",
                    "netns",
                    "exec",
                    name,
                    *_agent(experiment, number, f"10.77.0.1:{port}", f"10.77.0.{number + 1}"),
                ],
                folder,
                f"host{number}",
                GLOO_SOCKET_IFNAME="eth0",
            )
            for number, name in enumerate(self.names)
        ]

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def two_agents(experiment: str, folder: Path) -> list[Started]:
    """Two agents on loopback, with one rank each."""
    port = 29400 + os.getpid() % 500
    commands = [_agent(experiment, number, f"127.0.0.1:{port}", "127.0.0.1") for number in range(2)]
    return [Started(c, folder, f"host{n}", GLOO_SOCKET_IFNAME="lo") for n, c in enumerate(commands)]


def _agent(experiment: str, number: int, endpoint: str, address: str) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    command += [f"--rdzv-endpoint={endpoint}", "--rdzv-id=faults", f"--local-addr={address}"]
    command += ["--rdzv-conf", f"is_host={int(number == 0)}"]
    return [*command, "-m", "forgather_dsl", "run", f"exp.py:{experiment}", "--out", "run"]


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
