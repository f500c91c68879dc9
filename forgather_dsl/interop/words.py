"""Tokenizers on their way out: the files that transformers reads, which ids begin and end a text, and a check that it agrees.

In: an experiment. Out: tokenizer.json, tokenizer_config.json, chat_template.jinja, and the ids for a generation configuration.
"""

from __future__ import annotations

import json
import os
from typing import Any

from ..data.chat_prompt import ask
from ..data.tokenizer_files import CONFIG
from ..data.tokenizers import Tokenizer
from ..dsl import build
from ..errors import UserError
from ..specs import ChatSource, Experiment, HFTokenizer
from ..train.prepare import check_sources
from .folder import write_json
from .place import read_config

__all__ = ["begins_texts", "generation_of", "tokenizer_of", "write_tokenizer"]

GENERATION, GENERIC = "generation_config.json", "PreTrainedTokenizerFast"
SAMPLES = (
    "def f(x, y=12345):\n\treturn  x * 3.14159  # it's\r\n\n   ",
    "The quick brown fox, caf\u00e9 \u65e5\u672c\u8a9e \U0001f642 don't WON'T 1234567 a\u0301 \u00a0 end",
    " leading, trailing ",
)
_LEAVE_OUT = "write --no-tokenizer to leave it out"


def tokenizer_of(experiment: Experiment) -> Tokenizer:
    """What the run split its text with, and the chat template that it was trained with. Raises UserError: it cannot be had."""
    spec: Any = experiment.tokenizer
    try:
        memo = check_sources(experiment).memo if getattr(spec, "source", None) is not None else {}
        tokenizer: Tokenizer = build(spec, memo=memo)
        loaded = tokenizer.loaded
        if isinstance(experiment.data, ChatSource) and experiment.data.template is not None:
            template = build(experiment.data).template_for(tokenizer).text
            tokenizer.loaded = loaded._replace(config={**loaded.config, "chat_template": template})
    except UserError as error:
        raise UserError(f"the tokenizer of this run cannot be had: {error}; {_LEAVE_OUT}") from error
    return tokenizer


def generation_of(experiment: Experiment, tokenizer: Tokenizer) -> dict[str, Any]:
    """What `generate` of transformers has to know: where texts end and begin.

    The run knows the token between documents. A tokenizer that names no token to begin with begins with that one, as GPT-2
    does. What generation_config.json beside a tokenizer of the Hugging Face kind says is kept. A turn of a chat ends a text too.
    """
    found: dict[str, Any] = {"bos_token_id": _named(tokenizer, "bos_token"), "eos_token_id": tokenizer.eos_id}
    if found["bos_token_id"] is None:
        found["bos_token_id"] = tokenizer.eos_id
    if (pad := _named(tokenizer, "pad_token")) is not None:
        found["pad_token_id"] = pad
    spec = experiment.tokenizer
    beside = os.path.join(os.path.expanduser(spec.path), GENERATION) if isinstance(spec, HFTokenizer) else ""
    if os.path.isfile(beside):
        kept = read_config(os.path.dirname(beside), GENERATION)
        ends = kept.get("eos_token_id")
        knows = tokenizer.eos_id in (ends if isinstance(ends, list) else [ends])  # else it is of another tokenizer
        found = {**found, **kept} if knows else {**kept, **found}
    if isinstance(experiment.data, ChatSource):
        end, known = ask(build(experiment.data), tokenizer, "a").end, found["eos_token_id"]
        known = known if isinstance(known, list) else [known]
        found["eos_token_id"] = [*known, end] if end not in known else found["eos_token_id"]
    return found


def begins_texts(tokenizer: Tokenizer) -> bool:
    """Whether a text that is given to the model begins with the token to begin with.

    A tokenizer of our own adds none to a text, but every text that the model has seen came after the end of another.
    """
    if _named(tokenizer, "bos_token") is None:
        return True
    ids = tokenizer.loaded.backend.encode("a", add_special_tokens=True).ids
    return bool(ids) and ids[0] == _named(tokenizer, "bos_token")


def _named(tokenizer: Tokenizer, role: str) -> int | None:
    token = tokenizer.loaded.config.get(role)
    name = token.get("content") if isinstance(token, dict) else token  # transformers may write a token with its options
    return tokenizer.loaded.backend.token_to_id(name) if isinstance(name, str) else None


def write_tokenizer(tokenizer: Tokenizer, into: str, check: bool) -> list[str]:
    """Write its files beside the model's; lines for the user.

    Args:
        check: open them with transformers and compare ids of some text. AutoTokenizer of transformers 5 takes the class of
            a Qwen model for any tokenizer of one, and that class splits text its own way: then the class to use is said.

    Raises:
        UserError: transformers splits text otherwise, whatever class it is told to take.
    """
    tokenizer.save(into)
    if not check or (wrong := _disagreement(tokenizer, into, "AutoTokenizer")) is None:
        return []
    path = os.path.join(into, CONFIG)
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    write_json(path, {**config, "tokenizer_class": GENERIC})  # the class that takes tokenizer.json as it is
    if _disagreement(tokenizer, into, "AutoTokenizer") is None:
        return []
    if (still := _disagreement(tokenizer, into, GENERIC)) is not None:
        raise UserError(f"transformers would split text otherwise than this run: {still}; {_LEAVE_OUT}")
    return [f"load the tokenizer with {GENERIC}.from_pretrained: AutoTokenizer splits text otherwise ({wrong})"]


def _disagreement(tokenizer: Tokenizer, folder: str, kind: str) -> str | None:
    """The first text of some that a class of transformers gives other ids, or None."""
    import transformers

    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # it warns of models whose code is their own
    try:
        theirs = getattr(transformers, kind).from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a class trips over
        return f"{type(error).__name__}: {error}"
    finally:
        transformers.logging.set_verbosity(level)
    if theirs.eos_token_id != tokenizer.eos_id:
        return f"the end is {theirs.eos_token_id}, not {tokenizer.eos_id}"
    for text in (*SAMPLES, f"a{tokenizer.loaded.eos}b"):
        found, ours = theirs(text, add_special_tokens=False)["input_ids"], tokenizer.encode(text)
        if found != ours:
            at = next((i for i, (a, b) in enumerate(zip(found, ours)) if a != b), min(len(found), len(ours)))
            return f"token {at} of {text!r} is {found[at : at + 1]}, not {ours[at : at + 1]}"
    return None
