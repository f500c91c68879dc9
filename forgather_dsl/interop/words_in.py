"""Tokenizers on their way in: what a model's folder splits text with, with tokens added, as files of our own.

In: a folder, tokens to add. Out: a `Tokenizer`, and its ids without and with what was added.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from ..data.tokenizer_files import FILE, find_eos, from_file, from_pretrained
from ..data.tokenizers import Loaded, Tokenizer
from ..errors import UserError

__all__ = ["BYTES", "Incoming", "read_words"]

BYTES = "bytes"  # named in place of a folder
FORMATS = (FILE, "tokenizer.model", "vocab.json", "vocab.txt")  # any of which makes a folder have a tokenizer


class Given(Tokenizer):
    """A tokenizer that is in memory already."""

    def __init__(self, loaded: Loaded, vocab_size: int) -> None:
        super().__init__(vocab_size=vocab_size)
        self._given = loaded

    def load(self) -> Loaded:
        """As it is."""
        return self._given


class Incoming(NamedTuple):
    """A tokenizer to be written, and the ids it has without and with what was added."""

    tokenizer: Tokenizer
    before: frozenset[int]
    after: frozenset[int]


def read_words(
    folder: str,
    config: dict[str, Any],
    named: str | None = None,
    eos: str | None = None,
    added: Sequence[str] = (),
    special: Sequence[str] = (),
) -> Incoming | None:
    """The tokenizer of a folder, or the one that is named (a folder, a tokenizer.json); None for the word "bytes".

    Args:
        config: config.json, which may know the end of a text where the tokenizer does not.
        added, special: tokens that it gets; special ones are left out of what is shown to readers.

    Raises:
        UserError: there is none, a token is there already, or which token ends a text is not known.
    """
    if named == BYTES:
        if added or special:
            raise UserError("--tokenizer bytes has no room for tokens of your own")
        return None
    path = folder if named is None else os.path.expanduser(named)
    if named is None and not any(os.path.isfile(os.path.join(folder, name)) for name in FORMATS):
        raise UserError(
            f"{folder} has no tokenizer; write --tokenizer PATH, a folder or a tokenizer.json that belongs to this model, "
            "or --tokenizer bytes"
        )
    backend, about = (from_file(Path(path)), {}) if path.endswith(".json") else from_pretrained(path)
    before = frozenset(backend.get_vocab().values())
    _add(backend, added, special, before)
    backend.encode_special_tokens = bool(about.get("split_special_tokens", False))
    end = find_eos(backend, eos or _end(backend, about, config), path)
    after = frozenset(backend.get_vocab().values())
    loaded = Loaded(backend, end, about)
    return Incoming(Given(loaded, max(after) + 1), before, after)


def _add(backend: tokenizers.Tokenizer, added: Sequence[str], special: Sequence[str], before: frozenset[int]) -> None:
    wanted = [*added, *special]
    there = {name: number for name in wanted if (number := backend.token_to_id(name)) is not None}
    problems = [f"{name!r} is there already, with id {number}" for name, number in there.items()]
    problems += [f"{name!r} is named twice" for name in dict.fromkeys(wanted) if wanted.count(name) > 1]
    problems += ["an empty token would be everywhere"] if "" in wanted else []
    if problems:
        raise UserError("tokens that cannot be added:\n  " + "\n  ".join(problems))
    backend.add_tokens(list(added))
    backend.add_special_tokens(list(special))
    taken = [name for name in wanted if backend.token_to_id(name) in before]
    if taken:
        raise UserError(f"the vocabulary has gaps, and {taken[0]!r} would get an id that another token has")


def _end(backend: tokenizers.Tokenizer, about: dict[str, Any], config: dict[str, Any]) -> str | None:
    """The token that ends a text, by the tokenizer's configuration, else by the model's."""
    found = about.get("eos_token")
    if isinstance(found, dict):  # transformers may write a token with its options
        found = found.get("content")
    if isinstance(found, str):
        return found
    ids = config.get("eos_token_id")
    first = ids[0] if isinstance(ids, list) and ids else ids
    return backend.id_to_token(first) if isinstance(first, int) and not isinstance(first, bool) and first >= 0 else None
