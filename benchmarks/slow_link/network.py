"""Hosts on one machine: network namespaces on a switch, every link shaped in both directions. Needs root and iproute2 (Linux).

`tbf` limits the rate of each end of each cable: what a host sends, and what the switch sends to it. The queue is long enough
never to drop, as PCIe does not: with a short one several senders to one rank lose packets, and twice the time. There is
no latency emulation (`netem` is not in every kernel).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
import uuid
from typing import NamedTuple

__all__ = ["Counted", "Network", "counted", "missing"]

CLONE_NEWNET = 0x40000000
MTU = 9000
QUEUE = 16 * 2**20  # bytes that wait at one end of a cable: more than a step sends at once
HEADERS = 14 + 20 + 32  # bytes of Ethernet, IP and TCP with time stamps


class Counted(NamedTuple):
    """What an interface has sent."""

    sent: int
    """Bytes, headers included."""
    packets: int

    @property
    def payload(self) -> int:
        """Bytes without headers."""
        return self.sent - HEADERS * self.packets

    def since(self, before: Counted) -> Counted:
        """The difference."""
        return Counted(self.sent - before.sent, self.packets - before.packets)


def missing() -> str | None:
    """Why there can be no such network here; None if there can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "making network namespaces needs root"
    tag = f"fgprobe{os.getpid()}"
    steps = [["ip", "netns", "add", tag], ["tc", "-n", tag, "qdisc", "add", "dev", "lo", "root", *_tbf(1e6)]]
    try:
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True, check=False)
            if done.returncode:
                return f"`{' '.join(step)}` failed: {done.stderr.strip()}"
    except FileNotFoundError as error:
        return f"{error.filename} is not installed (package iproute2)"
    finally:
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(["ip", "netns", "del", tag], capture_output=True, check=False)
    return None


def counted() -> Counted:
    """What eth0 of this process's namespace has sent so far."""
    with open("/proc/self/net/dev", encoding="ascii") as file:
        for line in file:
            name, _, numbers = line.partition(":")
            if name.strip() == "eth0":
                fields = numbers.split()
                return Counted(int(fields[8]), int(fields[9]))
    raise RuntimeError("this process is not in a host of the network: there is no eth0")


class Network:
    """`hosts` namespaces with addresses 10.77.0.1, .2, ... on a switch, in a namespace of its own, while it is open."""

    def __init__(self, hosts: int) -> None:
        tag = uuid.uuid4().hex[:6]
        self.switch, self.names = f"fgl{tag}sw", [f"fgl{tag}h{i}" for i in range(hosts)]

    def __enter__(self) -> Network:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _build(self) -> None:
        _run("ip", "netns", "add", self.switch)
        _run("ip", "-n", self.switch, "link", "add", "br0", "type", "bridge")
        _run("ip", "-n", self.switch, "link", "set", "br0", "up")
        for number, name in enumerate(self.names):
            _run("ip", "netns", "add", name)
            peer = ("type", "veth", "peer", "name", f"p{number}", "netns", self.switch)
            _run("ip", "-n", name, "link", "add", "eth0", "mtu", str(MTU), *peer)
            _run("ip", "-n", self.switch, "link", "set", f"p{number}", "mtu", str(MTU), "master", "br0", "up")
            _run("ip", "-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _run("ip", "-n", name, "link", "set", device, "up")
            # bbr, the default on many machines, probes the rate: with several senders to one rank it loses 4 % of packets
            route = ("10.77.0.0/24", "dev", "eth0", "proto", "kernel", "scope", "link", "src", f"10.77.0.{number + 1}")
            _run("ip", "-n", name, "route", "change", *route, "congctl", "cubic")

    def shape(self, bits_per_second: float | None) -> None:
        """The rate of every link from now on, each way; None: as fast as the machine is."""
        ends = [*((name, "eth0") for name in self.names), *((self.switch, f"p{i}") for i in range(len(self.names)))]
        for name, device in ends:
            if bits_per_second is None:
                quiet = ["tc", "-n", name, "qdisc", "del", "dev", device, "root"]
                subprocess.run(quiet, capture_output=True, check=False)  # there may be none
            else:
                _run("tc", "-n", name, "qdisc", "replace", "dev", device, "root", *_tbf(bits_per_second))

    def enter(self, host: int) -> None:
        """Move this process to a host: what it connects from now on goes over the network. Before it has threads."""
        libc = ctypes.CDLL(None, use_errno=True)
        handle = os.open(f"/run/netns/{self.names[host]}", os.O_RDONLY)
        try:
            if libc.setns(handle, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns to {self.names[host]}")
        finally:
            os.close(handle)
        os.environ["GLOO_SOCKET_IFNAME"] = "eth0"

    def __exit__(self, *_: object) -> None:
        for name in (*self.names, self.switch):
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


def _tbf(bits_per_second: float) -> list[str]:
    """A burst of one segment as the kernel hands it down (64 KiB) at least, and of a millisecond."""
    burst = max(2**16, int(bits_per_second / 8000))
    return ["tbf", "rate", f"{int(bits_per_second)}bit", "burst", str(burst), "limit", str(QUEUE)]


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(words)}` failed: {done.stderr.strip()}")
