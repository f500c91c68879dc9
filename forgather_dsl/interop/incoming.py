"""`import`: a Hugging Face folder as a run directory to train on from: weights as a checkpoint of step 0, tokenizer, experiment.

Tensors go from the folder's files into the checkpoint one at a time, bit for bit; rows of the vocabulary may be added. All
is verified before anything is written, and the directory is there whole or not at all.
"""

from __future__ import annotations

import keyword
import os
import shutil
from collections.abc import Sequence
from typing import Any, NamedTuple

from .. import specs
from ..dsl import diff, from_dict, load, replace, to_dict
from ..errors import UserError
from ..specs import Bytes, HFTokenizer, NormalInit
from ..train import checkpoint, directory
from ..train.checkpoint import Source
from ..train.weights import alone, expected, read_weights, require_same, save_weights
from .experiment_text import class_name, experiment_text
from .families import CLASSES, from_config
from .folder import EMBEDDING, HEAD, TYPES, Folder, new_folder, open_folder, require_new, require_room
from .resize import NEW_ROWS, Rows, plan_rows
from .words import GENERATION
from .words_in import Incoming, read_words

__all__ = ["Imported", "Vocabulary", "import_folder"]

STEP_0 = os.path.join("checkpoints", "step-00000000")
OTHER_FILES = 2**25  # bytes
TAKEN = {*specs.__all__, *keyword.kwlist}
_TORCH = {name: dtype for dtype, name in TYPES.items()}


class Vocabulary(NamedTuple):
    """What happens to the rows of the embedding and the head, and to the tokenizer."""

    size: int | None = None  # rows
    multiple: int = 1
    drop: bool = False  # rows may go
    new_rows: str = "mean"
    added: Sequence[str] = ()
    special: Sequence[str] = ()
    tokenizer: str | None = None  # a folder, a tokenizer.json, or "bytes"; None: the model's own
    eos: str | None = None


class Imported(NamedTuple):
    """What was written, and what was seen of it."""

    path: str
    target: str  # file.py:Class of the experiment
    family: str
    tensors: int
    bytes: int
    said: list[str]


def import_folder(
    path: str,
    out: str,
    vocabulary: Vocabulary = Vocabulary(),  # noqa: B008  a tuple
    *,
    name: str | None = None,
    check: bool = False,
    command: list[str] | None = None,
) -> Imported:
    """Write a run directory whose only checkpoint holds the weights of a folder, and an experiment that begins with them.

    Args:
        path: a folder with config.json and safetensors: Llama, Mistral, Qwen 2 or Qwen 3.
        name: of the experiment's class; None: that of the folder. check: compare logits with transformers.

    Raises:
        UserError: with everything that is in the way; nothing is left then.
    """
    require_new(out)
    folder = open_folder(path)
    model = from_config(folder.config, os.path.join(path, "config.json"))
    found = folder.without_copies(model.tie_embeddings)
    require_same(path, found, expected(model, len(found)))
    words = read_words(path, folder.config, vocabulary.tokenizer, vocabulary.eos, vocabulary.added, vocabulary.special)
    rows = _rows(folder, model, words, vocabulary)
    model = replace(model, vocab_size=rows.new)
    spec: Any = Bytes() if words is None else HFTokenizer(path=os.path.join(out, "tokenizer"), vocab_size=len_of(words))
    if spec.vocab_size > rows.new:
        raise UserError(f"{spec.vocab_size} tokens need as many rows, the model has {rows.new}; write --vocab-size")
    title = _title(path, name, str(folder.config["model_type"]))
    file = os.path.join(out, "experiment.py")
    longest = folder.config.get("max_position_embeddings")
    longest = longest if isinstance(longest, int) and longest > 0 else 2048
    family = CLASSES[folder.config["model_type"]].removesuffix("ForCausalLM")
    what = f"The {family} of {os.path.basename(os.path.abspath(path))}"
    text = experiment_text(what, file, title, os.path.join(out, STEP_0), spec, model, longest)
    sources = [_source(folder, key, rows) for key in found]
    total = sum(one.size for one in sources)
    require_room(out, total + OTHER_FILES)
    with new_folder(out) as partial:
        _write_experiment(partial, out, title, text, model, f"{file}:{title}", command)
        _write_words(partial, words, path if vocabulary.tokenizer is None else None)
        save_weights(os.path.join(partial, "checkpoints"), sources)
        said = _told(rows, vocabulary, words)
        if check:
            said.append(_checked(path, model, partial, min((rows.old, rows.new, *rows.fresh))))
    return Imported(out, f"{file}:{title}", str(folder.config["model_type"]), len(sources), total, said)


def len_of(words: Incoming) -> int:
    """Rows that the ids of a tokenizer need."""
    return max(words.after) + 1


def _rows(folder: Folder, model: Any, words: Incoming | None, vocabulary: Vocabulary) -> Rows:
    if vocabulary.new_rows not in NEW_ROWS:
        raise UserError(f"--new-rows {vocabulary.new_rows}: write one of {', '.join(NEW_ROWS)}")
    before, after = (words.before, words.after) if words is not None else ((), ())
    std = folder.config.get("initializer_range")
    return plan_rows(
        model.vocab_size,
        before,
        after,
        vocab_size=vocabulary.size,
        multiple=vocabulary.multiple,
        drop=vocabulary.drop,
        how=vocabulary.new_rows,
        std=std if isinstance(std, float) and std > 0 else NormalInit().std,
    )


def _title(path: str, name: str | None, family: str) -> str:
    if name is not None and (not name.isidentifier() or name.startswith("_") or name in TAKEN):
        raise UserError(f"--name {name!r} is no name for a class of your own")
    otherwise = CLASSES[family].removesuffix("ForCausalLM")
    found = name or class_name(os.path.basename(os.path.abspath(path)), otherwise)
    return f"My{found}" if found in TAKEN else found


def _source(folder: Folder, name: str, rows: Rows) -> Source:
    """A tensor of the checkpoint, read from the folder when its turn comes."""
    entry = folder.stored[name]
    if name in (EMBEDDING, HEAD):
        return Source(
            name, rows.shape(entry.shape), _TORCH[entry.dtype], lambda: rows.resized(name, folder.tensor(name))
        )
    return Source(name, entry.shape, _TORCH[entry.dtype], lambda: folder.tensor(name))


def _write_experiment(
    partial: str, out: str, title: str, text: str, model: Any, target: str, command: list[str] | None
) -> None:
    """experiment.py, and what a run directory says of it; the file is loaded, and has to give this very model."""
    path = os.path.join(partial, "experiment.py")
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    loaded: Any = load(f"{path}:{title}")()  # type: ignore[operator]
    if wrong := diff(loaded.model, model):
        raise AssertionError(f"the experiment that was written has another model: {wrong}")
    data = to_dict(loaded)
    final = os.path.join(
        os.path.realpath(os.path.dirname(os.path.abspath(out))), os.path.basename(os.path.abspath(out))
    )
    data["$type"] = f"{os.path.join(final, 'experiment.py')}:{title}"  # not where it lies until it is whole
    directory.write(from_dict(data), partial, target, command)


def _write_words(partial: str, words: Incoming | None, model_folder: str | None) -> None:
    """The tokenizer's files; what the model's folder says of generation belongs to its own tokenizer."""
    if words is None:
        return
    into = os.path.join(partial, "tokenizer")
    words.tokenizer.save(into)
    if model_folder is not None and os.path.isfile(beside := os.path.join(model_folder, GENERATION)):
        shutil.copyfile(beside, os.path.join(into, GENERATION))


def _told(rows: Rows, vocabulary: Vocabulary, words: Incoming | None) -> list[str]:
    said = []
    if rows.new != rows.old or rows.fresh:
        new = f"{len(rows.fresh)} rows are new ({rows.how})" if rows.fresh else "none is new"
        said.append(f"the vocabulary has {rows.new} rows, of {rows.old}; {new}")
    tokens = [*vocabulary.added, *vocabulary.special]
    if words is not None and tokens:
        ids = [words.tokenizer.loaded.backend.token_to_id(token) for token in tokens]
        said.append("added: " + ", ".join(f"{token!r} is {number}" for token, number in zip(tokens, ids)))
    return said


def _checked(path: str, model: Any, partial: str, rows: int) -> str:
    from .proof import prove

    saved = checkpoint.newest(os.path.join(partial, "checkpoints"), alone())
    assert saved is not None
    return prove(path, model, lambda names: read_weights(saved, names), "the imported model", rows)
