"""Training that updates before all ranks have agreed how: the next step's warm-up hides the wait (arXiv 2401.10241, section 4).

After a step each rank starts the exchange of its numbers, guesses that nothing has to be clipped or skipped, copies what the
update changes, updates, and begins the next step's forwards. Before the first backward the numbers must be there: if the
guess was wrong, all ranks take the update back, make the right one and run those forwards again. The result is the
synchronous one, bit for bit. Costs weights and optimizer state a second time; Ctrl-C stops one step later.
"""

from __future__ import annotations

from typing import Any

import torch

from ..parallel.progress import PROGRESS
from .agreement import Agreed
from .batches import tensors
from .gradients import clip
from .loop import at_intervals, progress, set_learning_rate, stop_or_save
from .memory_report import doing
from .report import Reporter
from .session import Session
from .stopping import StopRequest


def post_validated(session: Session, report: Reporter, request: StopRequest) -> None:
    """Train to the end of steps or tokens, as the loop in loop.py does.

    Raises:
        Interrupted, UserError: as there.
    """
    update: Update | None = None
    while progress(session, 0.0) < 1:
        PROGRESS.mark("reading a batch")
        batch = session.loader.next_batch()
        valid = batch.num_valid
        done = progress(session, 0.0, ahead=valid)
        tokens, targets, documents = tensors(batch)
        with doing(f"in training step {session.step + 1}"):
            session.reducer.begin()
            loss = session.pipeline.step(tokens, targets, documents, session.loss_fn, session.step, valid, update)
            session.reducer.finish()
        before = update.agreed if update is not None else None
        stop, save = (before.stop, before.save) if before is not None else (False, False)
        lr = set_learning_rate(session, done)
        session.step, session.tokens = session.step + 1, session.tokens + valid
        update = Update(session, report, valid, lr, loss, request.poll())
        if not (stop or save or done >= 1 or _due(session)):
            update.guess()
            continue
        agreed, update = update.agree(), None
        if not (back := session.guards.roll_back(report)) and done < 1:
            at_intervals(session, report)
        if back or done < 1:
            stop_or_save(session, request, agreed.stop or stop, agreed.save or save)


def _due(session: Session) -> bool:
    """Whether something has to see the right weights after this step, or the run may go back after it."""
    e, guards = session.experiment, session.guards
    if guards.save_waits or guards.needs_agreement or session.lost.pending:
        return True
    return any(every and session.step % every == 0 for every in (e.eval_every, e.sample_every, e.save_every))


class Update:
    """The update after one step. Gradients stay until it is settled."""

    def __init__(
        self, session: Session, report: Reporter, valid: int, lr: float, loss: float | None, asked: tuple[bool, bool]
    ) -> None:
        self.session, self.report, self.valid, self.lr = session, report, valid, lr
        self.limit = session.experiment.clip_norm
        self.agreed: Agreed | None = None
        self.backup: Backup | None = None
        self.exchange = session.ranks.start(session.update.squares(), session.said(loss, *asked))
        PROGRESS.mark("updating the weights")

    def _plain(self, numbers: Agreed) -> bool:
        """Whether nothing has to be clipped or skipped."""
        return numbers.finite and (self.limit is None or numbers.grad_norm <= self.limit)

    def guess(self) -> None:
        """Update as if nothing had to be clipped or skipped; wait if this rank's part alone says otherwise."""
        if self._plain(self.exchange.own):
            with doing(f"updating the weights in step {self.session.step}"):
                self.backup = Backup(self.session)
                self.session.update.step()
        else:
            self._exactly()

    def agree(self) -> Agreed:
        """Wait for all ranks, then update."""
        self._exactly()
        return self._settle()

    def holds(self) -> bool:
        """Wait for all ranks; whether the guess was right, and then the step is over."""
        right = self._plain(self._wait())
        if right:
            self._settle()
        return right

    def undo(self) -> None:
        """Update again, rightly; a rank that has waited did so at once."""
        if self.backup is not None:
            self.backup.restore()
            self._exactly()
        self._settle()

    def _wait(self) -> Agreed:
        if self.agreed is None:
            self.agreed = self.exchange.wait()
        return self.agreed

    def _exactly(self) -> None:
        agreed = self._wait()
        if agreed.finite:
            with doing(f"updating the weights in step {self.session.step}"):
                clip(list(self.session.parameters.values()), agreed.grad_norm, self.limit)
                self.session.update.step()

    def _settle(self) -> Agreed:
        agreed = self._wait()
        self.backup = None
        for parameter in self.session.parameters.values():
            parameter.grad = None
        self.session.peaks = agreed.memory
        self.report.step(agreed, self.valid, self.lr, progress(self.session, 0.0))
        self.session.saver.heed(agreed.saved)
        self.session.guards.judge(agreed, self.valid, self.report)
        return agreed


class Backup:
    """A copy of all that an update changes on this rank: weights, or their fp32 masters, and the optimizer's state."""

    def __init__(self, session: Session) -> None:
        self.optimizer = session.optimizer
        self.masters = dict(self.optimizer.masters())
        rest = [parameter for name, parameter in session.parameters.items() if name not in self.masters]
        self.weights = [(parameter, parameter.detach().clone()) for parameter in rest]
        states = [state for _, _, state in self.optimizer.named_states()]
        self.states = [(state, {k: _copy(v) for k, v in state.items()}) for state in states]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, once: the copies become the state."""
        for name, master in self.masters.items():
            self.optimizer.set_master(name, master)
        for parameter, weight in self.weights:
            parameter.copy_(weight)
        for state, old in self.states:
            state.clear()
            state.update(old)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value
