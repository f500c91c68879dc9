"""`export --to hf`: a folder that stock classes of transformers load, and whatever reads theirs (vLLM, llama.cpp's converter)."""

from __future__ import annotations

import os
from typing import Any

from ..errors import UserError
from ..train.weights import DTYPES
from .families import to_config
from .folder import write_json, write_tensors
from .outgoing import Outgoing
from .words import GENERATION

__all__ = ["write_stock"]


def stock_config(weights: Outgoing, generation: dict[str, Any]) -> dict[str, Any]:
    """config.json of the stock class. Raises UserError with every reason why there is none, and what to do."""
    try:
        config = to_config(weights.model, weights.experiment.seq_len)
    except UserError as error:
        raise UserError(f"{error}\nwrite --to hf-remote: a folder with the model's own code, for any model") from error
    formats = {entry.dtype for entry in weights.stored.values()}
    config["torch_dtype"] = DTYPES[formats.pop()] if len(formats) == 1 else "float32"
    for role in ("bos_token_id", "eos_token_id", "pad_token_id"):
        config[role] = generation.get(role)
    return config


def write_stock(weights: Outgoing, into: str, proof: bool, generation: dict[str, Any]) -> list[str]:
    """Write configuration and weights into a folder, and compare logits with transformers.

    Returns:
        Lines for the user.

    Raises:
        UserError: no stock class computes this model, with every reason; or logits differ, with the first part.
    """
    config = stock_config(weights, generation)
    write_json(os.path.join(into, "config.json"), config)
    if generation:
        write_json(os.path.join(into, GENERATION), generation)
    write_tensors(into, weights.stored, weights.tensors())
    if not proof:
        return [f"{config['model_type']}; logits were not compared (--no-proof)"]
    from .proof import prove

    return [f"{config['model_type']}; {prove(into, weights.model, weights.tensors, 'this run')}"]
