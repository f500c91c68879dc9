"""Reading other people's tokenizers: tokenizer.json and tokenizer_config.json, from a folder or the hub.

In: a path or hub id. Out: a `tokenizers.Tokenizer` and its configuration. A tokenizer.json is read by `tokenizers`
alone; only older formats import transformers, which converts them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tokenizers

from forgather_dsl.data.problems import closest
from forgather_dsl.errors import UserError

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
TEMPLATE, SPECIAL = (
    "chat_template.jinja",
    "special_tokens_map.json",
)  # which older folders have within CONFIG, and beside it
NAMES = (FILE, CONFIG, TEMPLATE, SPECIAL)
USUAL_EOS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")  # tried in this order where none is named


def count_tokens(path: str) -> int:
    """Rows that an embedding needs for a tokenizer.json, or a folder with one: the largest id and one.

    Raises: UserError: there is no such file; of the hub nothing is fetched just to count.
    """
    file = Path(path).expanduser()
    file = file / FILE if file.is_dir() else file
    if not file.is_file():
        raise UserError(f"{path}: no {FILE} here to count: write vocab_size=..., which is not fetched from the hub.")
    content = read_json(file)
    try:
        vocabulary = content["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))  # a list in Unigram
        added = [token["id"] for token in content.get("added_tokens", [])]
        return max([*ids, *added]) + 1
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not a {FILE}: no vocabulary in it.") from error


def from_file(path: Path) -> tokenizers.Tokenizer:
    """Raises: UserError: no such file, or not a tokenizer."""
    if not path.is_file():
        near = closest(path.name, [entry.name for entry in path.parent.iterdir()]) if path.parent.is_dir() else None
        raise UserError(f"{path}: no such tokenizer file.{f' Did you mean {near!r}?' if near else ''}")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"{path}: not a {FILE}: {error}") from error


def from_pretrained(path: str) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """Tokenizer and configuration of a local folder or a hub id.

    Raises: UserError: no such folder or hub id, or nothing in it that can be read.
    """
    folder = Path(path).expanduser()
    files = {name: folder / name for name in NAMES} if folder.is_dir() else _fetch(path)
    config: dict[str, Any] = {}
    for name in (SPECIAL, CONFIG):
        config |= read_json(files[name]) if files[name].is_file() else {}
    if files[TEMPLATE].is_file():
        config["chat_template"] = files[TEMPLATE].read_text(encoding="utf-8")
    return (from_file(files[FILE]) if files[FILE].is_file() else _convert(path)), config


def _fetch(hub_id: str) -> dict[str, Path]:
    """The files of a hub tokenizer, from the hub's cache where they are; a missing one as a path to nothing."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    files = {}
    for name in NAMES:
        try:
            files[name] = Path(huggingface_hub.hf_hub_download(hub_id, name))
        except Exception as error:  # many kinds: no network, no such repository, not a name for one, no access
            if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
                files[name] = Path(name + ".missing")  # the repository is there and has no such file
                continue
            where = f"HFTokenizer(path={hub_id!r}): no such folder, and not to be had from the hub"
            raise UserError(f"{where}: {type(error).__name__}: {error}") from error
    return files


def _convert(path: str) -> tokenizers.Tokenizer:
    import transformers

    try:
        return transformers.AutoTokenizer.from_pretrained(path, trust_remote_code=False).backend_tokenizer
    except Exception as error:  # whatever a converter trips over
        where = f"HFTokenizer(path={path!r}): no {FILE}, and transformers cannot make one"
        raise UserError(f"{where}: {type(error).__name__}: {error}") from error


def find_eos(backend: tokenizers.Tokenizer, eos: str | None, where: str) -> str:
    """The token that separates documents: the one named, else a usual one.

    Raises: UserError: it is not in the vocabulary, or none is named and none of the usual ones is there.
    """
    special = [token.content for token in backend.get_added_tokens_decoder().values() if token.special]
    have = f"special tokens here: {', '.join(map(repr, special)) or 'none'}"
    if eos is None:
        usual = [name for name in USUAL_EOS if name in special]
        if not usual:
            raise UserError(f"{where}: which token ends a document? Write eos='...'; {have}.")
        return usual[0]
    if backend.token_to_id(eos) is None:
        near = closest(eos, special) or closest(eos, backend.get_vocab())
        hint = f" Did you mean eos={near!r}?" if near else ""
        raise UserError(f"{where}: eos={eos!r} is not in the vocabulary; {have}.{hint}")
    return eos


def read_json(path: Path) -> dict[str, Any]:
    """Raises: UserError: the file is not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object.")
    return content
