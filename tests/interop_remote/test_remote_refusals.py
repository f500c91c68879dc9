"""What cannot be remote code is refused with its reasons; what a model only seems to do is found out and not claimed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from remote_folders import write
from remote_foreign import CAPPED, HIDDEN_ONLY, NEEDS_MORE, NO_TOKENS, OLD_SCHOOL, SHARED, foreign
from remote_sources import llama

from codegen import Source
from forgather_dsl.errors import UserError
from forgather_dsl.interop.remote import write_code
from forgather_dsl.interop.remote_files import literal, model_type_of, prefix_of
from forgather_dsl.interop.remote_probe import facts_of

REFUSED = {
    "more than tokens": (NEEDS_MORE, ["images has no default", "sizes has no default"]),
    "no tensor": (HIDDEN_ONLY, ["returns dict"]),
    "shared layers": (SHARED, ["blocks.1.mix.weight shares the tensor of blocks.0.mix.weight"]),
    "no embedding": (NO_TOKENS, ["no nn.Embedding takes the tokens"]),
    "it fails": (OLD_SCHOOL.replace("x = block(x)", "x = block(y)"), ["fails: name 'y' is not defined"]),
}
IN_ONE_PROCESS = """
import json, shutil, sys
from pathlib import Path
from types import SimpleNamespace
from forgather_dsl import Llama
from forgather_dsl.errors import UserError
from forgather_dsl.interop import remote, remote_check
from forgather_dsl.interop.remote_probe import facts_of
from remote_folders import write
from remote_foreign import FORGETS, NOT_CAUSAL, OLD_SCHOOL, foreign

def check(folder, source, facts):
    asked = {"folder": folder, "build": source.build, "vocab_size": facts.vocab_size, "tied": facts.tied}
    asked["on_meta"] = not facts.buffers
    return remote_check.main(asked | {"claims": [n for n in ("cache", "documents") if getattr(facts, n)]})

remote._check = check
found = {}
for name, text in {"old": OLD_SCHOOL, "forgets": FORGETS, "not causal": NOT_CAUSAL}.items():
    try:
        found[name] = write(Path(sys.argv[1]) / name, foreign(text), proof=True)
    except UserError as error:
        found[name] = str(error)
model = Llama(dim=96, num_layers=5, num_heads=6, vocab_size=300, tie_embeddings=True)
weights = SimpleNamespace(experiment=SimpleNamespace(model=model, seq_len=32), stored={}, tensors=dict, size=10)
remote.host_memory, remote.write_tensors = lambda: 19, lambda into, stored, tensors: None
Path(sys.argv[1], "large").mkdir()
found["large"] = remote.write_remote(weights, str(Path(sys.argv[1]) / "large"), True, {})
wrong = Path(sys.argv[1]) / "wrong"
shutil.copytree(Path(sys.argv[1]) / "old", wrong)
code = next(wrong.glob("modeling_*.py"))
code.write_text(code.read_text().replace("self.network(input_ids", "self.network(input_ids.flip(1)"))
source = foreign(OLD_SCHOOL)
found["wrong"] = check(str(wrong), source, facts_of(source))["reasons"]
print(json.dumps(found))
"""


@pytest.mark.parametrize("case", REFUSED)
def test_every_reason_is_said(case: str) -> None:
    text, reasons = REFUSED[case]
    with pytest.raises(UserError) as caught:
        facts_of(foreign(text))
    for reason in reasons:
        assert reason in str(caught.value)
    assert "--to torch" in str(caught.value)


def test_facts_are_found_without_memory() -> None:
    facts = facts_of(llama(tied=True))
    assert facts == facts_of(llama(tied=True, window=4))
    assert (facts.embedding, facts.head, facts.layers) == ("model.embed_tokens", "lm_head", "model.layers")
    assert (facts.vocab_size, facts.hidden_size, facts.num_layers) == (61, 48, 3)
    assert facts.cache
    assert facts.documents
    assert facts.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    old = facts_of(foreign(OLD_SCHOOL))
    assert old.buffers == ("numbers", "blocks.0.kernel", "blocks.1.kernel")
    assert (old.head, old.layers, old.cache, old.documents) == ("out", "blocks", False, False)
    assert facts_of(foreign(CAPPED)).head is None
    huge = OLD_SCHOOL.replace("dim=24, seq=64, depth=2", "dim=16384, seq=64, depth=100")  # 107 GB of weights
    assert facts_of(foreign(huge)).num_layers == 100


def test_packages_beside_torch_are_refused(tmp_path: Path) -> None:
    source = llama()
    needs = Source(source.text, source.root, also=source.also, requirements=("einops",))
    with pytest.raises(UserError, match="needs einops beside torch"):
        write(tmp_path / "folder", needs)


@pytest.mark.slow
def test_what_is_claimed_is_tried(tmp_path: Path) -> None:
    here = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    environment = {
        **os.environ,
        "PYTHONPATH": here,
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-c", IN_ONE_PROCESS, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["old"][0].startswith("logits bit for bit")
    assert "padding on the left is refused; on the right it is right" in found["old"]
    assert "  cache: decoding gives other logits than one forward" in found["forgets"]
    assert "  padding: tokens further on in a row get other logits" in found["forgets"]
    modeling = next((tmp_path / "forgets").glob("modeling_*.py")).read_text()
    assert "CACHE = False" in modeling
    assert "DOCUMENTS = False" in modeling
    assert json.loads((tmp_path / "forgets" / "config.json").read_text())["use_cache"] is False
    assert "no causal language model" in found["not causal"]
    assert "of a twin of" in found["large"][0]
    assert found["large"][1:] == ["not opened: the model itself, for which there is no memory here"]
    config = json.loads((tmp_path / "large" / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (96, 5, 300)
    assert any("logits differ by up to" in reason for reason in found["wrong"])


@pytest.mark.slow
def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    lines = write(tmp_path / "folder", llama(tied=True), proof=True, dtype=torch.bfloat16)
    assert len(lines) == 1, lines
    assert lines[0].startswith("logits bit for bit those of model.py in transformers ")
    assert not (tmp_path / "folder" / "__pycache__").exists()
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="cannot open what was written"):  # there are no weights
        write_code(str(tmp_path / "other"), llama(), {"torch_dtype": "float32", "max_position_embeddings": 8})


def test_names() -> None:
    assert prefix_of("Llama") == "ForgatherLlama"
    assert model_type_of("TinyMoELM") == "forgather_tiny_moe"
    assert prefix_of("LM") == "ForgatherLM"


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": [1.5, None, True], "c": ("x",), "d": {}},
        {f"a long name of a thing {i}": {"and": ["more", "of", "it"] * 12, "é": 'quo"te'} for i in range(3)},
        (),
        ["\n\t"],
        float("1e-05"),
    ],
)
def test_literals_read_back(value: object) -> None:
    import ast

    assert ast.literal_eval(literal(value)) == value
    assert all(len(line) <= 120 for line in literal(value).splitlines())
