"""Folders for the checks: small models with seeded weights, written as the export writes them."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from codegen import Source
from forgather_dsl.interop.remote import write_code
from forgather_dsl.interop.remote_probe import facts_of

CONFIG = {
    "model_args": {"$type": "Llama", "dim": 48, "rope": {"theta": 10000.0}, "rope_scaling": {"factor": 2.0}},
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def network(source: Source) -> Any:
    """What the text builds, with weights that depend on nothing but names and shapes."""
    module = sys.modules["emitted"] = types.ModuleType("emitted")  # dataclasses look for theirs by name
    exec(source.text, module.__dict__)
    model = getattr(module, source.build)().eval()
    with torch.no_grad():
        for number, tensor in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(number)
            spread = 1.0 if tensor.dim() == 1 else 2.0 / tensor.shape[1] ** 0.5
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)
    return model


def write(
    folder: Path, source: Source, proof: bool = False, dtype: torch.dtype = torch.float32, **config: Any
) -> list[str]:
    """Weights and code; what `write_code` says."""
    folder.mkdir(parents=True)
    tied = facts_of(source).tied
    state = {name: tensor for name, tensor in network(source).state_dict().items() if name not in tied}
    state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    name = str(dtype).removeprefix("torch.")
    return write_code(str(folder), source, {**CONFIG, "torch_dtype": name, **config}, proof)
