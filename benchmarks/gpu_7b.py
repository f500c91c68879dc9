"""Recipes of 7 B and more for cards of 24 GB, on one large card: do they fit, and how fast would four such cards be?

    python benchmarks/gpu_7b.py --out DIR [--parts a b c] [--seconds 600] [--small]

Each process's allocator is held to 23 GiB. Part a trains pipelines, four processes with messages through host memory; b runs
every rank alone, times each of its actions and replays the schedule of all in the planner's simulator; c trains the recipes
for one card. Weights are random, text is Python's own library: nothing is downloaded. What is done is kept in
DIR/finished.json, so a call that ran out of time is called again. Projections to RTX 4090s are scaled by peaks, not measured.
`--small` shrinks all of it to a CPU, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks" / "gpu"), str(ROOT)]

CASES: dict[str, tuple[tuple[str, float], ...]] = {  # recipe of experiments/llama7b.py, seconds that it is given
    "a": (("PP4OneFOneB", 110), ("Llama31PP4", 130)),
    "b": (("PP4OneFOneB", 90), ("Llama31PP4", 100), ("Qwen14PP4", 130)),
    "c": (("Llama31OneCard", 120), ("Llama31OneCardLong", 120), ("Llama2OneCardHost", 200)),
}


def main() -> int:
    """Exit code 0 when everything asked for is done; 1 when something failed, 5 when time ran out before the rest."""
    options = _options()
    if options.case:
        import cases  # in benchmarks/gpu

        part, name = options.case
        cases.run(part, name, options.out, options.small)
        return 0
    if not options.small and not _has_gpu():
        print("no GPU here: nothing is run; --small runs everything in a small form on a CPU")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "finished.json"
    finished: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    begun, failed, late = time.monotonic(), [], []
    for part in options.parts:
        for name, limit in CASES[part]:
            if options.only and name not in options.only:
                continue
            case, left = f"{part} {name}", options.seconds - (time.monotonic() - begun)
            if case in finished:
                print(f"{case}: done before, in {finished[case]['seconds']:.0f} s")
            elif left < limit:
                late.append(case)
            elif (rows := _run(part, name, limit, options)) is None:
                failed.append(case)
            else:
                finished[case] = rows
                partial = file.with_suffix(".part")
                partial.write_text(json.dumps(finished, indent=1))
                partial.replace(file)
    for case in late:
        print(f"{case}: no time left; the same command goes on with it")
    return 1 if failed else 5 if late else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-7b"))
    parser.add_argument("--parts", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--only", nargs="+", metavar="RECIPE", help="these recipes alone")
    parser.add_argument("--seconds", type=float, default=600.0, help="no case is begun that might take longer")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def _has_gpu() -> bool:
    from report import has_gpu

    return has_gpu()


def _run(part: str, name: str, limit: float, options: argparse.Namespace) -> dict[str, Any] | None:
    """One case in a process of its own, from an empty folder: its rows and seconds, or None when it failed."""
    from forgather_dsl.parallel.launch import environment
    from forgather_dsl.parallel.lifeline import bound_to_this

    place = options.out / f"{part}-{name}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    command = [sys.executable, __file__, "--case", part, name, "--out", str(place)]
    command += ["--small"] if options.small else []
    paths = [*sys.path[:2], str(ROOT / "experiments"), os.environ.get("PYTHONPATH", "")]
    settings = {**environment(1), **os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    started = time.monotonic()
    with open(place / "errors.txt", "w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, env=settings, stderr=errors, start_new_session=True, preexec_fn=bound_to_this()
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            code = process.wait() or 1
    seconds = time.monotonic() - started
    if code:
        told = (place / "errors.txt").read_text(errors="replace").strip()[-1500:]
        print(f"{part} {name}: failed with {code} after {seconds:.0f} s\n{told}", flush=True)
        return None
    print(f"{part} {name}: took {seconds:.0f} s", flush=True)
    return {"seconds": seconds, "rows": [json.loads(x) for x in (place / "results.jsonl").read_text().splitlines()]}


if __name__ == "__main__":
    sys.exit(main())
