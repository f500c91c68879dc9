"""Sweep: many experiments trained one after another, or side by side where there are devices for it.

Each member is an ordinary run directory below the sweep's, in processes of its own; `sweep.json` says how each is. The same
sweep again skips what is finished and goes on with the rest: members are known by their digest, not by their place in the list.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..dsl import warnings
from ..errors import Interrupted, UserError, printable
from ..specs import Experiment
from ..train.trainer import NO_MODEL
from .members import Item, Member, batches, changed, described, is_adaptive, with_seeds
from .places import Places
from .run import Run
from .sweep_check import check_configurations, check_here
from .sweep_folder import choose, held, with_earlier
from .sweep_index import FAILED, FINISHED, INTERRUPTED, WAITING, Entry, Index
from .sweep_round import Round, finished_run

__all__ = ["Sweep"]


class Sweep:
    """Trains experiments.

    Args:
        experiments: a list, tuple or dict of them (or of their classes), or a generator function. One that uses what `yield`
            returns (`run = yield experiment`) gets each finished run before it makes the next; None where it failed.
        seeds: train each with these seeds, or with so many, from its own on.
        jobs: how many at once; None: on GPUs as many as have cards, otherwise one.
        out: the sweep's directory; None: `runs/<name>`. `resume` "never" takes a new one.
        change: what to make of each experiment, one or several, before seeds.
        name, target, command: for the directory's name and the record.
        profile, trust, model: as of Trainer.
    """

    def __init__(
        self,
        experiments: Any,
        *,
        seeds: Sequence[int] | int | None = None,
        jobs: int | None = None,
        out: str | None = None,
        resume: str = "auto",
        change: Callable[[Experiment], Sequence[Experiment]] | None = None,
        name: str | None = None,
        target: str | None = None,
        command: list[str] | None = None,
        profile: bool = False,
        trust: bool = False,
        model: bool = True,
    ) -> None:
        if jobs is not None and jobs < 1:
            raise UserError(f"jobs = {jobs}: write 1 or more")
        self.experiments, self.seeds, self.change = experiments, seeds, change
        self.out, self.resume, self.trust = out, resume, trust
        self.name, self.target = name or getattr(experiments, "__name__", None), target
        model = model and os.environ.get(NO_MODEL) != "1"
        self.options = {"target": target, "command": command or sys.argv, "profile": profile, "model": model}
        self.adaptive = is_adaptive(experiments)
        self.places = Places(jobs)
        self.runs: list[Run] = []  # those that are finished, in the order of the list
        self._items: list[Item] = []  # all so far
        self._told: set[str] = set()  # warnings

    def fit(self) -> list[Run]:
        """Train all of them, and return their runs in the order of the list.

        Raises:
            ConfigError, UserError: before anything begins, what is wrong with any of them; at the end (exit code 4), which
                failed and why, and `runs` has the others.
            Interrupted: Ctrl-C or SIGTERM, after all were asked to save.
        """
        if "RANK" in os.environ:
            raise UserError("a sweep starts its own processes; start it once, without torchrun or srun")
        source = batches(self.experiments, self.name or "the list")
        members, once, new = self._members(next(source))
        name = self.name or f"sweep-{_digest_of(members)[:8]}"
        path = choose(name, self.out, self.resume)
        with held(path):
            index = with_earlier(path, self._new_index(name))
            known = bool(index.members)
            print(printable(self._title(path, len(members), known)), flush=True)
            stopped = False
            while not stopped:
                _list(index, members)
                index.write(path)
                stopped = Round(path, index, once, self.places, self.options, self.trust).train()
                found = {entry.digest: finished_run(path, entry) for entry in index.members}
                try:
                    members, once, new = self._members(source.send([found[member.digest] for member in new]))
                except StopIteration:
                    break
            self.runs = [run for entry in index.current() if (run := finished_run(path, entry)) is not None]
            _end(path, index, stopped)
        return self.runs

    def _members(self, items: list[Item]) -> tuple[list[Member], list[Member], list[Member]]:
        """All so far and those of now, each experiment once; those of now as they are listed. All are checked."""
        if self.change is not None:
            items = changed(items, self.change)
        seeds = self.seeds
        if seeds is not None:
            items = changed(items, lambda experiment: with_seeds(experiment, seeds))
        check_configurations(items)
        self._items += items
        every = described(self._items)
        new, first = every[len(every) - len(items) :], {member.digest: member for member in reversed(every)}
        for member in new:
            if first[member.digest] is not member and not self.adaptive:
                label = first[member.digest].label
                print(printable(f"note    {member.label} is the same experiment as {label}: trained once"))
        once = list({member.digest: first[member.digest] for member in new}.values())
        if not self.adaptive:
            self.places.narrow(len(once))
        check_here(once, min(self.places.jobs, len(once)))
        for text in (text for member in once for text in warnings(member.experiment) if text not in self._told):
            self._told.add(text)
            print(printable(f"warning: {text}"), file=sys.stderr)
        return list({member.digest: first[member.digest] for member in every}.values()), once, new

    def _new_index(self, name: str) -> Index:
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        return Index(name, self.target, list(self.options["command"]), now, self.places.jobs, self.adaptive)

    def _title(self, path: str, count: int, known: bool) -> str:
        many = "one after another" if self.places.jobs == 1 else f"{self.places.jobs} at a time"
        what = "experiments as they are made" if self.adaptive else f"{count} experiments, {many}"
        return f"sweep   {what}, in {path}" + (", which knows some of them" if known else "")


def _list(index: Index, members: Sequence[Member]) -> None:
    """Have the index hold these members, in this order, and after them what earlier calls have left."""
    known = {entry.digest: entry for entry in index.members}
    for member in members:
        entry = known.get(member.digest)
        if entry is None:
            run = f"{type(member.experiment).__name__}-{member.digest[:8]}"
            entry = Entry(run, member.digest, "", "", "", 0, log=os.path.join(run, "log.txt"))
        if entry.dropped and entry.state != FINISHED:  # of an earlier call: tried again
            entry.state = WAITING
        entry.label, entry.group, entry.group_label = member.label, member.group, member.group_label
        entry.seed, entry.dropped = member.experiment.seed, False
        known.pop(member.digest, None)
        known[member.digest] = entry
    listed = {member.digest for member in members}
    index.members = sorted(known.values(), key=lambda entry: entry.digest not in listed)


def _end(path: str, index: Index, interrupted: bool) -> None:
    """The last words. Raises UserError with what failed, Interrupted where not all came to their end."""
    current = list(index.current())
    failed = [entry for entry in current if entry.state == FAILED]
    stopped = [entry for entry in current if entry.state in (INTERRUPTED, WAITING)]
    index.state = INTERRUPTED if stopped or interrupted else FAILED if failed else FINISHED
    index.write(path)
    done = len(current) - len(failed) - len(stopped)
    print(printable(f"swept   {done} of {len(current)} finished, {path}"), flush=True)
    lines = [f"{entry.label}: {entry.reason}\n    {os.path.join(path, entry.log)}" for entry in failed]
    if index.state == INTERRUPTED:
        raise Interrupted("\n".join([*lines, "interrupted: what was training has saved, and the same command goes on"]))
    if failed:
        again = "the same command tries again what failed, and skips what is finished"
        raise UserError("\n".join([f"{len(failed)} of {len(current)} failed:", *lines, again]), exit_code=4)
    print(printable(f"next    python -m forgather_dsl report {path}"), flush=True)


def _digest_of(members: Sequence[Member]) -> str:
    """Of a list without a name."""
    return hashlib.sha256(" ".join(sorted(member.digest for member in members)).encode()).hexdigest()
