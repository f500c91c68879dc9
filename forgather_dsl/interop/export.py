"""`export`: a run's weights as the rest of the world reads them. The order of things, the same for every kind:

the checkpoint is verified, what cannot be written is refused, room is looked for, everything is written into a folder of
another name and compared there, and that folder is renamed. So what stands at `out` was proven, or says that it was not.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from ..errors import UserError
from ..specs import Experiment
from .folder import SHARD_BYTES, new_folder, require_new, require_room
from .outgoing import Outgoing, open_outgoing

__all__ = ["DTYPES", "KINDS", "Exported", "export"]

KINDS = ("torch", "hf", "hf-remote", "gguf")
DTYPES = ("float32", "bfloat16", "float16")
OTHER_FILES = 2**25  # bytes: a tokenizer, configurations and code


class Exported(NamedTuple):
    """What was written, and what was seen of it."""

    path: str
    kind: str
    tensors: int
    bytes: int  # of tensors
    said: list[str]
    files: list[str]


def export(
    source: str,
    kind: str,
    out: str,
    experiment: Experiment | None = None,
    dtype: str | None = None,
    *,
    proof: bool = True,
    tokenizer: bool = True,
    trust: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Write the weights of a run's newest checkpoint, or of a checkpoint, into a new folder.

    Args:
        source: a run directory or a checkpoint folder; experiment: what was trained, None: what the run says.
        dtype: one of `DTYPES`; None: as the tensors are stored. proof: compare with what will read it.

    Raises:
        UserError: with everything that is in the way; nothing is left then.
    """
    if kind not in KINDS or (dtype is not None and dtype not in DTYPES):
        raise UserError(f"{kind!r}, {dtype!r}: write one of {', '.join(KINDS)}, and one of {', '.join(DTYPES)}")
    require_new(out)
    weights = open_outgoing(source, experiment, dtype, shard_bytes, trust=trust)
    _refuse_early(kind, weights)
    words: Any = None
    generation: dict[str, Any] = {}
    if tokenizer:
        from .words import generation_of, tokenizer_of

        words = tokenizer_of(weights.experiment)
        generation = generation_of(weights.experiment, words)
    if kind == "gguf":
        from .gguf_file import require_gguf

        require_gguf(weights, words, source)
    require_room(out, weights.size + OTHER_FILES)
    with new_folder(out) as partial:
        said = _write(kind, weights, partial, out, proof, words, generation)
        if words is not None and kind != "gguf":
            from .words import write_tokenizer

            said += write_tokenizer(words, partial, check=proof and kind != "torch")
        files = sorted(os.listdir(partial))
    if words is None and kind != "gguf":
        said.append("no tokenizer was written (--no-tokenizer)")
    return Exported(out, kind, len(weights.stored), weights.size, said, files)


def _refuse_early(kind: str, weights: Outgoing) -> None:
    """What the configuration alone decides, before anything else is read."""
    if kind == "hf":
        from .stock import stock_config

        stock_config(weights, {})
    if kind == "gguf":
        from .families import to_config

        to_config(weights.model, weights.experiment.seq_len)


def _write(
    kind: str, weights: Outgoing, into: str, out: str, proof: bool, words: Any, generation: dict[str, Any]
) -> list[str]:
    """Everything but the tokenizer's files; lines for the user."""
    if kind == "hf":
        from .stock import write_stock

        return write_stock(weights, into, proof, generation)
    if kind == "gguf":
        from .gguf_file import write_gguf

        return write_gguf(weights, into, os.path.basename(os.path.abspath(out)), proof, words)
    if kind == "torch":
        from .standalone import write_standalone

        return write_standalone(weights, into, proof)
    from .remote import write_remote

    return write_remote(weights, into, proof, generation)
