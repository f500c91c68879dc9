"""`compare`: two models on one held-out text, from their paths to a `Comparison`."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..dsl import build
from ..errors import UserError
from ..specs import ChatSource, Source
from .evaluations import Subject
from .scorer import Scorer, plain_loss
from .token_bits import Pieces, pieces_of
from .token_comparison import Comparison, compare_pieces

__all__ = ["Compared", "compare_models", "shared_text"]


class Compared(NamedTuple):
    """The numbers, and the documents that they are of."""

    comparison: Comparison
    documents: list[Pieces]


def shared_text(first: Subject, second: Subject) -> Source:
    """What both hold out. Raises UserError where that is not one text: what one holds out the other may have learned."""
    found = first.experiment.eval_data
    if found is None or found != second.experiment.eval_data:
        raise UserError(
            f"{first.path} and {second.path} do not hold out the same text; write --data NAME=SOURCE, a text that neither "
            "was trained on"
        )
    return found


def compare_models(
    first: Subject, second: Subject, text: Source, top: int, most_documents: int | None = None
) -> Compared:
    """Every token of a text under both models. Raises UserError for conversations, and what a Scorer raises.

    Args:
        top: places and words to keep of each side. most_documents: of the text, its first ones; they are still read as part
            of all of it, so their numbers are the same.
    """
    if isinstance(text, ChatSource):
        raise UserError("compare takes plain text, not conversations; write --data NAME=SOURCE")
    source = build(text)
    source.check()
    tokenizers, tokens, losses = [], [], []
    for of in (first, second):
        scorer: Any = Scorer(of.path, plain_loss(of.experiment))
        found = scorer.tokens(source)
        tokenizers.append(scorer.tokenizer)
        tokens.append(found)
        losses.append(scorer.token_losses(found))
        del scorer  # one model at a time
    documents = list(pieces_of(source, *((pair[0], pair[1]) for pair in (tokenizers, tokens, losses))))[:most_documents]
    return Compared(compare_pieces(documents, top), documents)
