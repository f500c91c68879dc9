"""Data before ranks: tokenizer and token files are made once, in the process that launches, so that ranks find them cached."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..data.chat_source import ChatSource
from ..data.chat_tokens import ChatFile, tokenize_chat
from ..data.tokens import TokenFile, tokenize
from ..dsl import build
from ..dsl.check import said_at
from ..errors import UserError
from ..specs import Experiment


class Prepared(NamedTuple):
    """What the session reads: a tokenizer, the training tokens, the held-out tokens if there are any."""

    tokenizer: Any
    source: Any
    train: TokenFile | ChatFile
    held_out: TokenFile | ChatFile | None


def check_sources(experiment: Experiment) -> tuple[Any, Any | None, dict[int, Any]]:
    """Build the sources and look at their files; cheap. Raises UserError."""
    memo: dict[int, Any] = {}
    train = build(experiment.data, memo=memo)
    held_out = build(experiment.eval_data, memo=memo) if experiment.eval_data is not None else None
    problems: dict[str, str] = {}  # by text: what is held out is of the same files
    for name, source in (("data", train), ("eval_data", held_out)):
        try:
            if source is not None:
                source.check()
        except UserError as error:
            problems.setdefault(str(error), f"{name}{said_at(experiment, name)}: {error}")
    if problems:
        raise UserError("\n".join(problems.values()))
    return train, held_out, memo


def _tokenized(source: Any, tokenizer: Any) -> TokenFile | ChatFile:
    return tokenize_chat(source, tokenizer) if isinstance(source, ChatSource) else tokenize(source, tokenizer)


def prepare(experiment: Experiment) -> Prepared:
    """Train or load the tokenizer, tokenise what is not cached.

    Raises:
        UserError: a source is missing, empty or not text, or shorter than one sequence.
    """
    train, held_out, memo = check_sources(experiment)
    tokenizer = build(experiment.tokenizer, memo=memo)
    if tokenizer.vocab_size > experiment.model.vocab_size:
        raise UserError(
            f"model.vocab_size is {experiment.model.vocab_size}, smaller than the tokenizer's {tokenizer.vocab_size}; "
            f"write vocab_size={tokenizer.vocab_size}"
        )
    files = [_tokenized(source, tokenizer) if source is not None else None for source in (train, held_out)]
    assert files[0] is not None
    for name, file in zip(("data", "eval_data"), files):
        if isinstance(file, TokenFile) and file.num_tokens <= experiment.seq_len:
            raise UserError(
                f"{name}{said_at(experiment, name)}: {file.num_tokens} tokens are fewer than one sequence of seq_len {experiment.seq_len} and the token "
                f"after it; write seq_len = {max(1, file.num_tokens - 1)} or less, or add text"
            )
    return Prepared(tokenizer, train, files[0], files[1])
