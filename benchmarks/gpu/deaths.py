"""Parts of the check that do harm: a rank killed, a rank that stands still, a card that is too small."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from recipes import memory_cases
from report import GIB, Report
from runs import CHECK, fit


def death(report: Report) -> None:
    """A rank of four is killed, or stands still for a watchdog of 5 s: seconds until every process is gone, and what stays of the card's memory."""
    cases = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP, "launcher killed": signal.SIGKILL}
    for name, number in cases.items():
        place = report.out / name.replace(" ", "-")
        before = report.used_memory()
        command = [sys.executable, str(CHECK), "--endless", "--out", str(place), *(["--small"] if report.small else [])]
        launcher = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        _await_step(place, 3, launcher)
        during, family = report.used_memory(), _family(launcher.pid)
        start = time.perf_counter()
        os.kill(launcher.pid if "launcher" in name else family[-1], number)
        code = launcher.wait(timeout=60)
        while any(Path(f"/proc/{pid}").exists() and _state(pid) != "Z" for pid in family):
            time.sleep(0.005)
        gone = time.perf_counter() - start
        while report.used_memory() > before + 0.05 and time.perf_counter() - start < 20:
            time.sleep(0.01)
        said = [line for line in (launcher.stderr.read() if launcher.stderr else "").splitlines() if "error" in line]
        report.row(
            case=name,
            exit_code=code,
            seconds_until_gone=gone,
            seconds_until_memory_back=time.perf_counter() - start,
            gib_before=before,
            gib_during=during,
            gib_after=report.used_memory(),
            processes=len(family),
            said=said[:2],
        )


def starved(report: Report) -> None:
    """A run that does not fit into its share of the card: what it says."""
    import torch

    from forgather_dsl.errors import UserError

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(6 * GIB / torch.cuda.get_device_properties(0).total_memory)
    try:
        fit(report.sized(memory_cases()["fp32 AdamW"]), report.out / "starved")
        report.row(fitted=True)
    except UserError as error:
        print(error)
        report.row(exit_code=error.exit_code, said=str(error).splitlines())


def _await_step(place: Path, step: int, launcher: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and launcher.poll() is None:
        with contextlib.suppress(OSError):
            if (place / "metrics.jsonl").read_text().count('"loss"') >= step:
                return
        time.sleep(0.05)
    raise RuntimeError(f"no step {step}: {launcher.stderr.read()[-2000:] if launcher.stderr else ''}")


def _family(pid: int) -> list[int]:
    """The descendants of a process that are ranks, by start."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found = [child for child in children.get(pid, []) if b"train.rank" in Path(f"/proc/{child}/cmdline").read_bytes()]
    return sorted(found)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"
