"""Before torch: the words that the two ways know, and what a folder is that somebody names as a model of Hugging Face."""

from __future__ import annotations

import os
import re
from typing import Any

from ..dsl.reading import read_json
from ..errors import UserError

KINDS = ("torch", "hf", "hf-remote", "gguf")  # of what is exported
DTYPES = ("float32", "bfloat16", "float16")
NEW_ROWS = ("mean", "init")  # of a vocabulary that grows
_PICKLE = re.compile(r".*\.(bin|pt|pth|pkl|pickle|ckpt)")


def require_weights(path: str) -> None:
    """Raises UserError unless `path` is a folder with a configuration and safetensors; says what it is instead. Opens no file."""
    if not os.path.isdir(path):
        raise UserError(f"{path} is no folder; write a folder with config.json and model.safetensors")
    names = sorted(os.listdir(path))
    if "checkpoints" in names:
        raise UserError(
            f'{path} is a run directory of this package; to begin with its weights, write init_from = "{path}" in an experiment'
        )
    if "adapter_config.json" in names:
        raise UserError(
            f"{path} holds an adapter (adapter_config.json), not a model; merge it into its base model first: "
            "merge_and_unload() of peft, then save_pretrained"
        )
    if any(name.endswith(".safetensors") for name in names):
        return
    if quantised := [name for name in names if name.endswith(".gguf")]:
        raise UserError(
            f"{path} holds GGUF ({quantised[0]}), which is read by llama.cpp; fetch the safetensors instead"
        )
    if pickles := [name for name in names if _PICKLE.fullmatch(name)]:
        raise UserError(
            f"{path} holds its weights as pickles ({', '.join(pickles[:3])}), and opening a pickle can run any code; "
            "fetch the safetensors of the model, or write them with save_pretrained of transformers where that may happen"
        )


def read_config(path: str, name: str = "config.json") -> dict[str, Any]:
    """config.json of a folder, or another file there. Raises UserError (LoadError for what is no JSON)."""
    file = os.path.join(path, name)
    config = read_json(file)
    if not isinstance(config, dict):
        raise UserError(f"{file} is not a JSON object")
    return config
