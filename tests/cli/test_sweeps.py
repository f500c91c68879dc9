"""Sweeps: members found, told apart, checked together, trained side by side, skipped when finished; the members are stand-ins."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from forgather_dsl import Sweep, UserError
from forgather_dsl.dsl import ConfigError
from forgather_dsl.dsl.load import load
from forgather_dsl.plan.hardware import Device
from forgather_dsl.runs import places, pool, sweep_index
from forgather_dsl.runs.members import batches, described, is_adaptive, is_sweep_source

LAB = """
from forgather_dsl import Bytes, override, replace

class Base(Experiment):
    "Small."
    seq_len = 32
    steps = 6
    tokenizer = Bytes()
    model = patch(Llama, dim=32, num_layers=2, num_heads=2)

class Other(Base):
    optimizer = Muon()

class Two(Base):
    parallel = Pipeline(stages=2)

class Bad(Base):
    batch_size = 3
    microbatch_size = 2

lrs = [replace(Base(), optimizer=AdamW(lr=lr)) for lr in (1e-3, 3e-3)]
kinds = (Base, Other)
named = {"short": replace(Base(), seq_len=16), "long": Base}
ends = [Base, replace(Base(), steps=13), replace(Base(), steps=14)]
stops = [replace(Base(), steps=15), Base]
bad = [Bad, replace(Bad(), seed=1), Base, replace(Base(), model=patch(Llama, dim=33))]
twice = [Base, Base, replace(Base(), steps=6)]
wrong = [Base, 3]
numbers = [1, 2]

def several():
    for dim in (32, 64):
        yield override(Base(), {"model.dim": dim})

def falling():
    "Goes down while it pays."
    lr, best = 8e-3, float("inf")
    while True:
        run = yield replace(Base(), optimizer=AdamW(lr=lr))
        if lr < 3e-3:
            return
        best, lr = run.series("loss")[-1][1], lr / 2

def pairs():
    runs = yield [Base, replace(Base(), steps=13)]
    assert runs[1] is None
    yield replace(Base(), seed=len(runs))

def breaks():
    yield Base
    raise ValueError("no more ideas")

def endless():
    while True:
        yield Base
"""


@pytest.fixture
def lab(write: Callable[[str, str], str]) -> str:
    return write("lab.py", LAB)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members that only pretend to train."""
    monkeypatch.setattr(pool, "COMMAND", (sys.executable, "-S", str(Path(__file__).with_name("pretend_member.py"))))
    monkeypatch.setattr(pool, "POLL_SECONDS", 0.01)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def index(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "sweep.json").read_text())


def environment(folder: str, member: dict[str, Any]) -> dict[str, Any]:
    return json.loads((Path(folder) / member["run"] / "environment.json").read_text())


def labels(lab: str, name: str) -> list[str]:
    return [member.label for member in described(next(batches(load(f"{lab}:{name}"), name)))]


def test_members_bear_what_tells_them_apart(lab: str) -> None:
    assert labels(lab, "lrs") == ["optimizer.lr=0.001", "optimizer.lr=0.003"]
    assert labels(lab, "kinds") == ["Base", "Other"]
    assert labels(lab, "named") == ["short", "long"]
    assert labels(lab, "several") == ["model.dim=32", "model.dim=64"]  # and not ffn_dim, which follows


def test_generators_that_take_what_yield_returns_are_adaptive(lab: str) -> None:
    module = sys.modules[type(load(f"{lab}:Base")()).__module__]
    found = {name: is_adaptive(getattr(module, name)) for name in ("several", "falling", "pairs", "endless", "lrs")}
    assert found == {"several": False, "falling": True, "pairs": True, "endless": False, "lrs": False}
    assert [is_sweep_source(getattr(module, name)) for name in ("lrs", "named", "falling", "numbers", "Base")] == [
        *(True, True, True),
        *(False, False),
    ]


def test_ls_show_and_plan_know_sweeps(cli: Any, lab: str) -> None:
    rows = {row["target"]: row for row in cli("ls", lab, "--json").json}
    assert rows["lab.py:lrs"]["kind"] == "sweep"
    assert rows["lab.py:falling"]["doc"] == "Goes down while it pays."
    assert "lab.py:numbers" not in rows
    assert rows["lab.py:Base"]["kind"] == ""
    shown = cli("show", f"{lab}:lrs", "--set", "steps=9", "--json").json
    assert [member["label"] for member in shown["members"]] == ["optimizer.lr=0.001", "optimizer.lr=0.003"]
    plans = cli("plan", f"{lab}:kinds", "--gpus", "1x24GB", "--json").json
    assert [plan["target"] for plan in plans] == ["Base", "Other"]
    assert all(plan["fits"] for plan in plans)
    refused = cli("graph", f"{lab}:lrs")
    assert refused.code == 2
    assert "names several experiments; `run`, `show` and `plan` take them" in refused.err


def test_one_fails_the_others_finish_and_the_same_command_goes_on(cli: Any, lab: str, pretend: None) -> None:
    first = cli("run", f"{lab}:ends")
    assert first.code == 4
    found = index("runs/ends")
    assert [(member["label"], member["state"]) for member in found["members"]] == [
        ("steps=6", "finished"),
        ("steps=13", "failed"),
        ("steps=14", "failed"),
    ]
    failed, killed = found["members"][1:]
    assert failed["reason"] == "the data is gone\nwrite another path"
    assert killed["reason"] == "killed by SIGKILL, often by the system when memory is full"
    assert "2 of 3 failed:\nsteps=13: the data is gone" in first.err
    assert os.path.join("runs", "ends", failed["log"]) in first.err
    pid = environment("runs/ends", found["members"][0])["pid"]
    Path("repaired").touch()
    again = cli("run", f"{lab}:ends")
    assert "1/3     steps=6  finished already" in again.out
    assert [member["state"] for member in index("runs/ends")["members"]] == ["finished", "finished", "failed"]
    assert environment("runs/ends", index("runs/ends")["members"][0])["pid"] == pid


@pytest.mark.slow
def test_seeds_and_a_grid_of_any_target(cli: Any, lab: str, pretend: None) -> None:
    done = cli("run", f"{lab}:Base", "--seeds", "2", "--sweep", "optimizer.lr=1e-3,2e-3", "--sweep", "batch_size=4,8")
    assert done.code == 0, done.err
    found = index("runs/Base-sweep")
    assert len(found["members"]) == 8
    assert found["members"][0]["label"] == "batch_size=4 optimizer.lr=0.001 seed=0"
    assert {member["seed"] for member in found["members"]} == {0, 1}
    groups = {member["group"]: member["group_label"] for member in found["members"]}
    assert len(groups) == 4  # members that differ in the seed alone are one
    assert "batch_size=8 optimizer.lr=0.002" in groups.values()
    more = cli("run", f"{lab}:Base", "--seeds", "4,5,", "--sweep", "optimizer.lr=1e-3,2e-3", "--sweep", "batch_size=4")
    assert more.code == 0, more.err
    found = index("runs/Base-sweep")
    assert [member["dropped"] for member in found["members"]] == [False] * 4 + [True] * 8
    rows = cli("ls", "runs/Base-sweep", "--json").json
    assert len(rows) == 12
    assert rows[-1]["doc"].endswith("finished, no longer listed")
    seeds = cli("run", f"{lab}:lrs", "--seeds", "3", "--out", "lrs3")
    assert seeds.code == 0, seeds.err
    assert len(index("lrs3")["members"]) == 6
    other = cli("run", f"{lab}:kinds", "--out", "lrs3")
    assert other.code == 2
    assert "lrs3 holds the sweep lab.py:lrs, not lab.py:kinds; write another --out" in other.err


def test_side_by_side_they_share_the_cores_and_say_so(cli: Any, lab: str, pretend: None) -> None:
    assert cli("run", f"{lab}:kinds", "--jobs", "2").code == 0
    found = [environment("runs/kinds", member) for member in index("runs/kinds")["members"]]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // 2)
    assert [one["sweep"] for one in found] == [{"jobs": 2, "threads": share, "devices": None}] * 2
    assert [one["facts"]["OMP_NUM_THREADS"] for one in found] == [str(share)] * 2
    assert cli("run", f"{lab}:kinds", "--jobs", "2", "--out", "one", "--set", "seed=1", "--sweep", "steps=5").code == 0
    alone = cli("run", f"{lab}:Base", "--seeds", "1", "--jobs", "8")
    assert alone.code == 0
    (member,) = index("runs/Base-seeds")["members"]
    assert environment("runs/Base-seeds", member)["sweep"] == {"jobs": 1, "threads": None, "devices": None}


def test_each_has_cards_of_its_own(monkeypatch: pytest.MonkeyPatch, lab: str) -> None:
    cards = tuple(Device("card", 24 * 2**30, "gpu") for _ in range(3))
    monkeypatch.setattr(places, "gpus", lambda: cards)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-ab")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    one, two = load(f"{lab}:Base")(), load(f"{lab}:Two")()
    room = places.Places(None)
    assert room.jobs == 3
    first, second = room.take(two), room.take(one)
    assert first is not None
    assert second is not None
    assert first.variables() == {"CUDA_VISIBLE_DEVICES": "4,5"}
    assert second.variables() == {"CUDA_VISIBLE_DEVICES": "GPU-ab"}
    assert room.take(one) is None
    room.give_back(first)
    third = room.take(one)
    assert third is not None
    assert third.cards == ("4",)
    assert room.take(two) is None  # one card is free
    assert places.Places(1).take(two) is not None


def test_results_decide_what_comes_next(cli: Any, lab: str, pretend: None) -> None:
    done = cli("run", f"{lab}:falling")
    assert done.code == 0, done.err
    found = index("runs/falling")
    assert [member["label"] for member in found["members"]] == [
        f"optimizer.lr={lr}" for lr in ("0.008", "0.004", "0.002")
    ]
    assert found["adaptive"]
    again = cli("run", f"{lab}:falling")
    assert again.out.count("finished already") == 3
    both = cli("run", f"{lab}:pairs", "--jobs", "2")
    assert both.code == 4
    assert [member["state"] for member in index("runs/pairs")["members"]] == ["finished", "failed", "finished"]
    assert cli("show", f"{lab}:falling").code == 2


def test_everything_wrong_is_told_before_anything_begins(cli: Any, lab: str, pretend: None) -> None:
    refused = cli("run", f"{lab}:bad")
    assert refused.code == 2
    assert "3 of 4 experiments cannot be trained; none was started:" in refused.err
    assert "number 1 (Bad), number 2 (Bad): " in refused.err  # one problem of two
    assert "number 4 (Base): " in refused.err
    assert not Path("runs").exists()
    for name, text in {
        "wrong": "lab.py:wrong",
        "breaks": "breaks raised ValueError: no more ideas (lab.py:",
        "endless": "endless has more than 10,000 experiments; does its generator ever end?",
    }.items():
        found = cli("run", f"{lab}:{name}")
        assert found.code == 2
        assert text in found.err, name
    gone = cli("run", f"{lab}:Base", "--seeds", "2", "--set", "data=TextFiles", "--set", "data.paths=nowhere")
    assert gone.code == 2
    assert "none was started" in gone.err
    assert "nowhere" in gone.err


def test_the_same_experiment_is_trained_once(cli: Any, lab: str, pretend: None) -> None:
    done = cli("run", f"{lab}:twice")
    assert done.code == 0
    assert done.out.count("is the same experiment as") == 2
    assert len(index("runs/twice")["members"]) == 1


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--seeds", "x"], "--seeds 'x': write the seeds, such as --seeds 0,1,2, or how many"),
        (["--seeds", "0"], "--seeds '0': write"),
        (["--sweep", "optimizer.lr"], "--sweep 'optimizer.lr': write --sweep path=value,value"),
        (["--sweep", "steps=1", "--sweep", "steps=2"], "--sweep steps: it stands twice"),
        (["--sweep", "optimizer.lr=x,1", "--sweep", "modl.dim=1"], "--sweep modl: Base has no field 'modl'"),
        (["--jobs", "2"], "--jobs is for several experiments"),
        (["--seeds", "2", "--allow-change"], "--allow-change is for one run"),
        (["--seeds", "2", "--resume", "x"], "--resume x: a sweep goes on where its members stop"),
    ],
    ids=["seeds", "none", "no values", "twice", "field", "jobs", "change", "resume"],
)
def test_a_wrong_command_line_is_explained(cli: Any, lab: str, words: list[str], text: str) -> None:
    refused = cli("run", f"{lab}:Base", *words)
    assert refused.code == 2
    assert text in refused.err


def test_one_interrupt_stops_all_and_the_same_command_goes_on(cli: Any, lab: str, pretend: None) -> None:
    def interrupt() -> None:
        while not list(Path("runs/stops").glob("*/waits")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    waiter = threading.Thread(target=interrupt)
    waiter.start()
    stopped = cli("run", f"{lab}:stops")
    waiter.join()
    assert stopped.code == 130
    found = index("runs/stops")
    assert [member["state"] for member in found["members"]] == ["interrupted", "waiting"]
    assert found["state"] == "interrupted"
    assert found["members"][0]["reason"] == "interrupted at step 5; saved step-00000005"
    Path("repaired").touch()
    assert cli("run", f"{lab}:stops").code == 0
    assert index("runs/stops")["state"] == "finished"


def test_from_python_runs_come_back_in_order(project: Path, lab: str, pretend: None) -> None:
    sweep = Sweep(load(f"{lab}:lrs"), out="here", seeds=[7])
    runs = sweep.fit()
    assert [run.series("loss")[0][1] for run in runs] == [1e-3, 3e-3]
    failing = Sweep(load(f"{lab}:ends"))
    with pytest.raises(UserError) as failed:
        failing.fit()
    assert failed.value.exit_code == 4
    assert len(failing.runs) == 1
    with pytest.raises(ConfigError, match=r"the list has no experiment"):
        Sweep([]).fit()
    (folder,) = Path("runs").glob("sweep-*")
    assert sweep_index.read(str(folder)).state == "failed"


def test_a_damaged_index_is_told(cli: Any, lab: str, project: Path) -> None:
    Path("runs/lrs").mkdir(parents=True)
    Path("runs/lrs/sweep.json").write_text('{"version": 1, "name": "lrs"}')
    for words in (["ls", "runs/lrs"], ["run", f"{lab}:lrs"]):
        refused = cli(*words)
        assert refused.code == 2
        assert "runs/lrs/sweep.json is damaged" in refused.err
    entry = {"run": "../x", "digest": "", "label": "", "group": "", "group_label": "", "seed": 0}
    whole = {"version": 1, "name": "l", "target": None, "command": [], "started": "", "members": [entry]}
    Path("runs/lrs/sweep.json").write_text(json.dumps(whole))
    assert "'../x' is no folder of it" in cli("ls", "runs/lrs").err
