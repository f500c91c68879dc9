"""The loader in emitted files, and the writer beside it, against the safetensors package."""

from __future__ import annotations

import json
import os
import types

import pytest
import safetensors.torch
import torch
from store import FORMATS, Store

from codegen import CodegenError, trace
from codegen.weights import save, untied


@pytest.fixture(scope="module")
def emitted():
    module = types.ModuleType("emitted_store")
    exec(compile(trace(Store()).text, "model.py", "exec"), module.__dict__)
    return module


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(5)
    model = Store()
    for index in range(len(FORMATS)):
        buffer = getattr(model, f"of{index}")
        buffer.copy_(torch.randint(0, 2, buffer.shape).to(buffer.dtype))
    return model


def same(found, model) -> bool:
    ours, theirs = found.state_dict(), model.state_dict()
    assert list(ours) == list(theirs)
    assert found.again.weight is found.linear.weight
    assert not found.training
    return all(
        ours[name].dtype == value.dtype
        and ours[name].shape == value.shape
        and ours[name].contiguous().flatten().view(torch.uint8).equal(value.contiguous().flatten().view(torch.uint8))
        for name, value in theirs.items()
    )


def test_what_is_written_is_what_safetensors_reads(model, tmp_path):
    tensors = untied(model.state_dict())
    assert "again.weight" not in tensors
    save(tmp_path / "own.safetensors", tensors)
    read = safetensors.torch.load_file(tmp_path / "own.safetensors")
    assert set(read) == set(tensors)
    for name, value in tensors.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name].float(), value.float())
    assert os.listdir(tmp_path) == ["own.safetensors"]


def test_views_and_other_strides(tmp_path):
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {"turned": whole.t(), "part": whole[1:3, ::2], "wide": whole.expand(2, 4, 6)}
    save(tmp_path / "a", untied(tensors))
    read = safetensors.torch.load_file(tmp_path / "a")
    assert all(torch.equal(read[name], value) for name, value in tensors.items())


def test_the_loader_reads_what_is_written_here(emitted, model, tmp_path):
    save(tmp_path / "model.safetensors", untied(model.state_dict()))
    assert same(emitted.load_model(str(tmp_path / "model.safetensors")), model)


def test_the_loader_reads_what_safetensors_writes(emitted, model, tmp_path):
    """Which sorts by format and name, so that some tensors begin at odd bytes."""
    state = dict(model.state_dict())
    del state["linear.weight"], state["again.weight"]
    state["linear.weight"] = model.linear.weight
    safetensors.torch.save_file(state, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    assert same(emitted.load_model(str(tmp_path / "theirs.safetensors")), model)


def test_the_loader_reads_shards(emitted, model, tmp_path):
    names = list(untied(model.state_dict()))
    tensors = untied(model.state_dict())
    table = {}
    for number, part in enumerate((names[:5], names[5:6], names[6:])):
        shard = f"model-{number}.safetensors"
        save(tmp_path / shard, {name: tensors[name] for name in part})
        table |= dict.fromkeys(part, shard)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": table}))
    assert same(emitted.load_model(str(index)), model)
    table.pop("linear.bias")
    (tmp_path / "model-0.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model-0\.safetensors"):
        emitted.load_model(str(index))


def test_the_loader_refuses_files_that_are_cut_short(emitted, model, tmp_path):
    path = tmp_path / "model.safetensors"
    save(path, untied(model.state_dict()))
    whole = path.read_bytes()
    for size in (*range(12), 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=f"model.safetensors is cut short, or no safetensors file: {size} bytes"):
            emitted.load_model(str(path))
    path.write_bytes(b"no such thing at all" * 9)
    with pytest.raises(ValueError, match="no safetensors file"):
        emitted.load_model(str(path))


def test_the_loader_is_strict(emitted, model, tmp_path):
    tensors = untied(model.state_dict())
    path = tmp_path / "model.safetensors"
    save(path, {name: value for name, value in tensors.items() if name != "linear.bias"})
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "linear.bias"'):
        emitted.load_model(str(path))
    save(path, {**tensors, "more": torch.ones(2)})
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "more"'):
        emitted.load_model(str(path))
    save(path, {**tensors, "linear.bias": torch.ones(4)})
    with pytest.raises(RuntimeError, match=r"size mismatch for linear\.bias"):
        emitted.load_model(str(path))


def test_what_no_file_can_hold():
    with pytest.raises(CodegenError) as caught:
        untied({"state": {"version": 2}, "sparse": torch.ones(2, 2).to_sparse(), "meta": torch.ones(2, device="meta")})
    text = str(caught.value)
    assert "state of type dict, which is no tensor" in text
    assert "sparse is torch.float32, torch.sparse_coo" in text
    assert "meta is on the meta device" in text
