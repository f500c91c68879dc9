"""What is printed without a verb: what is here, and three commands to go on with."""

from __future__ import annotations

import os

from .. import __version__
from ..runs.run import is_run
from . import gallery, listing
from .output import say

RUNS = "runs"


def print_overview() -> None:
    """Experiments and runs below the working directory, and the next commands."""
    from .app import prog

    place = listing.default_place()
    files = [f for f in listing.python_files(place) if listing.looks_like_experiments(f)]
    targets = [f"{gallery.short(file)}:{name}" for file in files for name in listing.class_names(file)]
    runs = newest_runs()
    say(f"forgather_dsl {__version__}")
    say(f"experiments  {len(targets)} in {gallery.short(place)}")
    say(f"runs         {len(runs)} in {RUNS}" + (f", the newest {runs[0]}" if runs else ""))
    say("next")
    first = gallery.first_target()
    if runs:
        say(f'  {prog()} generate {runs[0]} "def "')
    else:
        say(f"  {prog()} run{' ' * 30}# trains {first}: about a minute, nothing is downloaded")
    say(f"  {prog()} ls{' ' * 31}# what each experiment is")
    other = next((target for target in targets if target != first), first)
    say(f"  {prog()} diff {first} {other}")


def newest_runs() -> list[str]:
    """Run directories below `runs`, the newest first."""
    if not os.path.isdir(RUNS):
        return []
    found = [os.path.join(RUNS, name) for name in os.listdir(RUNS)]
    return sorted(filter(is_run, found), key=os.path.getmtime, reverse=True)
