"""Evaluation with the training loss over all held-out text, of each set, and samples of what the model writes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch

from ..data.chat_prompt import ask
from ..data.chat_source import ChatSource
from ..data.order import Sequences
from ..parallel.interpreter import Pipeline
from ..specs import Experiment
from .batches import tensors
from .sampling import picker
from .session import Session

MOST_NATS = 700.0  # e to more is no number


class Scorer(Protocol):
    """What a set is run through: a session, or a finished run that is evaluated."""

    experiment: Experiment
    pipeline: Pipeline
    loss_fn: Any


class Evaluation(NamedTuple):
    """Over one set of held-out documents."""

    loss: float  # nats per token
    bits_per_byte: (
        float  # of the predicted text in UTF-8; bits of boundaries and ends of turns count, bytes they have none
    )
    tokens: int  # that have a loss

    @property
    def perplexity(self) -> float | None:
        """e to the loss, of these tokens: not to be compared across tokenizers. None where it is no number."""
        return math.exp(self.loss) if self.loss < MOST_NATS else None

    def record(self, name: str) -> dict[str, Any]:
        """As `metrics.jsonl` says it; `name` is that of a set, or empty for `eval_data`."""
        after = f"/{name}" if name else ""
        values = {"loss": self.loss, "bits_per_byte": self.bits_per_byte, "perplexity": self.perplexity}
        return {f"eval_{key}{after}": value for key, value in values.items()}


def evaluate(session: Session) -> dict[str, Evaluation]:
    """`eval_data`, under the name "", and every named set. All ranks must call it."""
    found = {name: score(session, loader, session.ranks.total) for name, loader in session.held_out.items()}
    if "" in found:
        session.evaluated = (session.step, found[""].loss)
    return found


def score(scorer: Scorer, loader: Sequences, total_of: Callable[[float], float]) -> Evaluation:
    """Every token of a set once. Each replica takes its rows of every batch; its rank of the last stage has their loss.

    Losses of microbatches are fp32 numbers added in double precision, which holds their sum exactly: so it does not depend
    on the number of replicas.
    """
    total, valid = 0.0, 0
    for batch in loader.eval_batches():
        tokens, targets, documents = tensors(batch)
        size = scorer.experiment.microbatch_size
        loss = scorer.pipeline.forward_only(tokens, targets, documents, scorer.loss_fn, size)
        total += loss or 0.0
        valid += batch.num_valid
    nats = total_of(total)
    return Evaluation(nats / valid, nats / math.log(2) / loader.num_bytes, valid)


def write_sample(session: Session) -> str:
    """The prompt and what the model adds, of a chat model its answer; the same for every layout."""
    sampling, tokenizer = session.experiment.sampling, session.prepared.tokenizer
    assert sampling is not None
    prompt, end = [tokenizer.eos_id, *tokenizer.encode(sampling.prompt)], tokenizer.eos_id
    chat = session.prepared.source if isinstance(session.prepared.source, ChatSource) else None
    if chat is not None:
        prompt, end = ask(chat, tokenizer, sampling.prompt)
    pick = picker(sampling.temperature, sampling.top_k, session.experiment.seed)
    added = session.pipeline.sample(torch.tensor([prompt]), sampling.max_new_tokens, pick, end)
    written = tokenizer.decode([t for t in added if t != end])
    return sampling.prompt + (written if chat is None else f"\n-> {written.strip()}")
