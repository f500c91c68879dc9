"""Pipelines beside FSDP2 and DDP on links of five speeds: four emulated GPUs, real tensors over real, shaped links.

    python benchmarks/slow_link [--rounds 5] [--seconds 2] [--rhos 0 0.92 1.83 3.66 10] [--modes ...] [--write]
    python benchmarks/slow_link --real [--modes ...]  # two ranks that really compute, under the product's own strategies
    python benchmarks/slow_link --from-stored         # tables and plot anew from what was measured, without root

Needs root and iproute2 (network namespaces); elsewhere it says what is missing and ends with 0. A layer waits in place of
computing, so two cores can stand for four cards. `--write` stores the measurements and puts table and plot into README.md.
Ends with 1 when bytes on the wire are not those of the formulas to 2 %, or a target is missed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT)]

from slow_link.network import Network, missing  # noqa: E402
from slow_link.page import full_tables, missed, short_table, wrong_bytes  # noqa: E402
from slow_link.plot import svg  # noqa: E402
from slow_link.theory import RHOS, Setting  # noqa: E402

STORED, PLOT, README = HERE / "results.json", ROOT / "docs" / "slow_link.svg", ROOT / "README.md"
BEGIN, END = "<!-- slow_link: begin, written by `python benchmarks/slow_link --write` -->", "<!-- slow_link: end -->"


def emulate(setting: Setting, rhos: list[float], modes: list[str], rounds: int) -> list[dict[str, Any]]:
    """Measure all of it."""
    from forked import on_ranks
    from slow_link.measure import measure

    with Network(setting.ranks) as network:
        return on_ranks(setting.ranks, measure, network, setting, rhos, modes, rounds, enter=network.enter)


def written(rows: list[dict[str, Any]], readme: str) -> str:
    """The README with its section anew. Raises ValueError when it has no place for it."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has no lines {BEGIN} and {END}")
    return f"{before}{begin}\n{short_table(rows)}\n{end}{after}"


def _write(stored: dict[str, Any]) -> None:
    rows = stored["rows"]
    README.write_text(written(rows, README.read_text(encoding="utf-8")), encoding="utf-8")
    PLOT.write_text(svg(rows), encoding="utf-8")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of computing per rank and step")
    parser.add_argument("--rhos", type=float, nargs="+", default=list(RHOS))
    parser.add_argument("--modes", nargs="+", help="default: all")
    parser.add_argument("--write", action="store_true", help="store it, and write README.md's table and the plot")
    parser.add_argument("--real", action="store_true", help="two ranks that compute, in place of four that wait")
    parser.add_argument("--from-stored", action="store_true", help="measure nothing")
    a = parser.parse_args()
    if a.from_stored:
        stored = json.loads(STORED.read_text(encoding="utf-8"))
        _write(stored)
        print(full_tables(stored["rows"]))
        return 0
    if a.write and (a.real or a.modes or a.rhos != list(RHOS)):
        parser.error("--write is for all links and modes of the emulation: leave out --real, --rhos and --modes")
    if reason := missing():
        print(f"skipped: {reason}")
        return 0
    return _real(a.modes) if a.real else _emulated(a)


def _known(modes: list[str] | None, known: Iterable[str]) -> None:
    if unknown := sorted({*(modes or ())} - {*known}):
        sys.exit(f"--modes: {', '.join(unknown)}; write some of {', '.join(map(repr, known))}")


def _real(modes: list[str] | None) -> int:
    from slow_link.real import MODES, real_table, run_modes

    _known(modes, MODES)

    load = os.getloadavg()[0]
    table, problems = real_table(run_modes(modes or list(MODES)))
    print(table, f"load before and after: {load:.1f}, {os.getloadavg()[0]:.1f}", sep="\n\n")
    print(*problems, sep="\n", file=sys.stderr)
    return int(bool(problems))


def _emulated(a: argparse.Namespace) -> int:
    from slow_link.measure import MODES

    _known(a.modes, MODES)
    load = os.getloadavg()
    rows = emulate(Setting(seconds=a.seconds), a.rhos, a.modes or list(MODES), a.rounds)
    stored = {
        "command": " ".join(sys.argv[1:]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} CPU cores, {platform.system()} {platform.release().split('-')[0]}",
        "load": [
            round(number, 1) for number in (*load[:1], *os.getloadavg()[:1])
        ],  # of the last minute, before and after
        "rows": rows,
    }
    if a.write:
        STORED.write_text(json.dumps(stored, indent=1), encoding="utf-8")
        _write(stored)
    print(full_tables(rows), f"load before and after: {stored['load']}", sep="\n\n")
    problems = wrong_bytes(rows) + missed(rows)
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
