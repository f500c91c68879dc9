"""Emitted models as folders that transformers opens: every promise of the files, in each version that is here.

The checks stand in `remote_opened.py`, which runs once per version in a process without this package. transformers 4.57 is
looked for where FORGATHER_TRANSFORMERS_4 says (`pip install --target DIR --no-deps transformers==4.57.6 'tokenizers<0.23'
'huggingface_hub<1'`).
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from remote_folders import write
from remote_foreign import CAPPED, DATA, OLD_SCHOOL, foreign
from remote_sources import llama

SCRIPT = Path(__file__).with_name("remote_opened.py")
CHECKS = [node.name for node in ast.parse(SCRIPT.read_text()).body if getattr(node, "name", "").startswith("check_")]
OLDER = "FORGATHER_TRANSFORMERS_4"
MUTANTS = {  # (file, what stands there, what is written instead): the check that has to see it
    "buffers are left as they are": (
        "modeling",
        "elif BUFFERS and V5:",
        "elif False:",
        "check_buffers_that_no_file_holds",
    ),
    "the mask is passed over": ("inputs", "return mask.long()", "return None", "check_padding_on_the_left"),
    "positions are passed over": ("inputs", "if position_ids is not None:", "if False:", "check_positions"),
    "the cache starts at 0": ("inputs", "return self.cache.get_seq_length()", "return 0", "check_cache"),
    "tied weights are not": ("modeling", "TIED = {", "TIED = {} and {", "check_tied_weights"),
    "a new size is not made": (
        "modeling",
        'config.vocab_size != DEFAULTS["vocab_size"]',
        "False",
        "check_resized_vocabulary",
    ),
    "layers run once": ("inputs", "return func(forward, *args) if", "return None if", "check_gradient_checkpointing"),
    "an argument is passed over": ("inputs", "if unknown:", "if False:", "check_refusals"),
}

SOME_MUTANTS = ("the mask is passed over", "the cache starts at 0")  # tried in the slow tests


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each kind of model."""
    root = tmp_path_factory.mktemp("folders")
    sources: dict[str, Any] = {"tied": llama(tied=True), "plain": llama(), "window": llama(window=5), "bf16": llama()}
    sources |= {"dropout": llama(dropout=0.1), "old": foreign(OLD_SCHOOL), "capped": foreign(CAPPED)}
    sources |= {"data": foreign(DATA)}
    for name, source in sources.items():
        write(root / name, source, dtype=torch.bfloat16 if name == "bf16" else torch.float32)
    return root


def run(folders: Path, cache: Path, first: str = "", *checks: str) -> dict[str, str]:
    """What `remote_opened.py` says; `first` is where transformers is looked for first."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(cache), "PYTHONPATH": first}
    command = [sys.executable, "-P", str(SCRIPT), str(folders), *checks]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def here(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of the installed version."""
    return run(folders, tmp_path_factory.mktemp("modules"))


@pytest.fixture(scope="module")
def older(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of transformers 4.57."""
    place = os.environ.get(OLDER, "")
    if not place:
        pytest.skip(f"{OLDER} names no folder with transformers 4.57")
    found = run(folders, tmp_path_factory.mktemp("modules"), place)
    assert found["version"].startswith("4.57."), found["version"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_here(check: str, here: dict[str, str]) -> None:
    assert not here[check], f"transformers {here['version']}:\n{here[check]}"


@pytest.mark.parametrize("check", CHECKS)
def test_older(check: str, older: dict[str, str]) -> None:
    assert not older[check], f"transformers {older['version']}:\n{older[check]}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "mutant", [pytest.param(m, marks=[] if m in SOME_MUTANTS else [pytest.mark.exhaustive]) for m in MUTANTS]
)
def test_a_fault_in_the_files_is_seen(mutant: str, folders: Path, tmp_path: Path) -> None:
    part, old, new, check = MUTANTS[mutant]
    shutil.copytree(folders, tmp_path / "folders")
    changed = 0
    for file in (tmp_path / "folders").rglob(f"{part}_*.py"):
        text = file.read_text()
        changed += old in text
        file.write_text(text.replace(old, new))
    assert changed
    assert run(tmp_path / "folders", tmp_path / "modules", "", check)[check]


def test_the_files_are_clean(folders: Path) -> None:
    files = [str(file) for name in ("tied", "old") for file in (folders / name).glob("*_*.py")]
    assert len(files) == 6
    for command in (["check", "--select", "E,F,I,B,UP", "--ignore", "E501"], ["format", "--check", "--diff"]):
        options = ["--isolated", "--line-length", "120", "--target-version", "py311", "--no-cache"]
        ruff = str(Path(sys.executable).with_name("ruff"))
        done = subprocess.run([ruff, *command, *options, *files], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_model_py_is_untouched_and_names_are_its_own(folders: Path) -> None:
    from safetensors import safe_open

    assert (folders / "tied" / "model.py").read_text() == llama(tied=True).text
    with safe_open(folders / "tied" / "model.safetensors", framework="pt") as file:
        assert "model.layers.0.self_attn.q_proj.weight" in set(file.keys())
    config = json.loads((folders / "tied" / "config.json").read_text())
    assert config["architectures"] == ["ForgatherLlamaForCausalLM"]
    assert sorted(config["auto_map"]) == ["AutoConfig", "AutoModel", "AutoModelForCausalLM"]
    assert config["model_args"]["rope_scaling"] == {"factor": 2.0}
    assert config["tie_word_embeddings"] is True
