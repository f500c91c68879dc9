"""A folder of Hugging Face as an experiment, so that it can be evaluated as runs are: its model, its tokenizer, no data."""

from __future__ import annotations

import os

from ..specs import Experiment, HFTokenizer
from .experiment_text import LONGEST
from .families import from_config
from .place import read_config, require_weights

__all__ = ["HuggingFaceModel", "experiment_of"]


class HuggingFaceModel(Experiment):
    """What a folder holds."""

    steps = 1
    eval_data = None
    sampling = None


def experiment_of(path: str) -> Experiment:
    """The experiment whose model and tokenizer are those of a folder. Raises UserError for a model that is not known here."""
    require_weights(path)
    config = read_config(path)
    model = from_config(config, os.path.join(path, "config.json"))
    longest = config.get("max_position_embeddings")
    seq_len = min(longest, LONGEST) if isinstance(longest, int) and longest > 0 else LONGEST
    return HuggingFaceModel(model=model, tokenizer=HFTokenizer(path=path), seq_len=seq_len)
