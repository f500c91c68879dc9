"""Run as a script by `remote`: is the model that transformers makes of a folder the one that its model.py makes?

In: one JSON argument. Out: the last line printed, JSON: {version, reasons: why not, cannot: {claim: why it does not hold}}.
This package is blocked, so that nothing in the folder can lean on it. The two models are in memory one after the other.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import json
import os
import sys
import types
from typing import Any

import torch
from torch import Tensor

ROWS, LENGTH = 2, 12
BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 6e-2, torch.float16: 1e-2}  # of the largest logit, where order changes


class _Blocked:
    """Finds nothing of this package."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Raises ImportError for names that the folder must not need."""
        if name.partition(".")[0] in ("forgather_dsl", "codegen"):
            raise ImportError(f"{name} is not there where the folder is opened")


def standalone(folder: str, build: str, tied: dict[str, str], on_meta: bool) -> torch.nn.Module:
    """What model.py makes of the weights in the folder, without transformers."""
    from safetensors.torch import load_file

    spec = importlib.util.spec_from_file_location("standalone_model", os.path.join(folder, "model.py"))
    assert spec is not None
    assert spec.loader is not None
    module: types.ModuleType = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for theirs by name
    spec.loader.exec_module(module)
    with torch.device("meta" if on_meta else "cpu"):
        model = getattr(module, build)()
    state: dict[str, Tensor] = {}
    for file in sorted(glob.glob(os.path.join(folder, "*.safetensors"))):
        state |= load_file(file)
    state |= {alias: state[owner] for alias, owner in tied.items() if owner in state}
    model.load_state_dict(state, assign=True)
    return model.eval()


def remote(folder: str) -> tuple[Any, dict[str, list[str]]]:
    """What transformers makes of the folder, and what it says of the loading."""
    from transformers import AutoModelForCausalLM

    options: Any = {"trust_remote_code": True, "dtype": "auto", "output_loading_info": True}
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
    model, info = loaded
    return model.eval(), {name: sorted(map(str, found)) for name, found in info.items() if found}


def differences(model: Any, info: dict[str, list[str]], tokens: Tensor, expected: Tensor) -> list[str]:
    """Everything in which the model is not the expected one, or no causal language model."""
    reasons = [f"{name}: {', '.join(found[:5])}" for name, found in info.items()]
    logits = model(tokens).logits
    if logits.dtype != expected.dtype or not torch.equal(logits, expected):
        apart = (logits.double() - expected.double()).abs().max().item()
        reasons.append(f"logits differ by up to {apart:.3g}")
    loss = model(tokens, labels=tokens).loss
    by_hand = torch.nn.functional.cross_entropy(expected[:, :-1].flatten(0, 1).float(), tokens[:, 1:].flatten())
    if not torch.allclose(loss, by_hand, rtol=1e-4):
        reasons.append(f"the loss of transformers is {loss:.6f}, of these logits {by_hand:.6f}")
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % expected.shape[2]
    if not _close(model(changed).logits[:, :-1], expected[:, :-1]):
        reasons.append("the last token changes what is expected before it: this is no causal language model")
    return reasons


def cache_fails(model: Any, tokens: Tensor, expected: Tensor) -> str:
    """Why decoding with a cache is not one forward over everything; empty if it is."""
    from transformers import DynamicCache

    past, pieces = DynamicCache(), []
    try:
        for piece in tokens.split([LENGTH - 5, 2, 1, 1, 1], dim=1):
            pieces.append(model(piece, past_key_values=past, use_cache=True).logits)
        mask = torch.ones(ROWS, 4, dtype=torch.int64)
        model.generate(tokens[:, :4], attention_mask=mask, max_new_tokens=3, do_sample=False, pad_token_id=0)
    except Exception as error:
        return f"cache: {type(error).__name__}: {error}"
    return "" if _close(torch.cat(pieces, dim=1), expected) else "cache: decoding gives other logits than one forward"


def padding_fails(model: Any, tokens: Tensor, expected: Tensor) -> str:
    """Why rows padded on the left are not the rows themselves; empty if they are."""
    pad, mask = tokens[:, :3].flip(1), torch.ones(ROWS, LENGTH + 3, dtype=torch.int64)
    mask[:, :3] = 0
    try:
        padded = model(torch.cat((pad, tokens), dim=1), attention_mask=mask).logits[:, 3:]
    except Exception as error:
        return f"padding: {type(error).__name__}: {error}"
    return "" if _close(padded, expected) else "padding: tokens further on in a row get other logits"


def _close(left: Tensor, right: Tensor) -> bool:
    bound = BOUNDS.get(right.dtype, 1e-3) * right.abs().max().item()
    return bool((left.double() - right.double()).abs().max() <= bound)


@torch.no_grad()
def main(asked: dict[str, Any]) -> dict[str, Any]:
    """Compare, and try what the files claim."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, asked["vocab_size"], (ROWS, LENGTH), generator=generator)
    expected = standalone(asked["folder"], asked["build"], asked["tied"], asked["on_meta"])(tokens)
    import transformers

    transformers.logging.set_verbosity_error()
    model, info = remote(asked["folder"])
    trials = {"cache": cache_fails, "documents": padding_fails}
    return {
        "version": transformers.__version__,
        "reasons": differences(model, info, tokens, expected),
        "cannot": {claim: trials[claim](model, tokens, expected) for claim in asked["claims"]},
    }


if __name__ == "__main__":
    sys.meta_path.insert(0, _Blocked())  # type: ignore[arg-type]
    with contextlib.redirect_stdout(sys.stderr):
        found = main(json.loads(sys.argv[1]))
    print(json.dumps(found))
