"""Checks what only a GPU can show: bits, memory, speed and deaths of real runs on one card. Without a card it says so and ends.

`python benchmarks/gpu/gpu_check.py --out DIR [--parts NAME ...]` runs each part in a process of its own, within its seconds, and
goes on after those that fail; `results.jsonl` in DIR holds every row, so a later call adds to what is there. `--small` shrinks
everything to run on a CPU too, where it shows only that a part works. NCCL wants a card for each rank, so it is not checked here.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from report import Report, has_gpu, shrunk

from forgather_dsl.errors import UserError
from forgather_dsl.parallel.launch import environment as threads
from forgather_dsl.parallel.lifeline import bound_to_this

PARTS: dict[str, tuple[str, float]] = {  # module, seconds
    "machine": ("kernels", 40),
    "formats": ("runs", 90),
    "repeat": ("runs", 120),
    "ranks": ("runs", 120),
    "death": ("deaths", 100),
    "memory": ("runs", 120),
    "starved": ("deaths", 40),
    "exactly": ("runs", 200),
    "split": ("kernels", 90),
    "compiled": ("kernels", 120),
    "embedding": ("kernels", 30),
    "stall": ("kernels", 120),
    "decode": ("attending", 40),
    "attention": ("attending", 30),
    "busy": ("runs", 60),
    "profile": ("seven", 90),
    "seven": ("seven", 110),
    "schedules": ("seven", 300),
}


def main() -> int:
    """Exit code 0 unless a part failed."""
    options = _options()
    small = options.small
    if options.fit or options.spread or options.endless:
        return _child(options)
    options.out.mkdir(parents=True, exist_ok=True)
    if len(options.parts) == 1 and options.here:
        _work(options.parts[0])(Report(options.parts[0], options.out, small))
        return 0
    if not small and not has_gpu():
        print("no GPU here: nothing is checked; --small runs everything in a small form on a CPU")
        return 0
    return max(_wait(_started(parts, options), parts, options.out) for parts in _groups(options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-check"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--beside", nargs="+", choices=PARTS, default=[], help="parts to run at the same time, first")
    parser.add_argument("--small", action="store_true")
    for name in ("--here", "--endless"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    for name in ("--fit", "--spread"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def _child(options: argparse.Namespace) -> int:
    import recipes
    import runs

    if options.endless:
        experiment = recipes.endless()
    elif options.spread:
        experiment = recipes.spread()[options.spread][0]
    else:
        experiment = getattr(recipes, options.fit)(steps=options.steps, save_every=None)
    try:
        runs.fit(shrunk(experiment) if options.small else experiment, options.out)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _work(part: str) -> Callable[[Report], None]:
    return getattr(__import__(PARTS[part][0]), part)


def _groups(options: argparse.Namespace) -> list[list[str]]:
    """Those `--beside` one another, whose times do not count; then the others alone."""
    alone = [[part] for part in options.parts if part not in options.beside]
    return ([options.beside] if options.beside else []) + alone


def _started(parts: Sequence[str], options: argparse.Namespace) -> list[subprocess.Popen[bytes]]:
    folder = Path(__file__).parent
    environment = {**threads(1), **os.environ, "PYTHONUNBUFFERED": "1"}
    paths = [str(folder), str(folder.parent), str(folder.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    started = []
    for part in parts:
        command = [sys.executable, __file__, "--here", "--parts", part, "--out", str(options.out)]
        with open(options.out / f"{part}.err", "w", encoding="utf-8") as errors:
            command += ["--small"] if options.small else []
            bound = bound_to_this()  # nothing trains on when this is stopped
            started.append(
                subprocess.Popen(command, env=environment, stderr=errors, start_new_session=True, preexec_fn=bound)
            )
    return started


def _wait(running: Sequence[subprocess.Popen[bytes]], parts: Sequence[str], out: Path) -> int:
    """Until all have ended or had their time; the worst exit code."""
    begun, worst = time.monotonic(), 0
    for part, process in zip(parts, running, strict=True):
        try:
            code = process.wait(max(1.0, PARTS[part][1] - (time.monotonic() - begun)))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            code = process.wait() or 1
            print(f"{part:<10}has not ended after {PARTS[part][1]:.0f} s")
        if code:
            told = (out / f"{part}.err").read_text(errors="replace").strip()[-1500:]
            print(f"{part:<10}failed with {code}:\n{told}", flush=True)
        print(f"{part:<10}took {time.monotonic() - begun:.0f} s", flush=True)
        worst = max(worst, abs(code))
    return worst


if __name__ == "__main__":
    sys.exit(main())
