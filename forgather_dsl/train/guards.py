"""What is done about a step that went wrong: not finite, so skipped on all ranks, or a loss that jumps.

In: the numbers all ranks agree on after a step (`Agreed`), so that all decide alike without asking again. Out: warnings, a
UserError after too many skipped steps, and with `Spike(rollback=True)` a run that goes on from the checkpoint before the
spike without the data since (arXiv 2204.02311, section 5.1). Skipped steps leave weights and optimizer as they were; but
until a step has been finite again nothing shows that the weights are good, so periodic saves wait for one.
"""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..errors import UserError
from . import checkpoint
from .agreement import Agreed
from .checkpoint.folder import listed
from .checkpoint.folder import place as name_of
from .spikes import Jump, Losses

if TYPE_CHECKING:
    from ..parallel.stage import Stage
    from .report import Reporter
    from .session import Session

__all__ = ["Guards"]

NAMED = 3  # parameters in a message


class Place(NamedTuple):
    """Where a parameter is; in the order in which a forward pass comes by."""

    part: int  # stage, or shard of a spread head behind all stages
    position: int  # in it
    described: str  # rank and stage


class Guards:
    """The guards of one run, the same on every rank."""

    def __init__(self, session: Session) -> None:
        self.session, self.guard = session, session.experiment.guard
        self.skipped = 0  # steps in a row that were not finite
        self.rollbacks = 0
        self.left_out: list[dict[str, Any]] = []  # what data no weight has learned from: loader positions, from and to
        self.save_waits = False  # a checkpoint was due at a step that nobody could trust
        self.losses = None if self.guard.spike is None else Losses(self.guard.spike)
        self._jump: Jump | None = None
        self._origin: tuple[int, int, str] | None = (
            None  # microbatch, stage, where: of this rank's first bad activation
        )
        self.places = _places(session)

    @property
    def unsure(self) -> bool:
        """Whether the weights may be ones to go back from: the last step was skipped, or a rollback is near."""
        return self.skipped > 0 or (self._rolls_back() and self.losses is not None and bool(self.losses.high))

    @property
    def needs_agreement(self) -> bool:
        """Whether the next step's loss may end in a rollback."""
        return self._rolls_back() and self.losses is not None and len(self.losses.high) + 1 >= self.losses.spike.steps

    def _rolls_back(self) -> bool:
        spike = self.guard.spike
        return spike is not None and spike.rollback and self.rollbacks < spike.max_rollbacks

    def judge(self, agreed: Agreed, valid: int, report: Reporter) -> None:
        """Look at the step that is over.

        Raises:
            UserError: one skipped step too many (exit code 4).
        """
        loss = agreed.loss_sum / valid
        self.skipped = 0 if agreed.finite else self.skipped + 1
        if self.skipped:
            if self.skipped >= self.guard.max_skipped:
                raise UserError(self._diverged(agreed, loss), exit_code=4)
            what = f"loss {loss:.4f}, grad norm {agreed.grad_norm:.4g}"
            self._say(f"step {self.session.step} is skipped on all ranks: {what}; {self.first_bad(agreed)}")
        self._origin = self._origin if self.skipped else None
        self.session.pipeline.watch = self._look if self.skipped else None  # it would slow down every other step
        if self.losses is not None:
            self._jump = self.losses.add(self.session.step, loss)
            if self._jump is not None and not self._rolls_back():
                self._say(f"{_told(self._jump)}; {self._advice()}")
                report.spike(self._jump)
                self._jump = None

    def _look(self, stage: Stage, microbatch: int, y: torch.Tensor) -> None:
        """Whether a stage's output is finite, in the steps that follow a skipped one."""
        if self._origin is None and not bool(torch.isfinite(y.detach()).all()):
            self._origin = microbatch, stage.index, f"rank {self.session.ranks.rank}, {stage.described}"

    def _advice(self) -> str:
        spike = self.guard.spike
        assert spike is not None
        if spike.rollback:
            return f"the run goes on, as it has gone back {self.rollbacks} times (max_rollbacks)"
        return "the run goes on; guard = Guard(spike=Spike(rollback=True)) would go back and leave out the data"

    def first_bad(self, agreed: Agreed) -> str:
        """What was not finite first, and where: the loss, else of the gradients the one that a backward pass comes by first."""
        bad = sorted((self.places[name][0][:2], name) for name in agreed.bad_gradients)[::-1]
        names = [f"{name} ({', '.join(place.described for place in self.places[name])})" for _, name in bad]
        if agreed.bad_losses:
            ranks = ", ".join(f"rank {rank}" for rank in agreed.bad_losses)
            return f"not finite first: the loss, on {ranks}" + (f"; then {len(names)} gradients" if names else "")
        if not names:
            return "not finite: the sum over all gradients"
        others = f", and {len(names) - 1} others after it" if len(names) > 1 else ""
        return f"not finite first: the gradient of {names[0]}{others}"

    def _diverged(self, agreed: Agreed, loss: float) -> str:
        """Why the run stops, and how to go on. All ranks must call it."""
        session = self.session
        steps = f"{self.skipped} steps in a row were skipped" if self.skipped > 1 else "it is skipped"
        everyone = session.ranks.gather((self._bad_weights(), self._origin))
        bad = sorted({entry for part, _ in everyone for entry in part})
        origins = sorted(origin for _, origin in everyone if origin is not None)
        text = (
            f"diverged: step {session.step} had loss {loss}, grad norm {agreed.grad_norm}; {self.first_bad(agreed)}; "
            f"{steps} (guard.max_skipped = {self.guard.max_skipped}), weights and optimizer are those "
            f"after step {session.step - self.skipped}"
        )
        if bad:
            first = ", ".join(f"{name} ({where})" for _, name, where in bad[:NAMED])
            text += f", where {len(bad)} weights are not finite, the first of them {first}"
        if origins:
            microbatch, _, where = origins[0]
            text += f"; in the forward pass it comes from {where}, microbatch {microbatch}"
        session.finish_saving()
        saved = checkpoint.newest(_folder(session), session.ranks)
        if saved is None and bad:
            return f"{text}; no checkpoint was saved before; lower optimizer.lr or lengthen lr_schedule.warmup"
        if saved is None:  # else all would be lost; and never in place of one that is known to be good
            self.skipped = 0  # who goes on from here starts to count again
            where = session.save(wait=True)
            text += (
                f"; no checkpoint was saved before, so these weights are, {where} (start anew if they are the cause)"
            )
        else:
            where = saved.path
            text += f"; the last checkpoint is {where} (step {saved.step})"
        lr, run, resume = session.experiment.optimizer.lr / 2, shlex.quote(session.path), shlex.quote(where)
        return (
            f"{text}; lower optimizer.lr, lengthen lr_schedule.warmup or check the data, then: python -m forgather_dsl run "
            f"{run} --resume {resume} --allow-change --set optimizer.lr={lr:.3g}"
        )

    def _bad_weights(self) -> list[tuple[tuple[int, int], str, str]]:
        """(order of a forward pass, name, where) of this rank's weights that are not finite."""
        bad = [name for name, p in self.session.parameters.items() if not bool(torch.isfinite(p.detach()).all())]
        return [(self.places[n][0][:2], n, ", ".join(place.described for place in self.places[n])) for n in bad]

    def roll_back(self, report: Reporter) -> bool:
        """Go back if the loss has jumped and there is a checkpoint from before; whether it did. All ranks must call it."""
        jump, self._jump = self._jump, None
        if jump is None:
            return False
        session = self.session
        saved = self._before(jump.since)
        if saved is None:
            self._say(f"{_told(jump)}; the run goes on, as no checkpoint is from before step {jump.since}")
            report.spike(jump)
            return False
        data, seconds, left_out, count = session.loader.state_dict(), session.elapsed(), self.left_out, self.rollbacks
        for _, _, state in session.optimizer.named_states():
            state.clear()  # a parameter may have had none then
        session.restore(saved)
        gap = {"from": session.loader.state_dict(), "to": data}
        session.loader.load_state_dict(data)
        session.count_seconds_from(seconds)
        self.rollbacks, self.left_out = count + 1, [*left_out, gap]
        self._say(
            f"{_told(jump)}; back to step {saved.step} ({saved.path}), without the {jump.step - saved.step} batches since "
            f"(rollback {self.rollbacks} of at most {self.guard.spike.max_rollbacks})"  # type: ignore[union-attr]
        )
        report.rolled_back(jump, self.rollbacks, gap)
        return True

    def _before(self, step: int) -> checkpoint.Saved | None:
        """The newest checkpoint from before `step`; later ones, which a signal may have asked for, are set aside."""
        session, folder = self.session, _folder(self.session)
        session.finish_saving()
        later: list[str] = []
        if session.ranks.rank == 0:
            later = [path for path in listed(folder) if (at := name_of(path)) is not None and at[0] >= step]
        for path in later:
            os.rename(path, path + ".left")
        session.ranks.gather(None)
        saved = checkpoint.newest(folder, session.ranks)
        for path in later if saved is None else ():
            os.rename(path + ".left", path)
        session.ranks.gather(None)
        return saved

    def _say(self, text: str) -> None:
        if self.session.ranks.rank == 0:
            print(f"warning: {text}", file=sys.stderr, flush=True)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, as JSON can hold it."""
        return {
            "skipped": self.skipped,
            "rollbacks": self.rollbacks,
            "left_out": self.left_out,
            "save_waits": self.save_waits,
            "losses": None if self.losses is None else self.losses.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.skipped, self.rollbacks = state["skipped"], state["rollbacks"]
        self.left_out, self.save_waits = state["left_out"], state["save_waits"]
        if self.losses is not None and state["losses"] is not None:
            self.losses.load_state_dict(state["losses"])


def _told(jump: Jump) -> str:
    since = "" if jump.since == jump.step else f", high since step {jump.since}"
    return (
        f"the loss jumped to {jump.loss:.4f} at step {jump.step}{since}: {jump.height:.1f} deviations above the usual "
        f"{jump.usual:.4f}"
    )


def _folder(session: Session) -> str:
    return os.path.join(session.path, "checkpoints")


def _places(session: Session) -> dict[str, list[Place]]:
    """Where every parameter of the model is, of the first replica. All ranks must call it."""
    mine: dict[str, Place] = {}
    for part in (*session.pipeline.stages.values(), session.pipeline.shard):
        for position, (name, _) in enumerate(part.named_parameters() if part is not None else ()):
            mine[name] = Place(part.index, position, f"rank {session.ranks.rank}, {part.described}")  # type: ignore[union-attr]
    places: dict[str, list[Place]] = {}
    for each in session.ranks.gather(mine if session.ranks.first else {}):
        for name, place in each.items():
            places.setdefault(name, []).append(place)
    return places
