"""`export --to hf-remote` from a run's checkpoint to logits in transformers, with shards and a tokenizer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from forgather_dsl import FP32, Bytes, Cycle, Experiment, GroupedQueryAttention, Llama, SlidingWindow, TextFiles
from forgather_dsl.dsl import build
from forgather_dsl.interop.export import export
from forgather_dsl.models.init import initialise
from forgather_dsl.train import directory
from forgather_dsl.train.checkpoint.snapshot import source
from forgather_dsl.train.weights import save_weights

OPEN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype="auto").eval()
words = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
tokens = torch.arange(3, 13)[None]
with torch.no_grad():
    logits = model(tokens).logits
text = model.generate(tokens, max_new_tokens=4, do_sample=False)
print(model.dtype, float(logits.double().abs().sum()), words.decode(words("plain text").input_ids), text.shape[1])
torch.save(logits, sys.argv[2])
"""


class Mixed(Experiment):
    """Layers of two kinds."""

    seq_len = 32
    batch_size = 4
    steps = 2
    sampling = None
    loggers = ()
    eval_data = None
    tokenizer = Bytes()
    precision = FP32()
    model = Llama(
        dim=32,
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        ffn_dim=48,
        vocab_size=257,
        tie_embeddings=True,
        attention=Cycle(GroupedQueryAttention(), SlidingWindow(window=4)),
    )


@pytest.mark.slow
def test_from_a_run_to_logits(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("a line of text\n" * 50)
    experiment = Mixed(data=TextFiles(paths=(str(tmp_path / "corpus.txt"),), held_out=0.0))
    network = build(experiment.model)
    initialise(network, 3)
    run = tmp_path / "run"
    directory.write(experiment, str(run), "mixed.py:Mixed", [])
    weights = [source(name, parameter.detach()) for name, parameter in network.named_parameters()]
    save_weights(str(run / "checkpoints"), weights)
    out = tmp_path / "out"
    done = export(str(run), "hf-remote", str(out), dtype="bfloat16", shard_bytes=10_000)
    assert done.said[0].startswith("logits bit for bit those of model.py in transformers"), done.said
    files = set(done.files)
    assert {"model.py", "config.json", "generation_config.json", "model.safetensors.index.json"} <= files
    assert {"tokenizer.json", "modeling_forgather_llama.py"} <= files
    assert "model.safetensors" not in files
    config = json.loads((out / "config.json").read_text())
    assert (config["torch_dtype"], config["vocab_size"], config["max_position_embeddings"]) == ("bfloat16", 257, 32)
    assert config["eos_token_id"] == 256
    assert config["model_args"]["attention"]["options"][1] == {
        **config["model_args"]["attention"]["options"][0],
        "$type": "SlidingWindow",
        "window": 4,
    }
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", OPEN, str(out), str(tmp_path / "logits.pt")]
    opened = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert opened.returncode == 0, opened.stderr[-3000:]
    assert opened.stdout.split()[0] == "torch.bfloat16"
    assert opened.stdout.split()[2:] == ["plain", "text", "14"]
    with torch.no_grad():
        expected = network.to(torch.bfloat16).eval()(torch.arange(3, 13)[None])
    assert torch.equal(torch.load(tmp_path / "logits.pt"), expected)
