"""Tokenizers on their way out: of every kind a run can have, with chat template and the ids at the ends of texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hf_folders import TEMPLATE, write_tokenizer
from runs_of_weights import SIZES, Tiny, left, random_weights, write_corpus

from forgather_dsl import Bytes, GroupedQueryAttention, HFTokenizer, Llama, TextFiles, TokenizerFile, TrainedBPE
from forgather_dsl.dsl import build, replace
from forgather_dsl.errors import UserError
from forgather_dsl.interop.export import export
from forgather_dsl.interop.words import begins_texts
from forgather_dsl.train import directory
from forgather_dsl.train.checkpoint.snapshot import source
from forgather_dsl.train.weights import save_weights

TEXT = "a line of text to learn from, don't 12345\n caf\u00e9"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus")


def run_with(folder: Path, corpus: Path, tokenizer: Any, **changes: Any) -> str:
    """A run directory whose text was split by `tokenizer`."""
    model = Llama(**{**SIZES, "vocab_size": 300}, **changes)
    data = TextFiles(paths=(str(corpus),), held_out=0.0)
    tokenizer = tokenizer if tokenizer is not None else TrainedBPE(vocab_size=270, source=data)
    one: Any = Tiny(model=model, data=data, tokenizer=tokenizer)
    directory.write(one, str(folder / "run"), None, [])
    weights = [source(name, tensor) for name, tensor in random_weights(model).items()]
    save_weights(str(folder / "run" / "checkpoints"), weights)
    return str(folder / "run")


def kinds(folder: Path) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Tokenizers, and what generation has to know with each."""
    write_tokenizer(folder / "words")
    sampling = {"eos_token_id": [1, 5], "temperature": 0.6, "do_sample": True}
    write_tokenizer(folder / "sampled", pad_token="<s>")
    (folder / "sampled" / "generation_config.json").write_text(json.dumps(sampling))
    return {
        "trained": (None, {"bos_token_id": 0, "eos_token_id": 0}),
        "bytes": (Bytes(), {"bos_token_id": 256, "eos_token_id": 256}),
        "file": (TokenizerFile(path=str(folder / "words" / "tokenizer.json")), {"bos_token_id": 1, "eos_token_id": 1}),
        "hf": (HFTokenizer(path=str(folder / "words")), {"bos_token_id": 0, "eos_token_id": 1}),
        "hf with sampling": (
            HFTokenizer(path=str(folder / "sampled")),
            {"bos_token_id": 0, "pad_token_id": 0, **sampling},
        ),
    }


@pytest.mark.parametrize("kind", ["trained", "bytes", "file", "hf", "hf with sampling"])
def test_transformers_splits_text_as_the_run_did(kind: str, tmp_path: Path, corpus: Path) -> None:
    spec, generation = kinds(tmp_path)[kind]
    run = run_with(tmp_path, corpus, spec)
    done = export(run, "hf", str(tmp_path / "out"))
    assert len(done.said) == 1
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    ours = build(directory.read_config(run).tokenizer)
    assert theirs(TEXT, add_special_tokens=False)["input_ids"] == ours.encode(TEXT)
    assert theirs.eos_token_id == ours.eos_id
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == generation
    assert (tmp_path / "out" / "chat_template.jinja").exists() == kind.startswith("hf")
    if kind == "hf":
        assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATE
        assert theirs.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "user: hi\n"
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.generation_config.eos_token_id == generation["eos_token_id"]
    assert begins_texts(ours) == (kind in ("trained", "bytes", "file"))


def test_a_class_that_splits_otherwise_is_told(tmp_path: Path, corpus: Path) -> None:
    """AutoTokenizer takes the class of Qwen 2 for any tokenizer of one: composed accents become one letter."""
    run = run_with(tmp_path, corpus, Bytes(), attention=GroupedQueryAttention(bias=True))
    done = export(run, "hf", str(tmp_path / "out"))
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")
    text = "a\u0301"
    assert theirs(text)["input_ids"] == list(text.encode())
    if transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"] != list(text.encode()):
        assert "load the tokenizer with PreTrainedTokenizerFast.from_pretrained: AutoTokenizer splits" in done.said[1]
    else:
        assert len(done.said) == 1


def test_a_tokenizer_that_is_gone_is_told_and_can_be_left_out(tmp_path: Path, corpus: Path) -> None:
    write_tokenizer(tmp_path / "words")
    run = run_with(tmp_path, corpus, HFTokenizer(path=str(tmp_path / "words")))
    (tmp_path / "words").rename(tmp_path / "gone")
    with pytest.raises(UserError, match=r"the tokenizer of this run cannot be had: .*--no-tokenizer to leave it out"):
        export(run, "hf", str(tmp_path / "out"))
    assert left(tmp_path) == ["gone", "run"]
    done = export(run, "hf", str(tmp_path / "out"), tokenizer=False)
    assert done.said[1] == "no tokenizer was written (--no-tokenizer)"
    assert set(done.files) == {"config.json", "model.safetensors"}


def test_a_corpus_that_is_gone_takes_its_tokenizer_along(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    run = run_with(tmp_path, corpus, None)
    corpus.rename(tmp_path / "gone")
    with pytest.raises(UserError, match=r"cannot be had: .*--no-tokenizer"):
        export(run, "hf", str(tmp_path / "out"))
    one = replace(directory.read_config(run), tokenizer=Bytes())
    assert "tokenizer.json" in export(run, "hf", str(tmp_path / "out"), one).files
