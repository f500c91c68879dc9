"""The training loop: data, schedule step, clip, optimizer, metrics, checkpoint. Every rank runs it in step with the others."""

from __future__ import annotations

from ..errors import Interrupted, UserError
from ..parallel.progress import PROGRESS
from ..parallel.replicas import sum_gradients
from ..specs import Pipeline
from .batches import tensors
from .checkpoint import Saved
from .evaluate import evaluate, write_sample
from .gradients import clip
from .report import Reporter
from .session import Session
from .stopping import StopRequest

MAX_SKIPPED = 5  # steps in a row that are not finite before the run gives up


def train(session: Session, resumed: Saved | None, changes: list[str]) -> None:
    """Train to the first of steps, tokens and seconds.

    Raises:
        Interrupted: a signal asked to stop; a checkpoint is saved.
        UserError: loss or gradients were not finite for `MAX_SKIPPED` steps in a row (exit code 4).
    """
    from .post_validation import post_validated

    experiment, seconds = session.experiment, session.seconds
    if progress(session, seconds) >= 1:
        if session.ranks.rank == 0:
            print(f"{session.path} is finished already, at step {session.step}; --resume never trains it again")
        return
    with Reporter(session, resumed, changes) as report, StopRequest(session.control) as request:
        if session.step == 0 and experiment.sampling is not None:
            report.sample(write_sample(session))
        if isinstance(experiment.parallel, Pipeline) and experiment.parallel.post_validation:
            post_validated(session, report, request)
        while progress(session, seconds) < 1:
            PROGRESS.mark("reading a batch")
            batch = session.loader.next_batch()
            valid = batch.num_valid
            lr = set_learning_rate(session, progress(session, seconds, ahead=valid))
            tokens, targets, documents = tensors(batch)
            loss = session.pipeline.step(tokens, targets, documents, session.loss_fn, session.step, valid)
            sum_gradients(session.parameters, session.mesh)
            agreed = session.ranks.agree(session.gradients(), session.said(loss, *request.poll()))
            PROGRESS.mark("updating the weights")
            if agreed.finite:
                clip(list(session.parameters.values()), agreed.grad_norm, experiment.clip_norm)
                session.optimizer.step()
            for parameter in session.parameters.values():
                parameter.grad = None
            session.step, session.tokens, seconds = session.step + 1, session.tokens + valid, agreed.seconds
            skip_guard(session, agreed.finite, agreed.loss_sum / valid, agreed.grad_norm)
            done = progress(session, seconds)
            report.step(agreed, valid, lr, done)
            if done < 1:
                at_intervals(session, report)
                stop_or_save(session, request, agreed.stop, agreed.save)
        finish(session, report)


def progress(session: Session, seconds: float, ahead: int = 0) -> float:
    """How far the run is, 0 to 1: the largest of its fractions of steps, tokens and seconds.

    With `ahead` tokens of the step to come, as it will be after that step, so that the last step has progress 1.
    """
    e = session.experiment
    parts = [0.0]
    if e.steps is not None:
        parts.append((session.step + (ahead > 0)) / e.steps)
    if e.tokens is not None:
        parts.append((session.tokens + ahead) / e.tokens)
    if e.seconds is not None:
        parts.append(seconds / e.seconds)
    return min(1.0, max(parts))


def set_learning_rate(session: Session, at: float) -> float:
    """Scale every group's peak; returns the first group's."""
    factor = session.lr_schedule(at)
    for group in session.optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return session.optimizer.param_groups[0]["lr"]


def skip_guard(session: Session, finite: bool, loss: float, norm: float) -> None:
    """Count steps that were skipped on all ranks because some number was not finite."""
    session.skipped = 0 if finite else session.skipped + 1
    if session.skipped >= MAX_SKIPPED:
        raise UserError(
            f"diverged: loss {loss}, grad norm {norm} for {MAX_SKIPPED} steps up to {session.step}; lower optimizer.lr, "
            "lengthen lr_schedule.warmup, or check the data",
            exit_code=4,
        )


def at_intervals(session: Session, report: Reporter) -> None:
    """What is due after this step, the last one apart."""
    e = session.experiment
    if e.eval_every and session.step % e.eval_every == 0 and session.held_out is not None:
        report.evaluation(evaluate(session))
    if e.sample_every and session.step % e.sample_every == 0 and e.sampling is not None:
        report.sample(write_sample(session))
    if e.save_every and session.step % e.save_every == 0:
        session.save()


def stop_or_save(session: Session, request: StopRequest, stop: bool, save: bool) -> None:
    """What all ranks have agreed on. Raises Interrupted to stop."""
    saved = request.answer(session.step, session.save()) if stop or save else ""
    if stop:
        raise Interrupted(f"interrupted at step {session.step}; saved {saved}")


def finish(session: Session, report: Reporter) -> None:
    """The end of a run: evaluation, a sample, the last checkpoint."""
    if session.held_out is not None:
        report.evaluation(evaluate(session))
    if session.experiment.sampling is not None:
        report.sample(write_sample(session))
    session.save()
    report.end()
