"""Conversations as a source: `ChatSource`, the base of `Chat` and `StdlibChat`, and what becomes of bad records.

In: a subclass's `records`. Out: the conversations of one split; what is wrong with records is collected, with file and
line, and told at once. A conversation is held out by the hash of what is said, whole.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from forgather_dsl.data.conversations import SHAPES, conversation_of
from forgather_dsl.data.documents import FEW, Document, Source, hash_fraction, in_memory
from forgather_dsl.data.problems import Problems
from forgather_dsl.data.templates import Conversation, Template, template_of
from forgather_dsl.data.tokenizers import Tokenizer
from forgather_dsl.errors import UserError

__all__ = ["ChatSource", "Faults"]

MOST = 10  # bad records that are told; then nobody reads on

Record = tuple[Any, str]
"""A record and where it is."""


class Faults:
    """Bad records: told when there are some and the data was read, or `MOST` of them; counted where they may be left out."""

    def __init__(self, skip: bool) -> None:
        self.skip, self.count = skip, 0
        self._problems = Problems()

    def add(self, error: UserError) -> None:
        """Another one. Raises: UserError: there are many by now."""
        self.count += 1
        if self.count <= MOST:
            self._problems.add(str(error))
        if self.count == MOST and not self.skip:
            self._problems.add("... and perhaps more; bad='skip' leaves such records out")
            self._problems.raise_any()

    def end(self, nothing_good: bool = False) -> None:
        """All was read. Raises: UserError: with what was found, unless it may be left out and something is left."""
        if nothing_good or not self.skip:
            self._problems.raise_any()


class ChatSource(Source):
    """Where conversations come from. A subclass gives `records`, `check`, `identity` and `__str__`."""

    def __init__(
        self,
        *,
        shape: str,
        template: str | None,
        system: str | None,
        train_on: str,
        too_long: str,
        bad: str,
        split: str,
        held_out: float,
    ) -> None:
        """Raises: UserError: a bad split, or a shape that is not known."""
        super().__init__(split=split, held_out=held_out)
        if shape not in ("auto", *SHAPES):
            raise UserError(f"shape={shape!r}: write 'auto' or one of {', '.join(map(repr, SHAPES))}.")
        self.shape, self.template, self.system = shape, template, system
        self.train_on, self.too_long, self.skip = train_on, too_long, bad == "skip"

    @abstractmethod
    def records(self, faults: Faults) -> Iterator[Record]:
        """Every record, as it was read; what cannot be read as one goes to `faults`."""

    def template_for(self, tokenizer: Tokenizer) -> Template:
        """How a conversation is written. Raises: UserError: there is no such template."""
        return template_of(self.template, tokenizer)

    def conversations(self, faults: Faults) -> Iterator[Conversation]:
        """Those of this split, in the order of the data; bad ones go to `faults`."""
        everything = self._read(faults)
        if self.split == "all" or self.held_out == 0:
            yield from everything
            return
        first = list(islice(everything, FEW))
        if len(first) < FEW:
            yield from self._of_few(first)
            return
        for one in chain(first, everything):
            if (hash_fraction(in_memory(text_of(one))) < self.held_out) == (self.split == "held_out"):
                yield one

    def _of_few(self, found: list[Conversation]) -> list[Conversation]:
        """With so few, chance might hold out none: the first by hash are, one at least."""
        ranked = sorted(range(len(found)), key=lambda i: hash_fraction(in_memory(text_of(found[i]))))
        count = max(1, int(len(found) * self.held_out)) if len(found) > 1 else 0
        held = set(ranked[:count])
        return [one for i, one in enumerate(found) if (i in held) == (self.split == "held_out")]

    def _read(self, faults: Faults) -> Iterator[Conversation]:
        for record, where in self.records(faults):
            try:
                yield conversation_of(record, self.shape, self.system, where)
            except UserError as error:
                faults.add(error)

    def all_documents(self) -> Iterator[Document]:
        """What is said in each conversation of this split, as plain text: for training a tokenizer."""
        faults = Faults(self.skip)
        for one in self.conversations(faults):
            yield in_memory(text_of(one))
        faults.end()

    def pieces(self) -> Iterator[Iterator[str]]:
        """The same as pieces; a conversation is not cut to hold part of it out."""
        yield from (document() for document in self.all_documents())

    def facts(self) -> dict[str, Any]:
        """For `identity`: what the messages depend on beside the records. The template is not among it."""
        return {
            "shape": self.shape,
            "system": self.system,
            "skip": self.skip,
            "split": self.split,
            "held_out": self.held_out,
        }


def text_of(conversation: Conversation) -> str:
    """What is said, without a template."""
    return "\n".join(message["content"] for message in conversation.messages)
