"""Trainer: from an experiment to a run. It checks everything that can be checked, makes the data, and starts the ranks.

Imports no torch: a mistake is told within a second, and the launching process stays small. One rank trains in this process;
several are launched, each reading `config.json` of the run directory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..dsl import ConfigError, Untrusted, check, to_dict, warnings
from ..dsl.inert import strangers
from ..errors import Interrupted, UserError, printable
from ..parallel.cluster import adopt_slurm
from ..parallel.launch import CRASHED, ENVIRONMENT, end_process, environment, launch, run_bound
from ..parallel.lifeline import AGENT_SECONDS, die_with_launcher, end_agent
from ..plan.fit import require_fit
from ..plan.layout import schedule_problems
from ..plan.profile import measured_with
from ..specs import Experiment
from ..specs.experiment import world_size
from . import directory
from .changes import refuse_changes
from .checkpoint.folder import listed
from .control import refuse_second
from .first_weights import require_first_weights
from .services import require_services
from .settled import RECORD, settled
from .stopping import terminable

if TYPE_CHECKING:
    from ..runs.run import Run

TRUSTED = "FORGATHER_TRUST"  # "1" in processes that may import what the config.json they are given names
NO_MODEL = "FORGATHER_NO_MODEL"  # "1": finished runs write no model/
RANK_OF_RUN = "FORGATHER_RUN"  # set in the ranks that a Trainer launched: the run directory


class Trainer:
    """Trains an experiment.

    Args:
        experiment: what to train.
        out: the run directory; None: `runs/<name>-<digest8>`.
        resume: "auto" goes on where the directory stops, "never" starts a new one, a path starts from that checkpoint.
        allow_change: resume although model, data, optimizer, seed, loss or batch changed.
        target, command: recorded in the run directory.
        profile: first measure what a microbatch takes in each part of the model on this machine, into `profile.json` of
            the run directory; a searched schedule is then made for these times.
        trust: the experiment was read from a run directory with trust, so its ranks may import what that names.
        model: at the end, write `model/` of the run directory: the model as one file that needs torch alone.
        beside: of a member of a sweep, what it shares the machine with; recorded in the run directory.
    """

    def __init__(
        self,
        experiment: Experiment,
        *,
        out: str | None = None,
        resume: str = "auto",
        allow_change: bool = False,
        target: str | None = None,
        command: list[str] | None = None,
        profile: bool = False,
        trust: bool = False,
        model: bool = True,
        beside: Mapping[str, object] | None = None,
    ) -> None:
        self.experiment, self.out, self.resume = experiment, out, resume
        self.wanted = experiment  # as it was given: AutoParallel is another class in `experiment`, once it is settled
        self.planned: dict[str, Any] = {}
        self.allow_change, self.target, self.command = allow_change, target, command
        self.profile, self.trust, self.beside = profile, trust, beside
        self.model = model and os.environ.get(NO_MODEL) != "1"

    def fit(self) -> Run:
        """Train to the end and return the run.

        Raises:
            ConfigError: the experiment is incomplete or contradicts itself (every problem at once).
            UserError: data, hardware or training failed; `exit_code` says which.
            Interrupted: Ctrl-C or SIGTERM, after a checkpoint was saved.
        """
        with terminable():
            return self._fit()

    def _fit(self) -> Run:
        from ..runs.run import Run
        from .prepare import prepare

        if RANK_OF_RUN in os.environ:
            raise UserError(
                "fit() was called while a rank imported this script; put the call under if __name__ == '__main__':"
            )
        if adopt_slurm() or "RANK" in os.environ:
            die_with_launcher()
        joined = "RANK" in os.environ and "WORLD_SIZE" in os.environ
        check(self.experiment, schedule_problems(self.experiment))
        self._settle(int(os.environ["WORLD_SIZE"]) if joined else None)
        experiment = self.experiment
        for text in warnings(experiment):
            print(printable(f"warning: {text}"), file=sys.stderr)
        _refuse_strangers(experiment)
        world = world_size(experiment)
        _require_importable(experiment, world)
        require_services(experiment)
        require_fit(experiment)
        if joined:
            return self._as_rank()
        path, changes = self._directory()
        prepared = prepare(experiment)
        directory.write(experiment, path, self.target, self.command, self.beside, self.planned)
        if self.profile:
            experiment = _measured(experiment, path, self._environment(path))
            directory.write(experiment, path, self.target, self.command, self.beside, self.planned)
        if world == 1:
            for name, value in ENVIRONMENT.items():
                os.environ.setdefault(name, value)  # in time unless the caller has imported torch
            from .session import run_session

            run_session(experiment, path, prepared, resume=self.resume, changes=changes)
            self._write_model(path)
        else:
            self._launch(path, world, changes)
            if self.model:  # in a process of its own: this one has no torch
                command = [sys.executable, "-m", "forgather_dsl.interop.finished", path]
                run_bound(command, {**environment(1), **os.environ, **self._environment(path)})
        return Run(path)

    def _settle(self, ranks: int | None) -> None:
        """`AutoParallel` becomes the strategy that it stands for; `ranks` were started elsewhere."""
        path = directory.choose(self.wanted, self.out, self.resume)
        self.experiment, record = settled(self.wanted, path, ranks)
        self.planned = {} if record is None else {RECORD: record}
        if self.experiment is not self.wanted:
            check(self.experiment, schedule_problems(self.experiment))
            if record is not None and os.environ.get("RANK", "0") == "0":
                size = f"microbatch_size {self.experiment.microbatch_size}"
                print(printable(f"AutoParallel: {record['reason']}; {size}"), file=sys.stderr)

    def _write_model(self, path: str) -> None:
        if self.model:
            from ..interop.finished import write_model

            if said := write_model(path, self.experiment):
                print(printable(said), flush=True)

    def _directory(self) -> tuple[str, list[str]]:
        path = directory.choose(self.wanted, self.out, self.resume)
        directory.require_place(path)
        directory.require_checkpoint(self.resume)
        if not os.path.exists(os.path.join(path, "config.json")):
            if self.resume in ("auto", "never"):
                require_first_weights(self.experiment)
            return path, []
        if self.resume == "never":
            raise UserError(
                f"{path} holds a run already; leave out --resume never to go on with it, or choose another --out"
            )
        refuse_second(path)
        changes = refuse_changes(self.experiment, path, self.allow_change)
        if self.resume == "auto" and not listed(os.path.join(path, "checkpoints")):
            require_first_weights(self.experiment)
        return path, changes

    def _launch(self, path: str, world: int, changes: list[str]) -> None:
        command = [sys.executable, "-m", "forgather_dsl.train.rank", path, self.resume, *changes]
        code = launch(
            command,
            world,
            self._environment(path),
        )
        if code == 130:
            raise Interrupted("")  # what was saved is said
        code = CRASHED if code == 1 else code  # of Python itself, at an import, or of its faulthandler
        if code:
            raise UserError(f"the ranks ended with exit code {code}; what they said stands above", exit_code=code)

    def _environment(self, path: str) -> dict[str, str]:
        """For processes that read the experiment from the run directory: what they may import, and from where."""
        trusted = self.trust or not any(strangers(self.experiment))  # it was imported here, so it may be there
        return {
            RANK_OF_RUN: os.path.abspath(path),
            TRUSTED: str(int(trusted)),
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "PYTHONSAFEPATH": "1",  # nothing from the working directory that is not on this process's path
        }

    def _as_rank(self) -> Run:
        """A rank of torchrun or of a cluster."""
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)  # in time unless the caller has imported torch
        from ..parallel.failures import PeerLost
        from ..runs.run import Run
        from .session import join_session
        from .watching import die_by_signals

        die_by_signals()

        def describe() -> tuple[str, list[str]]:
            path, changes = self._directory()
            directory.write(self.experiment, path, self.target, self.command, self.beside, self.planned)
            return path, changes

        try:
            path = join_session(self.experiment, self.resume, describe)
            if os.environ["RANK"] == "0":
                self._write_model(path)
            return Run(path)
        except (
            PeerLost
        ) as lost:  # nothing to return to: to leave the group, Python would wait for the ranks that are gone
            print(f"error: {lost}", file=sys.stderr)
            end_agent(AGENT_SECONDS)
            end_process(CRASHED)


def _measured(experiment: Experiment, path: str, more: dict[str, str]) -> Experiment:
    """The experiment, planned with seconds that a process of its own measures, in the threads that a rank has."""
    file = os.path.abspath(os.path.join(path, "profile.json"))
    command = [sys.executable, "-m", "forgather_dsl.train.profile", os.path.join(path, "config.json"), file]
    if run_bound(command, {**environment(world_size(experiment)), **os.environ, **more}):
        raise UserError("the times could not be measured; what went wrong stands above", exit_code=4)
    print(f"measured what each part of the model takes: {file}")
    return measured_with(experiment, file)


def _refuse_strangers(experiment: Experiment) -> None:
    """An experiment that was read without trust trains only what this package has."""
    found = [f"{s.path}: {s.code}" for s in strangers(experiment) if s.runs]
    if found:
        raise Untrusted(
            "this experiment was read from a run directory and would run code that it names; pass --trust (trust=True) "
            "if you know who wrote it:\n  " + "\n  ".join(found),
            found,
        )


def _require_importable(experiment: Experiment, world: int) -> None:
    """Everything in the experiment has a name that config.json can hold, and that every rank can import."""
    lost = lost_elsewhere(experiment)
    if lost and world > 1:
        raise ConfigError(
            f"{', '.join(lost)}: defined in a notebook or at the prompt, where the {world} ranks of this experiment "
            "cannot import it; put it into a .py file and import it from there"
        )


def lost_elsewhere(experiment: Experiment) -> list[str]:
    """Names in the experiment that another process cannot import. Raises ConfigError: it holds what has no name at all."""
    return sorted({t.partition(":")[2] for t in _user_targets(to_dict(experiment)) if t.startswith("__main__:")})


def _user_targets(config: object) -> list[str]:
    """`$type` of every node whose code is the user's own, and every `$object`."""
    if isinstance(config, list):
        return [t for item in config for t in _user_targets(item)]
    if not isinstance(config, dict):
        return []
    here = [str(config["$object"])] if "$object" in config else [str(config["$type"])] if "$target" in config else []
    if str(config.get("$target", "")).startswith("__main__:"):
        here.append(str(config["$target"]))
    return here + [t for value in config.values() for t in _user_targets(value)]
