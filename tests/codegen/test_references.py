"""The references that emitted files are measured against compute what our models do, bit for bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from forgather_dsl.dsl import build, load, override
from forgather_dsl.models.cache import KVCache
from forgather_dsl.models.init import initialise

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SMALL = {"dim": "64", "num_layers": "2", "num_heads": "4", "head_dim": "16", "ffn_dim": "96", "vocab_size": "97"}
PAIRS = {"tiny_llama": "tiny_llama.py:Baseline", "llama7b": "llama7b.py:Llama31PP2"}


def reference(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"reference_{name}", HERE / f"reference_{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", PAIRS)
def test_a_reference_is_our_model(name: str, tmp_path: Path) -> None:
    theirs, experiment = reference(name), load(str(ROOT / "experiments" / PAIRS[name]))()
    with torch.device("meta"):
        whole, ours = theirs.build_model(), build(experiment.model)
    assert {k: v.shape for k, v in whole.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}

    sizes = dict(SMALL) | ({"num_kv_heads": "2"} if name == "llama7b" else {})
    model: Any = build(override(experiment, {f"model.{k}": v for k, v in sizes.items()}).model)
    initialise(model, 3)
    written = theirs.Llama(**{k: int(v) for k, v in sizes.items()}, dropout=0.0)
    theirs.draw_weights(written, 3)
    for key, value in model.state_dict().items():
        assert torch.equal(value, written.state_dict()[key]), key
    _compare(model, written, theirs)

    save_file(model.state_dict(), tmp_path / "model.safetensors")
    theirs.build_model = lambda: theirs.Llama(**{k: int(v) for k, v in sizes.items()}, dropout=0.0)
    tokens = torch.arange(12)[None]
    assert torch.equal(theirs.load_model(str(tmp_path / "model.safetensors"))(tokens), model.eval()(tokens))


def _compare(model: Any, written: Any, theirs: ModuleType) -> None:
    tokens = torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(0))
    documents = (torch.arange(24) // 7).expand(2, -1)
    for rows in (None, documents):
        losses = []
        for each in (model, written):
            each.zero_grad()
            loss = F.cross_entropy(each(tokens, rows)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            losses.append(loss)
        assert torch.equal(*losses)
        gradients = dict(written.named_parameters())
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter.grad, gradients[name].grad), name
    with torch.inference_mode():
        caches = KVCache(), theirs.KVCache()
        for piece in (tokens[:, :10], tokens[:, 10:11], tokens[:, 11:]):
            assert torch.equal(model(piece, None, caches[0]), written(piece, None, caches[1]))
