"""A question as a chat model is asked it: ids up to where the assistant begins to write, and the token that ends its turn."""

from __future__ import annotations

from typing import NamedTuple

from forgather_dsl.data.chat_source import ChatSource
from forgather_dsl.data.templates import ASSISTANT, Conversation
from forgather_dsl.data.tokenizers import Tokenizer

__all__ = ["Asked", "ask"]


class Asked(NamedTuple):
    """What a model is given, and when to stop."""

    tokens: list[int]
    end: int


def ask(source: ChatSource, tokenizer: Tokenizer, question: str) -> Asked:
    """`question` as the user's only message, after the system message of `source` if it has one.

    Where no token of its own ends a turn it is the one between documents. Raises: UserError: the template refuses it.
    """
    template = source.template_for(tokenizer)
    system = [] if source.system is None else [{"role": "system", "content": source.system}]
    asked = Conversation([*system, {"role": "user", "content": question}], None, "the question")
    answered = asked._replace(messages=[*asked.messages, {"role": ASSISTANT, "content": "a"}])
    text, spans = template.spans(answered, "last")
    prompt, turn = tokenizer.encode_templated([template.render(asked, prompt=True), text[: spans[-1].stop]])
    special = {n for n, token in tokenizer.loaded.backend.get_added_tokens_decoder().items() if token.special}
    last = turn[0][-1]
    return Asked(prompt[0], last if last in special else tokenizer.eos_id)
