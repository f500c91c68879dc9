"""The proof finds what is wrong: the first part that differs, by how much; and it works without memory for a whole model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from runs_of_weights import MODELS, left, make_run, random_weights, write_corpus
from safetensors.torch import load_file, save_file

from forgather_dsl.cli.app import run_command
from forgather_dsl.errors import UserError
from forgather_dsl.interop import families, proof, stock
from forgather_dsl.interop.export import export
from forgather_dsl.interop.outgoing import Outgoing


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus")


def run_of(tmp_path: Path, name: str, corpus: Path) -> str:
    make_run(tmp_path / "run", MODELS[name], corpus, random_weights(MODELS[name]))
    return str(tmp_path / "run")


def changed(key: str, value: Any) -> Any:
    """A `to_config` that gets one thing wrong."""
    right = families.to_config

    def wrong(model: Any, max_position: int) -> dict[str, Any]:
        return {**right(model, max_position), key: value}

    return wrong


WRONG = {  # what is wrong in config.json: model, key, value, and the first part that differs
    "rotation": ("llama", "rope_theta", 123.0, "model.layers.0"),
    "eps": ("llama", "rms_norm_eps", 0.1, "model.layers.0"),
    "window": ("mistral", "sliding_window", 3, "model.layers.0"),
    "stretching": ("llama3-tied", "rope_scaling", None, "model.layers.0"),
    "some layers": ("qwen2-window", "max_window_layers", 2, "model.layers.0"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_configuration_is_refused_with_the_first_part_that_differs(
    name: str, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, key, value, part = WRONG[name]
    monkeypatch.setattr(stock, "to_config", changed(key, value))
    with pytest.raises(UserError) as raised:
        export(run_of(tmp_path, model, corpus), "hf", str(tmp_path / "hf"))
    said = str(raised.value)
    assert f"does not compute what this run does: {part} is the first part that differs, by up to " in said
    assert float(re.findall(r"by up to (\S+)", said)[0]) > 1e-4
    assert "is the first module in it" in said
    assert left(tmp_path) == ["run"]


def swapped(one: str, other: str) -> Any:
    """An order of tensors in which two of one shape have changed places."""
    right = Outgoing.tensors

    def wrong(self: Outgoing, names: Any = None) -> Any:
        for name, tensor in right(self, names):
            yield {one: other, other: one}.get(name, name) if names is None else name, tensor

    return wrong


SWAPPED = {
    "model.layers.2": ("model.layers.2.mlp.up_proj.weight", "model.layers.2.mlp.gate_proj.weight", "mlp.gate_proj"),
    "model.layers.1": ("model.layers.1.self_attn.k_proj.weight", "model.layers.1.self_attn.v_proj.weight", "self_attn.k_proj"),
    "model.embed_tokens": ("model.embed_tokens.weight", "lm_head.weight", ""),
}  # fmt: skip


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("part", SWAPPED)
def test_tensors_in_each_others_place_are_found(
    part: str, whole: bool, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, module = SWAPPED[part]
    monkeypatch.setattr(Outgoing, "tensors", swapped(one, other))
    if not whole:
        monkeypatch.setattr(proof, "_free_memory", lambda: 1000)
    with pytest.raises(UserError) as raised:
        export(run_of(tmp_path, "llama", corpus), "hf", str(tmp_path / "hf"))
    assert f"{part} is the first part that differs" in str(raised.value)
    assert (f"({part}.{module} is the first module in it)" in str(raised.value)) == bool(module)
    assert left(tmp_path) == ["run"]


@pytest.mark.parametrize("name", MODELS)
def test_part_by_part_it_sees_the_same(
    name: str, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "_free_memory", lambda: 1000)
    done = export(run_of(tmp_path, name, corpus), "hf", str(tmp_path / "hf"), shard_bytes=60_000)
    assert "read part by part, as there is no memory for all of it" in done.said[0]
    assert done.said[0].endswith("the same logits, bit for bit")


def test_a_tensor_that_transformers_does_not_take_is_told(tmp_path: Path, corpus: Path) -> None:
    export(run_of(tmp_path, "llama", corpus), "hf", str(tmp_path / "hf"), proof=False)
    file = tmp_path / "hf" / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file({**weights, "extra.weight": torch.zeros(2)}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"does not take these weights: .*up_proj.*extra\.weight|extra.*up_proj"):
        proof.prove(str(tmp_path / "hf"), MODELS["llama"], lambda names: iter(()), "it")


def test_without_a_proof_it_says_so(tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path, "qwen3", corpus)
    assert run_command(["export", run, "--to", "hf", "--out", str(tmp_path / "hf"), "--no-proof", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["said"] == ["qwen3; logits were not compared (--no-proof)"]
    assert done["files"] == sorted(path.name for path in (tmp_path / "hf").iterdir())
