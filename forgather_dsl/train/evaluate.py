"""Evaluation with the training loss over all held-out text, and samples of what the model writes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from ..data.chat_prompt import ask
from ..data.chat_source import ChatSource
from .batches import tensors
from .sampling import picker
from .session import Session


class Evaluation(NamedTuple):
    """Over the held-out documents."""

    loss: float  # nats per token
    bits_per_byte: (
        float  # of the predicted text in UTF-8; bits of boundaries and ends of turns count, bytes they have none
    )


def evaluate(session: Session) -> Evaluation:
    """Every held-out token once. Each replica takes its rows of every batch; its rank of the last stage has their loss.

    Losses of microbatches are fp32 numbers added in double precision, which holds their sum exactly: so it does not depend
    on the number of replicas.
    """
    assert session.held_out is not None
    total, valid = 0.0, 0
    for batch in session.held_out.eval_batches():
        tokens, targets, documents = tensors(batch)
        loss = session.pipeline.forward_only(
            tokens, targets, documents, session.loss_fn, session.experiment.microbatch_size
        )
        total += loss or 0.0
        valid += batch.num_valid
    nats = session.ranks.total(total)
    session.evaluated = (session.step, nats / valid)
    return Evaluation(nats / valid, nats / math.log(2) / session.held_out.num_bytes)


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
