"""How ranks on several machines meet: which network interface they use, and what to say when they do not. Imports no torch.

In: the environment that torchrun, srun or a person started a rank with. Out: GLOO_SOCKET_IFNAME, where nobody has set it. Left
alone, gloo offers the address that this machine's name stands for, and on many that is 127.0.1.1, where no other machine
finds it. What carries packets to rank 0 is right wherever one network joins the machines.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, Protocol

from ..errors import UserError

__all__ = ["choose_interface", "interface_towards", "not_met", "require_reachable", "several_machines", "where"]

INTERFACE = "GLOO_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915  # Linux: the address of an interface
HEAD_PORT = 29500  # torch's own, where MASTER_PORT is not set
REACH_SECONDS = 20.0  # for one machine to answer another
_ADVICE = (
    "MASTER_ADDR (torchrun --master-addr) has to be an address of the first machine that all the others reach, and on each "
    f"machine {INTERFACE} (with GPUs NCCL_SOCKET_IFNAME too) the interface that leads there; ranks use ports above 1023 in "
    "both directions, so firewalls must let them through. docs/machines.md shows how to find out"
)


class Store(Protocol):
    """Of torch.distributed: what one rank sets, all can get, and getting waits for it."""

    def set(self, key: str, value: str) -> None:
        """Set it."""
        ...

    def get(self, key: str) -> bytes:
        """Wait until it is set."""
        ...


def several_machines(env: Mapping[str, str] = os.environ) -> bool:
    """Whether other ranks of this run are on other machines."""
    world = int(env.get("WORLD_SIZE", 1))
    return "MASTER_ADDR" in env and int(env.get("LOCAL_WORLD_SIZE", world)) < world


def choose_interface(env: MutableMapping[str, str] = os.environ) -> None:
    """Set GLOO_SOCKET_IFNAME, unless it is set, the ranks are all here, or it cannot be told."""
    if several_machines(env) and INTERFACE not in env and (found := interface_towards(env["MASTER_ADDR"])):
        env[INTERFACE] = found[0]


def interface_towards(host: str) -> tuple[str, str] | None:
    """Name and address of the interface that packets to `host` leave by; None when that cannot be told (or not on Linux).

    A machine's own name may stand for a loopback address: then its only other interface, if it has one.
    """
    addresses = _addresses()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            own = probe.getsockname()[0]
    except OSError:
        return None
    if own.startswith("127."):
        others = [pair for pair in addresses.items() if not pair[1].startswith("127.")]
        return others[0] if len(others) == 1 else None
    return next((pair for pair in addresses.items() if pair[1] == own), None)


def _addresses() -> dict[str, str]:
    """The IPv4 address of each interface that has one."""
    if not sys.platform.startswith("linux"):
        return {}
    import fcntl

    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has none
                answer = fcntl.ioctl(asking.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[name] = socket.inet_ntoa(answer[20:24])
    return found


def where(env: Mapping[str, str] = os.environ) -> str:
    """Where this rank looks for the others, and by what way it can be found."""
    head = f"rank 0 at {env.get('MASTER_ADDR', '?')}:{env.get('MASTER_PORT', HEAD_PORT)}"
    names = [name for name in env.get(INTERFACE, "").split(",") if name]
    if not names:
        return f"{head}, offering the address of this machine's name ({socket.gethostname()}; {INTERFACE} is not set)"
    here = _addresses()
    offered = ", ".join(f"{name} ({here.get(name, 'which has no address, or is not here')})" for name in names)
    return f"{head}, offering {offered} (from {INTERFACE})"


def not_met(error: Exception, env: Mapping[str, str] = os.environ) -> str:
    """What to say when the ranks could not connect."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    others = ", ".join(f"{name} {address}" for name, address in _addresses().items())
    return (
        f"rank {env.get('RANK', 0)} on {socket.gethostname()} has not met the other ranks: {reason}\n"
        f"it looked for {where(env)}; this machine has {others or 'no IPv4 address'}\n{_ADVICE}"
    )


def require_reachable(store: Store, env: Mapping[str, str] = os.environ) -> None:
    """Every rank tries to connect to one of each other machine, at the address that gloo would offer, and tells all of it.

    Without this, one rank gives up after a minute and its partner waits for ever. All ranks must call it; `store` is one
    that all of them have. Raises UserError, on all ranks, when any is not reached.
    """
    rank, world = int(env["RANK"]), int(env["WORLD_SIZE"])
    first = rank - int(env.get("LOCAL_RANK", 0))  # of this machine
    name = env.get(INTERFACE, "").split(",")[0]
    address = _addresses().get(name) or _own_address()
    listener, problem = _listen(address)
    with listener:
        offered = [first, socket.gethostname(), f"{address} ({name or 'its name'})", *listener.getsockname()[:2]]
        store.set(f"offer/{rank}", json.dumps(offered))
        everyone = [json.loads(store.get(f"offer/{other}")) for other in range(world)]
        one_each = {offer[0]: (other, offer) for other, offer in reversed([*enumerate(everyone)]) if offer[0] != first}
        found = [problem] if problem else [_try(rank, *pair) for pair in one_each.values()]
        store.set(f"found/{rank}", json.dumps([text for text in found if text]))
        problems = [text for other in range(world) for text in json.loads(store.get(f"found/{other}"))]
    if problems:
        text = f"machines do not reach each other: {'; '.join(problems)}\n{_ADVICE}"
        raise UserError(text if rank == first else "", exit_code=4)


def _listen(address: str) -> tuple[socket.socket, str | None]:
    """A socket that others can connect to; or one that they cannot, and why."""
    try:
        return socket.create_server((address, 0), backlog=1024), None
    except OSError as error:
        return socket.create_server(("127.0.0.1", 0)), f"{socket.gethostname()} has no address {address} ({error})"


def _try(rank: int, other: int, offer: Sequence[Any]) -> str | None:
    """Why `other` is not reached at what it offered; None when it is."""
    _, host, offered, address, port = offer
    here = f"rank {rank} on {socket.gethostname()} does not reach rank {other} on {host} at {offered}"
    try:
        socket.create_connection((address, port), timeout=REACH_SECONDS).close()
    except OSError as error:
        loopback = ", which is the address of a machine for itself" if address.startswith("127.") else ""
        return f"{here}{loopback}: {error.strerror or error}"
    return None


def _own_address() -> str:
    """What this machine's name stands for, as gloo asks for it."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"
