"""The training loop: data, schedule step, clip, optimizer, metrics, checkpoint. Every rank runs it in step with the others."""

from __future__ import annotations

from ..errors import Interrupted
from ..parallel.progress import PROGRESS
from ..specs import Pipeline
from .agreement import Agreed
from .batches import tensors
from .checkpoint import Saved
from .evaluate import evaluate, write_sample
from .memory_report import doing
from .report import Reporter
from .session import Session
from .stopping import StopRequest


def train(session: Session, resumed: Saved | None, changes: list[str]) -> None:
    """Train to the first of steps, tokens, epochs and seconds.

    Raises:
        Interrupted: a signal asked to stop; a checkpoint is saved.
        UserError: loss or gradients were not finite for `guard.max_skipped` steps in a row (exit code 4).
    """
    from .post_validation import post_validated

    experiment, seconds = session.experiment, session.seconds
    if progress(session, seconds) >= 1:
        if session.ranks.rank == 0:
            print(f"{session.path} is finished already, at step {session.step}; --resume never trains it again")
        return
    with Reporter(session, resumed, changes) as report, StopRequest(session.control) as request:
        if session.step == 0 and experiment.sampling is not None:
            _sample(session, report)
        if isinstance(experiment.parallel, Pipeline) and experiment.parallel.post_validation:
            post_validated(session, report, request)
        while progress(session, seconds) < 1:
            agreed, done = one_step(session, report, request, seconds)
            seconds = agreed.seconds
            if not (back := session.guards.roll_back(report)) and done < 1:
                at_intervals(session, report)
            if back or done < 1:
                stop_or_save(session, request, agreed.stop, agreed.save)
        finish(session, report)


def one_step(session: Session, report: Reporter, request: StopRequest, seconds: float) -> tuple[Agreed, float]:
    """Train on one batch, or skip it; what all ranks know of the step, and how far the run is. `seconds` are those so far."""
    PROGRESS.mark("reading a batch")
    batch = session.loader.next_batch()
    valid = batch.num_valid
    lr = set_learning_rate(session, progress(session, seconds, ahead=valid))
    tokens, targets, documents = tensors(batch)
    with doing(f"in training step {session.step + 1}"):
        session.update.begin()
        session.reducer.begin()
        loss = session.pipeline.step(tokens, targets, documents, session.loss_fn, session.step, valid)
        session.reducer.finish()
        session.owner.exchange_gradients()
    agreed = session.ranks.agree(session.update.squares(), session.said(loss, *request.poll()))
    PROGRESS.mark("updating the weights")
    session.peaks = agreed.memory
    with doing(f"updating the weights in step {session.step + 1}"):
        session.update.end(agreed)
        session.owner.exchange_weights()
    session.step, session.tokens = session.step + 1, session.tokens + valid
    done = progress(session, agreed.seconds)
    report.step(agreed, valid, lr, done)
    session.saver.heed(agreed.saved)
    session.guards.judge(agreed, valid, report)
    return agreed, done


def progress(session: Session, seconds: float, ahead: int = 0) -> float:
    """How far the run is, 0 to 1: the largest of its fractions of steps, tokens, epochs and seconds.

    With `ahead` tokens of the step to come, as it will be after that step, so that the last step has progress 1; its batch
    was taken from the loader by then.
    """
    e = session.experiment
    parts = [0.0]
    if e.steps is not None:
        parts.append((session.step + (ahead > 0)) / e.steps)
    if e.tokens is not None:
        parts.append((session.tokens + ahead) / e.tokens)
    if e.epochs is not None:
        parts.append(session.loader.epochs / e.epochs)
    if e.seconds is not None:
        parts.append(seconds / e.seconds)
    return min(1.0, max(parts))


def set_learning_rate(session: Session, at: float) -> float:
    """Scale every group's peak; returns the first group's."""
    factor = session.lr_schedule(at)
    session.lost.watch(factor)
    for group in session.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return session.optimizer.param_groups[0]["lr"]


def at_intervals(session: Session, report: Reporter) -> None:
    """What is due after this step, the last one apart."""
    e = session.experiment
    session.lost.tell()
    if e.eval_every and session.step % e.eval_every == 0 and session.held_out:
        _evaluate(session, report)
    if e.sample_every and session.step % e.sample_every == 0 and e.sampling is not None:
        _sample(session, report)
    if e.save_every and (session.step % e.save_every == 0 or session.guards.save_waits):
        session.guards.save_waits = session.guards.unsure
        if not session.guards.save_waits:
            with doing("saving a checkpoint"):
                session.save()


def stop_or_save(session: Session, request: StopRequest, stop: bool, save: bool) -> None:
    """What all ranks have agreed on. Raises Interrupted to stop."""
    saved = request.answer(session.step, session.save(wait=True)) if stop or save else ""
    if stop:
        raise Interrupted(f"interrupted at step {session.step}; saved {saved}")


def finish(session: Session, report: Reporter) -> None:
    """The end of a run: evaluation, a sample, the last checkpoint."""
    session.lost.tell()
    if session.held_out:
        _evaluate(session, report)
    if session.experiment.sampling is not None:
        _sample(session, report)
    with doing("saving a checkpoint"):
        session.save(wait=True)
    report.end()


def _evaluate(session: Session, report: Reporter) -> None:
    with report.paused(), doing("evaluating on the held-out text"):
        report.evaluation(evaluate(session))


def _sample(session: Session, report: Reporter) -> None:
    with report.paused(), doing("writing a sample"):
        report.sample(write_sample(session))
