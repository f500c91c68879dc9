"""Evaluation with the training loss over all held-out text, and samples of what the model writes."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

from .batches import tensors
from .sampling import picker
from .session import Session


class Evaluation(NamedTuple):
    """Over the held-out documents."""

    loss: float  # nats per token
    bits_per_byte: float  # of the text in UTF-8; the boundaries' bits are counted, their bytes are none


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
    return Evaluation(nats / valid, nats / math.log(2) / session.held_out.tokens.num_bytes)


def write_sample(session: Session) -> str:
    """The prompt and what the model adds; the same for every layout."""
    sampling, tokenizer = session.experiment.sampling, session.prepared.tokenizer
    assert sampling is not None
    prompt = [tokenizer.eos_id, *tokenizer.encode(sampling.prompt)]
    pick = picker(sampling.temperature, sampling.top_k, session.experiment.seed)
    added = session.pipeline.sample(torch.tensor([prompt]), sampling.max_new_tokens, pick, tokenizer.eos_id)
    return sampling.prompt + tokenizer.decode([t for t in added if t != tokenizer.eos_id])
