"""How ranks on several machines meet: which interface is chosen, what is said when they do not, and what they must share."""

from __future__ import annotations

import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import gethostname
from types import SimpleNamespace
from typing import Any

import pytest

from forgather_dsl.errors import UserError
from forgather_dsl.parallel import meeting
from forgather_dsl.parallel.meeting import (
    choose_interface,
    interface_towards,
    not_met,
    require_reachable,
    several_machines,
)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for addresses")
TWO_MACHINES = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "10.1.2.3"}


def test_ranks_of_one_machine_and_of_several() -> None:
    assert several_machines(TWO_MACHINES)
    assert not several_machines({**TWO_MACHINES, "LOCAL_WORLD_SIZE": "2"})
    assert not several_machines({})


def test_the_interface_that_leads_to_rank_0_is_chosen_unless_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(meeting, "interface_towards", lambda host: asked.append(host) or ("wan7", "10.1.2.4"))
    env = dict(TWO_MACHINES)
    choose_interface(env)
    assert (env["GLOO_SOCKET_IFNAME"], asked) == ("wan7", ["10.1.2.3"])
    for kept in ({**TWO_MACHINES, "GLOO_SOCKET_IFNAME": "ib0"}, {**TWO_MACHINES, "LOCAL_WORLD_SIZE": "2"}):
        env = dict(kept)
        choose_interface(env)
        assert env == kept


@linux
def test_a_name_that_stands_for_loopback_means_the_only_other_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = {"lo": "127.0.0.1", "eth0": "10.1.2.3"}
    monkeypatch.setattr(meeting, "_addresses", lambda: addresses)
    assert interface_towards("127.0.0.1") == ("eth0", "10.1.2.3")
    addresses["docker0"] = "172.17.0.1"
    assert interface_towards("127.0.0.1") is None  # whoever guesses gets it wrong now and then
    assert interface_towards("no such host.invalid") is None


@linux
def test_who_has_not_met_the_others_says_where_it_looked() -> None:
    env = {**TWO_MACHINES, "MASTER_PORT": "29400", "GLOO_SOCKET_IFNAME": "lo,nic9"}
    text = not_met(RuntimeError("Connection refused\nmore"), env)
    assert "has not met the other ranks: Connection refused\n" in text
    assert "rank 0 at 10.1.2.3:29400, offering lo (127.0.0.1), nic9 (which has no address, or is not here)" in text
    assert "GLOO_SOCKET_IFNAME is not set" in not_met(RuntimeError("x"), TWO_MACHINES)


class Board:
    """A store, for threads in place of ranks."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.changed = threading.Condition()

    def set(self, key: str, value: str) -> None:
        with self.changed:
            self.values[key] = value.encode()
            self.changed.notify_all()

    def get(self, key: str) -> bytes:
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, 30)
            return self.values[key]


def meet(*machines: str) -> list[str | None]:
    """What each of two ranks says, one on each machine with one interface of the given name."""
    board, said = Board(), []

    def rank(number: int) -> str | None:
        env = {"RANK": str(number), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": machines[number]}
        try:
            require_reachable(board, env)
        except UserError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(2) as pool:
        said = [*pool.map(rank, range(2))]
    return said


def refused(*_: object, **__: object) -> None:
    raise ConnectionRefusedError(111, "Connection refused")


@linux
def test_machines_that_do_not_reach_each_other_are_told_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    addresses = meeting._addresses() | {"gone": "192.0.2.77"}  # of an interface that is not here
    monkeypatch.setattr(meeting, "_addresses", lambda: addresses)
    own = next((name for name, address in addresses.items() if not address.startswith("127.") and name != "gone"), None)
    if own is not None:
        assert meet(own, own) == [None, None]
    assert meet("lo", "lo") == [None, None]  # two of torchrun's agents on one machine
    monkeypatch.setattr(meeting, "_listen", lambda address: (socket.create_server(("127.0.0.1", 0)), None))
    with monkeypatch.context() as deaf:
        deaf.setattr(socket, "create_connection", refused)
        both = meet("lo", "lo")
    assert both[0] == both[1]
    for one, other in ((0, 1), (1, 0)):
        text = (
            f"rank {one} on {gethostname()} does not reach rank {other} on {gethostname()} at 127.0.0.1 (lo), which is"
        )
        assert text in str(both[0])
    monkeypatch.undo()
    monkeypatch.setattr(meeting, "_addresses", lambda: addresses)
    assert "has no address 192.0.2.77" in str(meet("gone", "lo")[1])


class Told:
    """Rank 0 of two, of which the other says what is given, in order."""

    rank = 0

    def __init__(self, *others: Any) -> None:
        self.others = list(others)

    def gather(self, value: Any) -> list[Any]:
        other = self.others.pop(0)
        return [value, other(value) if callable(other) else other]


def test_machines_must_see_one_run_directory(tmp_path: Path) -> None:
    from forgather_dsl.train.machines import require_shared

    require_shared(Told(None, None, ("b", "/r", True)), str(tmp_path / "run"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"run on .*, and b \(/r\) is not the same folder"):
        require_shared(Told(None, None, ("b", "/r", False)), str(tmp_path / "run"))  # type: ignore[arg-type]
    assert list((tmp_path / "run").iterdir()) == []


def test_machines_must_have_the_same_tokens() -> None:
    from forgather_dsl.train.machines import require_same_data

    def prepared(*fingerprints: str | None) -> Any:
        train, held_out, named = (f and SimpleNamespace(fingerprint=f) for f in fingerprints)
        return SimpleNamespace(train=train, held_out=held_out, eval_sets={"code": named})

    require_same_data(Told(lambda mine: ("b", mine[1])), prepared("a", None, "c"))  # type: ignore[arg-type]
    for other in (["x", None, "c"], ["a", "h", "c"], ["a", None, "x"]):
        with pytest.raises(UserError, match="rank 1 on b: other training or held-out tokens than rank 0"):
            require_same_data(Told(("b", other)), prepared("a", None, "c"))  # type: ignore[arg-type]
