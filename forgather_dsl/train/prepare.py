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
    """What the session reads: a tokenizer, the training tokens, the held-out tokens if there are any, those of named sets."""

    tokenizer: Any
    source: Any
    train: TokenFile | ChatFile
    held_out: TokenFile | ChatFile | None
    eval_sets: dict[str, TokenFile | ChatFile]


class Sources(NamedTuple):
    """The sources of an experiment, checked. `memo` is what `build` has made so far."""

    train: Any
    by_path: dict[str, Any]  # data, eval_data unless there is none, eval_sets.NAME
    memo: dict[int, Any]


def check_sources(experiment: Experiment) -> Sources:
    """Build the sources and look at their files; cheap. Raises UserError."""
    memo: dict[int, Any] = {}
    specs = {"data": experiment.data, "eval_data": experiment.eval_data}
    specs |= {f"eval_sets.{name}": spec for name, spec in experiment.eval_sets.items()}
    sources = {path: build(spec, memo=memo) for path, spec in specs.items() if spec is not None}
    problems: dict[str, str] = {}  # by text: what is held out is of the same files
    for path, source in sources.items():
        try:
            source.check()
        except UserError as error:
            problems.setdefault(str(error), f"{path}{said_at(experiment, path)}: {error}")
    if problems:
        raise UserError("\n".join(problems.values()))
    return Sources(sources["data"], sources, memo)


def tokenized(source: Any, tokenizer: Any) -> TokenFile | ChatFile:
    """From the cache, or made. Raises UserError."""
    return tokenize_chat(source, tokenizer) if isinstance(source, ChatSource) else tokenize(source, tokenizer)


def prepare(experiment: Experiment) -> Prepared:
    """Train or load the tokenizer, tokenise what is not cached.

    Raises:
        UserError: a source is missing, empty or not text, or shorter than one sequence.
    """
    sources = check_sources(experiment)
    tokenizer = build(experiment.tokenizer, memo=sources.memo)
    if tokenizer.vocab_size > experiment.model.vocab_size:
        raise UserError(
            f"model.vocab_size is {experiment.model.vocab_size}, smaller than the tokenizer's {tokenizer.vocab_size}; "
            f"write vocab_size={tokenizer.vocab_size}"
        )
    files = {path: tokenized(source, tokenizer) for path, source in sources.by_path.items()}
    for path, file in files.items():
        if isinstance(file, TokenFile) and file.num_tokens <= experiment.seq_len:
            raise UserError(
                f"{path}{said_at(experiment, path)}: {file.num_tokens} tokens are fewer than one sequence of seq_len "
                f"{experiment.seq_len} and the token after it; write seq_len = {max(1, file.num_tokens - 1)} or less, or add text"
            )
    sets = {name: files[f"eval_sets.{name}"] for name in experiment.eval_sets}
    return Prepared(tokenizer, sources.train, files["data"], files.get("eval_data"), sets)
