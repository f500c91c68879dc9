"""Rows and tokens that are added on the way in: old rows keep their bits, new ones are what was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_folders import write_model, write_tokenizer
from safetensors.torch import load_file

from forgather_dsl.data.tokenizers import HFTokenizer, load_tokenizer
from forgather_dsl.dsl import load
from forgather_dsl.errors import UserError
from forgather_dsl.interop.export import export
from forgather_dsl.interop.incoming import Vocabulary, import_folder
from forgather_dsl.interop.resize import plan_rows
from forgather_dsl.train import checkpoint
from forgather_dsl.train.weights import alone, read_weights

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def imported(tmp_path: Path, tied: bool, dtype: Any = torch.float32, **options: Any) -> tuple[dict[str, Any], Any, str]:
    """Weights after the way in, the model of transformers, what was said."""
    theirs = write_model(tmp_path / "hf", "Llama", tied, dtype, vocab_size=270)
    write_tokenizer(tmp_path / "hf", vocab_size=262)
    done = import_folder(str(tmp_path / "hf"), str(tmp_path / "run"), Vocabulary(**options), name="It", check=True)
    saved = checkpoint.newest(str(tmp_path / "run" / "checkpoints"), alone())
    assert saved is not None
    names = [EMBEDDING] if tied else [EMBEDDING, HEAD]
    return dict(read_weights(saved, names)), theirs, "\n".join(done.said)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_old_rows_keep_their_bits_and_new_ones_are_the_mean(tied: bool, dtype: Any, tmp_path: Path) -> None:
    """Eight tokens take the spare rows of a padded vocabulary, two and the padding come after row 270."""
    added = [f"<|{number}|>" for number in range(10)]
    found, theirs, said = imported(tmp_path, tied, dtype, added=added[:8], special=added[8:], multiple=64)
    assert "the vocabulary has 320 rows, of 270; 58 rows are new (mean)" in said
    assert "'<|0|>' is 262" in said
    assert "'<|9|>' is 271" in said
    assert "bit for bit" in said
    assert set(found) == ({EMBEDDING} if tied else {EMBEDDING, HEAD})
    for name, tensor in found.items():
        old = theirs.state_dict()[name]
        assert (tensor.shape, tensor.dtype) == ((320, 48), dtype)
        assert torch.equal(tensor[:262], old[:262])
        mean = old[:262].double().mean(0).to(dtype)
        assert torch.equal(tensor[262:], mean.expand(58, 48))
    tokenizer = load_tokenizer(tmp_path / "run" / "tokenizer")
    assert tokenizer.encode("def<|3|>x<|9|>")[-1] == 271
    assert 265 in tokenizer.encode("a<|3|>b")
    content = json.loads((tmp_path / "run" / "tokenizer" / "tokenizer.json").read_text())
    special = {token["content"]: token["special"] for token in content["added_tokens"]}
    assert (special["<|3|>"], special["<|9|>"]) == (False, True)
    spec: Any = load(f"{tmp_path}/run/experiment.py:It")()  # type: ignore[operator]
    assert (spec.model.vocab_size, spec.tokenizer.vocab_size) == (320, 272)


def test_the_way_out_has_the_added_tokens(tmp_path: Path) -> None:
    import transformers

    imported(tmp_path, True, special=["<|turn|>"])
    done = export(str(tmp_path / "run"), "hf", str(tmp_path / "out"))
    assert "bit for bit" in done.said[0]
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs("a<|turn|>b")["input_ids"][1] == 262
    assert theirs.decode([262], skip_special_tokens=True) == ""
    assert "user: hello" in theirs.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    assert (theirs.bos_token, theirs.eos_token) == ("<s>", "</s>")
    ours = HFTokenizer(path=str(tmp_path / "run" / "tokenizer"), eos=None, vocab_size=270)
    text = "def words(text): don't stop 12345<|turn|>"
    assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (0, 1)
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, 1)


def test_without_a_change_nothing_changes(tmp_path: Path) -> None:
    found, theirs, said = imported(tmp_path, False)
    assert "rows" not in said
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in found.items())


def test_new_rows_can_be_drawn(tmp_path: Path) -> None:
    found, theirs, said = imported(tmp_path, False, size=400, new_rows="init")
    assert "130 rows are new (init)" in said
    for name, tensor in found.items():
        assert torch.equal(tensor[:270], theirs.state_dict()[name])
        assert 0.018 < tensor[270:].std() < 0.022
    assert not torch.equal(found[EMBEDDING][270:], found[HEAD][270:])


def test_rows_that_no_token_has_may_go_when_it_is_asked_for(tmp_path: Path) -> None:
    found, theirs, said = imported(tmp_path, True, size=262, drop=True)
    assert "the vocabulary has 262 rows, of 270; none is new" in said
    assert torch.equal(found[EMBEDDING], theirs.state_dict()[EMBEDDING][:262])
    export(str(tmp_path / "run"), "hf", str(tmp_path / "out"))
    assert load_file(tmp_path / "out" / "model.safetensors")[EMBEDDING].shape == (262, 48)


IDS = frozenset(range(262))
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "fewer rows than ids": ({"vocab_size": 200, "drop": True}, "the tokenizer has ids up to 261"),
    "fewer rows, not asked for": ({"vocab_size": 265}, "the model has 270 rows; add --drop-rows if the 5 at the end"),
    "fewer rows, ids unknown": ({"vocab_size": 265, "drop": True, "ids": ()}, "nothing says that the 5 rows"),
    "a multiple of nothing": ({"multiple": 0}, "write 1 or more"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rows_are_not_lost(name: str) -> None:
    options, said = REFUSED[name]
    ids = options.pop("ids", IDS)
    with pytest.raises(UserError) as raised:
        plan_rows(270, ids, ids, **options)
    assert said in str(raised.value)


def test_a_tokenizer_with_more_tokens_than_rows_gets_rows(tmp_path: Path) -> None:
    theirs = write_model(tmp_path / "hf", "Qwen2", True, vocab_size=260)
    write_tokenizer(tmp_path / "hf", vocab_size=262)
    done = import_folder(str(tmp_path / "hf"), str(tmp_path / "run"), check=True)
    assert done.said[0] == "the vocabulary has 262 rows, of 260; 2 rows are new (mean)"
    assert "bit for bit" in done.said[1]
    saved = checkpoint.newest(str(tmp_path / "run" / "checkpoints"), alone())
    assert saved is not None
    ((_, found),) = read_weights(saved, [EMBEDDING])
    old = theirs.state_dict()[EMBEDDING]
    assert torch.equal(found[:260], old)
    assert torch.equal(found[260:], old.double().mean(0).float().expand(2, 48))


def test_ids_beyond_the_rows_get_rows() -> None:
    rows = plan_rows(260, IDS, IDS)
    assert (rows.new, rows.fresh, rows.known) == (262, (260, 261), tuple(range(260)))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"added": ["</s>"]}, "'</s>' is there already, with id 1"),
        ({"added": ["<a>", "<a>"]}, "'<a>' is named twice"),
        ({"special": [""]}, "an empty token would be everywhere"),
        ({"eos": "</S>"}, r"eos='</S>' is not in the vocabulary"),
        ({"tokenizer": "bytes", "added": ["<a>"]}, "has no room for tokens"),
        ({"new_rows": "zero"}, "--new-rows zero: write one of mean, init"),
    ],
)
def test_what_cannot_be_added_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        imported(tmp_path, True, **options)
    assert said in str(raised.value)
    assert not (tmp_path / "run").exists()
