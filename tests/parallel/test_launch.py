"""Ranks start together and end together, whatever ends them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forgather_dsl.parallel.launch import ENVIRONMENT, GRACE_SECONDS, launch

ROOT = Path(__file__).parents[2]
LAUNCH = (
    "import sys; from forgather_dsl.parallel.launch import launch; sys.exit(launch(sys.argv[2:], int(sys.argv[1])))"
)


def python(code):
    return [sys.executable, "-c", "import os, sys, time, signal; rank = int(os.environ['RANK'])\n" + code]


def launcher(code, world=2, **env):
    """A launcher in a process of its own, its stdout a pipe."""
    command = [sys.executable, "-c", LAUNCH, str(world), *python(code)]
    return subprocess.Popen(
        command, cwd=ROOT, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"
    except OSError:
        return True


def wait_for(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def pids(folder, count):
    """Ids that the ranks have written to `folder`."""
    wait_for(lambda: len([p for p in folder.glob("*.pid") if p.read_text()]) == count)
    return [int(path.read_text()) for path in folder.glob("*.pid")]


REPORT = "open(f'{FOLDER}/{rank}.pid', 'w').write(str(os.getpid()))\n"


def report(folder):
    return REPORT.replace("{FOLDER}", str(folder))


SAVES = """
def save(*_):
    open(f'{FOLDER}/{rank}.saved', 'a').write('x'); time.sleep(0.2 * rank); sys.exit(130)
signal.signal(signal.SIGINT, save); signal.signal(signal.SIGTERM, save)
"""


def test_each_rank_knows_its_place_and_rank_0_has_the_output():
    code = "print(*(os.environ[k] for k in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'LOCAL_WORLD_SIZE')))\n"
    code += "sys.stderr.write(f'rank {rank}\\n')"
    done = launcher(code, world=3)
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert out == "0 0 3 3\n"
    assert sorted(err.splitlines()) == ["rank 0", "rank 1", "rank 2"]


def test_cores_are_shared_unless_the_user_says_otherwise():
    show = "print(os.environ['OMP_NUM_THREADS'])"
    env = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, "-c", LAUNCH, "2", *python(show)]
    out = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    assert out == f"{max(1, len(os.sched_getaffinity(0)) // 2)}\n"
    assert launcher(show, OMP_NUM_THREADS="7").communicate()[0] == "7\n"


@pytest.mark.parametrize(("failure", "code"), [("sys.exit(3)", 3), ("os.kill(os.getpid(), 9)", 4), ("1/0", 1)])
def test_a_failing_rank_ends_the_others_within_two_seconds(tmp_path, failure, code):
    body = report(tmp_path) + "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"  # as when stuck in a receive
    body += f"if rank == 1:\n    time.sleep(0.3); {failure}\ntime.sleep(60)"
    start = time.monotonic()
    done = launcher(body, world=3)
    ids = pids(tmp_path, 3)
    done.communicate(timeout=120)
    assert done.returncode == code
    assert GRACE_SECONDS < 2
    assert time.monotonic() - start < 30  # they would sleep for 60: a busy machine may take long to start interpreters
    assert all(map(gone, ids))


def test_the_others_are_asked_to_end_before_they_are_killed(tmp_path):
    body = SAVES.replace("{FOLDER}", str(tmp_path)) + report(tmp_path)
    body += "while rank and not os.path.exists(f'{FOLDER}/0.pid'): time.sleep(0.02)\n".replace(
        "{FOLDER}", str(tmp_path)
    )
    body += "time.sleep(60) if rank == 0 else sys.exit(3)"
    done = launcher(body)
    done.communicate(timeout=10)
    assert done.returncode == 3
    assert (tmp_path / "0.saved").read_text() == "x"


def test_a_rank_that_ends_well_waits_for_the_others():
    assert launch(python("time.sleep(0.3 * rank)"), 2) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_killing_the_launcher_leaves_no_orphan(tmp_path):
    running = launcher(report(tmp_path) + "time.sleep(60)")
    ids = pids(tmp_path, 2)
    running.kill()
    running.wait()
    wait_for(lambda: all(map(gone, ids)), seconds=2.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_reaches_every_rank_once_and_all_may_save(tmp_path, number):
    body = SAVES.replace("{FOLDER}", str(tmp_path)) + report(tmp_path) + "time.sleep(60)"
    running = launcher(body, world=3)
    pids(tmp_path, 3)
    running.send_signal(number)
    running.communicate(timeout=30)
    assert running.returncode == 130
    assert [(tmp_path / f"{rank}.saved").read_text() for rank in range(3)] == ["x"] * 3


def test_a_terminal_does_not_deliver_the_interrupt_itself(tmp_path):
    running = launcher(report(tmp_path) + "time.sleep(60)")
    ids = pids(tmp_path, 2)
    assert len({os.getsid(pid) for pid in ids} | {os.getsid(running.pid)}) == 3
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=30)
    assert running.returncode == 130


def test_a_second_interrupt_kills_at_once(tmp_path):
    body = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + report(tmp_path) + "time.sleep(60)"
    running = launcher(body)
    ids = pids(tmp_path, 2)
    running.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert running.poll() is None
    running.send_signal(signal.SIGINT)
    running.communicate(timeout=30)
    assert running.returncode == 130
    assert all(map(gone, ids))


def test_launching_imports_no_torch():
    code = "import sys, forgather_dsl.parallel.launch; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"


JOINS = """
import torch
from forgather_dsl.parallel.group import join, leave, pipeline_group
from forgather_dsl.parallel.messages import Wire
world = join('cpu', timeout_seconds=30)
group = pipeline_group(world, 2)
wire = Wire(group)
wire.open([(0, 1)])
if rank == 0:
    wire.send(torch.arange(6.0).view(2, 3).t(), 1, 5).wait()
    print(world.rank, world.size, world.backend, group.rank, group.size, wire.broadcast(0, 1))
else:
    got = wire.receive(torch.empty(3, 2), 0, 5).wait()
    assert got.tolist() == [[0, 3], [1, 4], [2, 5]]
    wire.broadcast(42, 1)
leave(world)
"""


def test_launched_ranks_join_and_talk():
    done = launcher(JOINS, OMP_NUM_THREADS="1")
    out, err = done.communicate(timeout=240)
    assert (done.returncode, out) == (0, "0 2 gloo 0 2 42\n"), err


def test_a_process_that_was_not_launched_is_alone():
    code = "from forgather_dsl.parallel.group import *; w = join('cpu'); print(w, pipeline_group(w, 1)); leave(w)"
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.stdout == "World(rank=0, size=1, device=device(type='cpu'), backend=None) None\n", done.stderr


def test_matrix_products_of_ranks_do_not_depend_on_how_many_threads_they_have():
    """A rank of two has half the threads of a process alone. On AVX-512 this fails without what `ENVIRONMENT` sets."""
    code = """
import torch
found = []
for threads in (1, 2, 3):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    x, y, w = torch.randn(256, 192), torch.randn(256, 4096), torch.zeros(4096, 192)
    found.append([w.addmm_(y.t(), x), y @ w, x @ w.t(), x.t() @ y])
print(all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other)))
"""
    env = {**os.environ, **ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "True", done.stderr
