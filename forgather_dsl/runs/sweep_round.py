"""One round of a sweep: members that train now, in processes of their own, what is finished apart; the index follows them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from ..dsl import to_dict
from ..dsl.inert import strangers
from ..errors import UserError, printable
from ..parallel.launch import INTERRUPTED as STOPPED
from ..train.console import duration
from ..train.control import status
from ..train.trainer import TRUSTED
from .members import Member
from .places import Place, Places
from .pool import Job, run_jobs
from .run import Run, is_run
from .sweep_index import FAILED, FINISHED, INTERRUPTED, RUNNING, Entry, Index

__all__ = ["Round", "finished_run"]


@dataclass
class Round:
    """Members to train. `options` are those of Trainer that are the same for all."""

    path: str
    index: Index
    members: Sequence[Member]
    places: Places
    options: Mapping[str, Any]
    trust: bool

    def train(self) -> bool:
        """Those that are not finished. Returns whether it was interrupted."""
        todo = [member for member in self.members if self._run(member) is None]
        for member in self.members:
            if member not in todo:
                self._say(member, "finished already")
        if self.places.jobs > 1 and any(member.experiment.seconds is not None for member in todo):
            print("note    side by side, runs that end after some seconds make fewer steps than alone", flush=True)
        jobs = [self._job(member) for member in todo]
        members = {job.log: member for job, member in zip(jobs, todo)}

        def begun(job: Job) -> None:
            self._note(members[job.log], job, RUNNING)
            self._say(members[job.log], f"begins  {job.log}")

        def over(job: Job) -> None:
            state = FINISHED if job.code == 0 else INTERRUPTED if job.code == STOPPED else FAILED
            self._note(members[job.log], job, state)
            self._say(members[job.log], _result(state, job))

        def tell(job: Job) -> None:
            if (text := _progress(job)) is not None:
                self._say(members[job.log], text)

        return run_jobs(jobs, self.places, begun, over, tell)

    def _run(self, member: Member) -> Run | None:
        return finished_run(self.path, self._entry(member))

    def _entry(self, member: Member) -> Entry:
        return next(entry for entry in self.index.members if entry.digest == member.digest)

    def _note(self, member: Member, job: Job, state: str) -> None:
        entry = self._entry(member)
        entry.state, entry.exit_code, entry.reason = state, job.code, job.reason
        entry.seconds = None if job.code is None else round(job.seconds, 3)
        self.index.write(self.path)

    def _say(self, member: Member, text: str) -> None:
        current = [entry.digest for entry in self.index.current()]
        of = "" if self.index.adaptive else f"/{len(current)}"
        place = f"{current.index(member.digest) + 1}{of}"
        print(printable(f"{place:<7} {member.label}  {text}"), flush=True)

    def _job(self, member: Member) -> Job:
        run = os.path.join(self.path, self._entry(member).run)
        trusted = self.trust or not any(strangers(member.experiment))  # it was imported here, so it may be there

        def said(place: Place) -> dict[str, Any]:
            options = {**self.options, "out": run, "trust": trusted, "beside": place.facts()}
            return {"config": to_dict(member.experiment), "trust": trusted, "options": options}

        env = {
            TRUSTED: str(int(trusted)),
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "PYTHONSAFEPATH": "1",  # nothing from the working directory that is not on this process's path
        }
        return Job(member.experiment, os.path.join(run, "log.txt"), said, env)


def finished_run(path: str, entry: Entry) -> Run | None:
    """The run of a member that has come to its end."""
    run = os.path.join(path, entry.run)
    return Run(run) if entry.state == FINISHED and is_run(run) else None


def _result(state: str, job: Job) -> str:
    if state != FINISHED:
        return f"{state}  {shorten((job.reason or '').partition(chr(10))[0], 120, placeholder=' ...')}"
    records = [record for record in Run(os.path.dirname(job.log)).metrics if "loss" in record or "eval_loss" in record]
    last = {key: record[key] for record in records for key in ("step", "loss", "eval_bits_per_byte") if key in record}
    parts = [f"step {last['step']}" if "step" in last else "", f"loss {last['loss']:.4f}" if "loss" in last else ""]
    if "eval_bits_per_byte" in last:
        parts.append(f"held out {last['eval_bits_per_byte']:.4f} bits/byte")
    return "  ".join(["finished", *filter(None, parts), f"in {duration(job.seconds)}"])


def _progress(job: Job) -> str | None:
    """None before its first step."""
    try:
        found = status(os.path.dirname(job.log))
    except UserError:  # it has no directory yet
        return None
    if found["step"] is None or found["loss"] is None:
        return None
    of = f" of {found['steps']:,}" if found["steps"] else ""
    return f"at step {found['step']:,}{of}  loss {found['loss']:.4f}"
