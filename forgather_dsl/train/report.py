"""What a run tells: the banner, records for `metrics.jsonl` and the loggers, and the next commands. Rank 0 speaks, all take part."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .. import __version__
from ..data.chat_tokens import ChatFile
from ..data.tokens import TokenFile
from ..dsl import build, snapshot
from ..parallel.progress import PROGRESS
from ..specs import FSDP2, ChatSource, Pipeline
from ..specs.experiment import num_microbatches, num_replicas, pipeline_ranks, world_size
from .agreement import Agreed
from .checkpoint import Saved
from .evaluate import Evaluation
from .flops import peak, per_token
from .metrics import MetricsFile
from .services import RunFacts, started
from .session import Session
from .spikes import Jump


class Reporter:
    """Collects what is due and hands it on; entered for the time of the run."""

    def __init__(self, session: Session, resumed: Saved | None, changes: list[str]) -> None:
        self.session, self.resumed = session, resumed
        self.num_parameters = session.num_parameters()
        self._steps, self._tokens, self._since = 0, 0, time.monotonic()
        self._sinks: list[Any] = []
        if session.ranks.rank == 0:
            print(banner(session, self.num_parameters, resumed, changes), flush=True)
            metrics = os.path.join(session.path, "metrics.jsonl")
            about = RunFacts(session.path, snapshot(session.experiment), session.step, resumed is not None)
            loggers = [started(build(logger), about) for logger in session.experiment.loggers]
            after, rollbacks = session.step if resumed else -1, session.guards.rollbacks
            self._sinks = [MetricsFile(metrics, after_step=after, rollbacks=rollbacks), *loggers]

    def __enter__(self) -> Reporter:
        prepared, e = self.session.prepared, self.session.experiment
        self._log(
            {
                "step": self.session.step,
                "data_fingerprint": prepared.train.fingerprint,
                "eval_fingerprint": prepared.held_out.fingerprint if prepared.held_out else None,
                "gzip_bits_per_byte": prepared.held_out.gzip_bits_per_byte if prepared.held_out else None,
                "eval_bytes": prepared.held_out.num_bytes if prepared.held_out else None,
                "eval_sets": {name: described_set(found) for name, found in prepared.eval_sets.items()},
                "num_parameters": self.num_parameters,
                "device": device(self.session),
                "ranks": self.session.world.size,
                "steps": e.steps,
                "progress": 0.0 if e.steps is None else self.session.step / e.steps,
            }
        )
        return self

    def __exit__(self, *_: object) -> None:
        for sink in self._sinks:
            sink.close()
        self._sinks = []

    def _log(self, record: dict[str, Any]) -> None:
        for sink in self._sinks:
            sink.log(record)

    def step(self, agreed: Agreed, valid: int, lr: float, progress: float) -> None:
        """One optimizer step; a record every `log_every`, of the first and last, and of every one that was skipped."""
        session, e = self.session, self.session.experiment
        self._steps, self._tokens = self._steps + 1, self._tokens + valid
        PROGRESS.stepped = True
        if session.control is not None:
            session.control.step(session.step, agreed.loss_sum / valid, session.tokens)
        if session.step % e.log_every and session.step != 1 and progress < 1 and agreed.finite:
            return
        spent = max(1e-9, time.monotonic() - self._since)
        rate = self._tokens / spent
        record = {
            "step": session.step,
            "loss": agreed.loss_sum / valid,
            "lr": lr,
            "grad_norm": agreed.grad_norm,
            "tokens": session.tokens,
            "tokens_per_second": rate,
            "step_seconds": spent / self._steps,
            "mfu": self._mfu(rate),
            "peak_memory_bytes": agreed.memory,
            "progress": progress,
        }
        if not agreed.finite:
            record |= {"skipped": True, "why": session.guards.first_bad(agreed)}
        if session.ranks.world > 1:
            record |= {"bubble": agreed.bubble, "bubbles": agreed.bubbles}
        self._log(record)
        self._steps, self._tokens, self._since = 0, 0, time.monotonic()

    def _mfu(self, rate: float) -> float | None:
        world = self.session.world
        best = peak(torch.cuda.get_device_name(world.device)) if world.device.type == "cuda" else None
        if best is None:
            return None
        e = self.session.experiment
        return rate * per_token(self.num_parameters, e.model, e.seq_len) / (best * world.size)

    def evaluation(self, results: dict[str, Evaluation]) -> None:
        """A record of the held-out text, all sets in one."""
        values = [result.record(name) for name, result in results.items()]
        self._log({"step": self.session.step, **{key: value for record in values for key, value in record.items()}})

    def sample(self, text: str) -> None:
        """What the model writes."""
        self._log({"step": self.session.step, "sample": text})

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What takes time here is not training, and does not count in its throughput."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def spike(self, jump: Jump) -> None:
        """A loss that jumped, and the run went on."""
        self._log({"step": self.session.step, "spike": _facts(jump)})

    def rolled_back(self, jump: Jump, number: int, data: dict[str, Any]) -> None:
        """A loss that jumped, and the run went back to the step where it is now, for the `number`th time: what was recorded
        since is dropped. `data`: the positions of the loader between which nothing is learned from.
        """
        for sink in self._sinks:
            if isinstance(sink, MetricsFile):
                sink.go_back(self.session.step, number - 1)
        self._log({"step": self.session.step, "rollback": {"number": number, **_facts(jump), "data": data}})
        self._steps, self._tokens, self._since = 0, 0, time.monotonic()

    def end(self) -> None:
        """Where it is, and what to do with it."""
        sinks, self._sinks = self._sinks, []
        for sink in sinks:
            sink.close()
        if self.session.ranks.rank == 0:
            print(next_commands(self.session.path, self.session.experiment), flush=True)


def described_set(tokens: TokenFile | ChatFile) -> dict[str, Any]:
    """A set of held-out text, for the record: two numbers compare where the fingerprints are the same."""
    return {"fingerprint": tokens.fingerprint, "tokens": tokens.num_tokens, "bytes": tokens.num_bytes}


def _facts(jump: Jump) -> dict[str, Any]:
    return {
        "since": jump.since,
        "at": jump.step,
        "loss": jump.loss,
        "usual": jump.usual,
        "deviations": jump.height,
    }


def device(session: Session) -> str:
    """What rank 0 computes on."""
    if session.world.device.type == "cuda":
        return torch.cuda.get_device_name(session.world.device)
    return f"cpu, {torch.get_num_threads()} threads"


def banner(session: Session, num_parameters: int, resumed: Saved | None, changes: list[str]) -> str:
    """Target and lineage, model, data, plan, run directory."""
    e, prepared = session.experiment, session.prepared
    lineage = " <- ".join(c.__name__ for c in type(e).__mro__ if getattr(c, "__root__", False))
    where = device(session)
    plan, m, ranks, replicas = _strategy(e, session), num_microbatches(e), world_size(e), num_replicas(e)
    held_out = f", held out {_si(prepared.held_out.num_bytes)}B" if prepared.held_out else ""
    held_out += "".join(f", {name} {_si(found.num_bytes)}B" for name, found in prepared.eval_sets.items())
    stops = [
        f"{e.steps:,} steps" if e.steps else "",
        f"{_si(e.tokens)} tokens" if e.tokens else "",
        f"{e.epochs:g} epochs" if e.epochs else "",
        f"{e.seconds:g} s" if e.seconds else "",
    ]
    lines = [
        f"forgather_dsl {__version__}  {lineage}  {where}" + (f" x {ranks} ranks" if ranks > 1 else ""),
        f"model   {type(e.model).__name__} {_si(num_parameters)} parameters, {e.model.num_layers} layers, dim {e.model.dim}, seq {e.seq_len}",
        f"data    {prepared.source}: {_si(prepared.train.num_bytes)}B, {_si(prepared.train.num_tokens)} tokens of {prepared.tokenizer.vocab_size}{held_out}",
        f"plan    {plan}, {m} microbatches {'each ' if replicas > 1 else ''}of {e.microbatch_size} x {e.seq_len} tokens, until {' or '.join(s for s in stops if s)}",
        f"run     {session.path}",
    ]
    if told := session.loader.described:
        lines.insert(3, f"packed  {told}")
    if resumed is not None:
        lines.append(f"resume  step {session.step}, {resumed.path}")
    lines += [f"change  {text}" for text in changes]
    return "\n".join(lines)


def _strategy(experiment: Any, session: Session) -> str:
    """How a step is spread over ranks."""
    parallel, copies = experiment.parallel, num_replicas(experiment)
    if isinstance(parallel, FSDP2):
        sets = f"{parallel.replicas} sets of " if parallel.replicas > 1 else ""
        return f"{sets}{parallel.shards} shards" + (" on the host" if parallel.offload else "")
    if not isinstance(parallel, Pipeline):
        return f"{copies} replicas" if copies > 1 else "1 process"
    ranks, stages = pipeline_ranks(experiment), session.pipeline.schedule.num_stages
    plan = f"{stages} stages" + (f" on {ranks} ranks" if stages != ranks else "")
    plan = f"{plan}, {type(parallel.schedule).__name__}" if ranks * copies > 1 else "1 process"
    return f"{copies} replicas of {plan}" if copies > 1 else plan


def next_commands(path: str, experiment: Any) -> str:
    """What to try with a finished run."""
    prompt = experiment.sampling.prompt.splitlines()[-1].strip() if experiment.sampling is not None else "Once"
    chat = " --chat" if isinstance(experiment.data, ChatSource) else ""
    return "\n".join(
        [
            f"saved   {path}",
            f'next    python -m forgather_dsl generate {path} "{prompt}"{chat}',
            f"        python -m forgather_dsl show {path}",
        ]
    )


def _si(number: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if abs(number) < 1000:
            return f"{number:.3g} {unit}".strip() if unit else f"{number:.0f}"
        number /= 1000
    return f"{number:.3g} P"
