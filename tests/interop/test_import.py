"""What enters: folders of transformers as checkpoints, bit for bit, or one message with everything that is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_folders import STRETCHED, TEMPLATE, write_model, write_tokenizer
from runs_of_weights import (
    MODELS,
    experiment,
    largest_difference,
    left,
    logits,
    random_weights,
    tokens,
    write_corpus,
    write_hf,
)
from safetensors.torch import load_file

from forgather_dsl import RMSNorm, replace
from forgather_dsl.cli.app import run_command
from forgather_dsl.dsl import diff, load
from forgather_dsl.errors import UserError
from forgather_dsl.interop.experiment_text import class_name
from forgather_dsl.interop.export import export
from forgather_dsl.interop.families import from_config, to_config
from forgather_dsl.interop.incoming import Vocabulary, import_folder
from forgather_dsl.train import checkpoint
from forgather_dsl.train.first_weights import require_first_weights
from forgather_dsl.train.weights import alone

BYTES = Vocabulary(tokenizer="bytes")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus")


def weights_in(run: Path) -> dict[str, torch.Tensor]:
    """Of the newest checkpoint of a run."""
    saved = checkpoint.newest(str(run / "checkpoints"), alone())
    assert saved is not None
    return {key.removeprefix("weights/"): tensor for key, tensor in saved.tensors(saved.stored())}


FAMILIES = {"Llama": False, "Mistral": True, "Qwen2": False, "Qwen3": True}  # tied or not; the ranks have the others


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes_is_read(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    theirs = write_model(tmp_path / "hf", family, FAMILIES[family], dtype)
    done = import_folder(str(tmp_path / "hf"), str(tmp_path / "run"), BYTES, check=True)
    assert "the same logits, bit for bit" in done.said[0]
    ours: Any = load(f"{tmp_path}/run/experiment.py:Hf")().model  # type: ignore[operator]
    weights, state = weights_in(tmp_path / "run"), theirs.state_dict()
    assert all(torch.equal(tensor, state[name]) and tensor.dtype == dtype for name, tensor in weights.items())
    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        found = logits(ours, {n: w.float() for n, w in weights.items()}, tokens())
        assert largest_difference(found, wide.eval()(tokens()).logits) < 1e-5
    export(str(tmp_path / "run"), "hf", str(tmp_path / "again"), proof=False)
    kept = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(tensor, state[name]) and tensor.dtype == dtype for name, tensor in kept.items())


GOOD = to_config(MODELS["qwen2-window"], 64)
BAD_CONFIGS = {
    "an unknown family": ({"model_type": "gpt2"}, "model_type 'gpt2' is not known; known are llama, mistral"),
    "no family": ({"model_type": None}, "model_type None"),
    "stretched another way": (
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        "rope_scaling of type 'yarn': only 'default' and 'llama3'",
    ),
    "stretched with a part missing": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0}},
        "original_max_position_embeddings is missing",
    ),
    "rope that is no object": ({"rope_scaling": "linear"}, "not a JSON object"),
    "a part of the head": ({"partial_rotary_factor": 0.5}, "only a whole head"),
    "another activation": ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
    "quantised": ({"quantization_config": {"bits": 4}}, "quantization_config: weights are quantised"),
    "code of its own": ({"auto_map": {"AutoModel": "modeling.X"}}, "auto_map: it asks for code of its own"),
    "a window in some layers": ({"max_window_layers": 2}, "some layers have a window"),
    "layers listed apart": ({"layer_types": ["full_attention", "sliding_attention"]}, "some layers have a window"),
    "a size missing": ({"hidden_size": None}, "hidden_size is missing"),
    "key/value heads missing": ({"num_key_value_heads": None}, "num_key_value_heads is missing"),
    "a size as text": ({"hidden_size": "48"}, "hidden_size = '48': not a whole number"),
    "a size below 1": ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
    "true as a size": ({"vocab_size": True}, "vocab_size = True"),
    "an eps that is nothing": ({"rms_norm_eps": -1e-5}, "rms_norm_eps = -1e-05: not a number above 0"),
    "a flag as text": ({"tie_word_embeddings": "yes"}, "neither true nor false"),
    "heads that do not divide": ({"num_key_value_heads": 4}, "6 heads cannot share 4"),
}


@pytest.mark.parametrize("name", BAD_CONFIGS)
def test_a_configuration_that_is_not_computed_exactly_is_refused(name: str) -> None:
    changes, said = BAD_CONFIGS[name]
    with pytest.raises(UserError) as raised:
        from_config({**GOOD, **changes})
    assert said in str(raised.value)


def test_both_spellings_of_rope_are_one() -> None:
    new = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    old = {"rope_theta": 500.0, "rope_scaling": None}
    base = {k: v for k, v in GOOD.items() if not k.startswith("rope_")}
    assert from_config({**base, **new}) == from_config({**base, **old})
    assert from_config({**base, **new}).rope.theta == 500.0


def test_every_field_that_differs_from_the_experiment_is_named(tmp_path: Path, corpus: Path) -> None:
    hf = write_hf(tmp_path, MODELS["qwen2-tied"])
    other = replace(MODELS["qwen2-tied"], num_layers=4, norm=RMSNorm(eps=1e-6), tie_embeddings=False, dropout=0.1)
    with pytest.raises(UserError) as raised:
        require_first_weights(replace(experiment(other, corpus), init_from=hf))
    first, *fields = str(raised.value).splitlines()
    assert first.startswith("init_from")
    assert first.endswith(f"the experiment has another model than {hf}:")
    assert fields == [
        "  model.num_layers: config.json says 3, the experiment 4",
        "  model.norm.eps: config.json says 1e-05, the experiment 1e-06",
        "  model.tie_embeddings: config.json says True, the experiment False",
    ]
    assert left(tmp_path) == ["hf"]


def test_all_wrong_tensors_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    model = MODELS["llama"]
    wrong = {
        "model.norm.weight": None,
        "model.layers.0.mlp.up_proj.weight": torch.zeros(48, 80),
        "score.weight": torch.zeros(2, 48),
        "model.layers.1.mlp.up_proj.weight": torch.zeros(80, 48, dtype=torch.int8),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),  # of old versions; computed here
    }
    with pytest.raises(UserError) as raised:
        import_folder(write_hf(tmp_path, model, **wrong), str(tmp_path / "run"), BYTES)
    assert [line.strip() for line in str(raised.value).splitlines()[1:]] == [
        "1 missing: model.norm.weight",
        "1 unexpected: score.weight",
        "1 of another shape: model.layers.0.mlp.up_proj.weight is [48, 80], the model has [80, 48]",
        "1 of another number format than F32, BF16, F16: model.layers.1.mlp.up_proj.weight is I8",
    ]
    assert left(tmp_path) == ["hf"]


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_head_that_is_stored_too_has_to_be_the_embedding(same: bool, tmp_path: Path) -> None:
    model = MODELS["qwen2-tied"]
    head = random_weights(model)["model.embed_tokens.weight"] + (0.0 if same else 1e-3)
    hf = write_hf(tmp_path, model, **{"lm_head.weight": head})
    if same:
        assert import_folder(hf, str(tmp_path / "run"), BYTES).family == "qwen2"
        return
    with pytest.raises(UserError, match=r"ties the embeddings, but lm_head\.weight is not"):
        import_folder(hf, str(tmp_path / "run"), BYTES)
    assert left(tmp_path) == ["hf"]


def spoilt(folder: Path, how: str) -> str:
    """A folder with something wrong in its files; what has to be said of it."""
    single = folder / "model.safetensors"
    if how == "pickles":
        single.rename(folder / "pytorch_model.bin")
        return "holds its weights as pickles (pytorch_model.bin)"
    if how == "a run":
        (folder / "checkpoints").mkdir()
        return "is a run directory of this package; to begin with its weights, write init_from"
    if how == "an adapter":
        (folder / "adapter_config.json").write_text("{}")
        return "holds an adapter (adapter_config.json), not a model; merge it"
    if how == "GGUF":
        single.rename(folder / "model.gguf")
        return "holds GGUF (model.gguf), which is read by llama.cpp"
    if how == "no weights":
        single.unlink()
        return "lacks model.safetensors"
    if how == "truncated":
        single.write_bytes(single.read_bytes()[:-1])
        return "is damaged"
    if how == "no JSON":
        (folder / "config.json").write_text("{")
        return "config.json is not JSON"
    if how == "keys twice":
        (folder / "config.json").write_text('{"model_type": "llama", "model_type": "qwen2"}')
        return "the key 'model_type' stands twice"
    if how == "a list":
        (folder / "config.json").write_text("[]")
        return "is not a JSON object"
    places = dict.fromkeys(load_file(single), "model.safetensors")
    index = folder / "model.safetensors.index.json"
    name = next(iter(places))
    if how == "a path out":
        places[name] = "../secret.safetensors"
    elif how == "an absolute path":
        places[name] = "/etc/passwd"
    elif how == "a name too many":
        places["no.such"] = "model.safetensors"
    elif how == "a name too few":
        del places[name]
    index.write_text(json.dumps({"weight_map": places}))
    said = {"a name too many": "which does not hold it", "a name too few": "does not name"}
    return said.get(how, "which is no safetensors file of this folder")


@pytest.mark.parametrize(
    "how",
    [
        "pickles", "a run", "an adapter", "GGUF", "no weights", "truncated", "no JSON", "keys twice", "a list",
        "a path out", "an absolute path", "a name too many", "a name too few",
    ],
)  # fmt: skip
def test_a_spoilt_folder_is_refused(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf = Path(write_hf(tmp_path, MODELS["llama"]))
    said = spoilt(hf, how)
    code = run_command(["import", str(hf), "--tokenizer", "bytes", "--out", str(tmp_path / "run")])
    answer = capsys.readouterr()
    assert (code, answer.out) == (2, "")
    assert said in answer.err
    assert "Traceback" not in answer.err
    assert left(tmp_path) == ["hf"]


def test_a_run_goes_on_from_imported_weights_and_back_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way through the command line: in, generate, train in three ways, out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGATHER_CACHE", str(tmp_path / "cache"))
    corpus = write_corpus(tmp_path / "corpus")
    write_hf(tmp_path, MODELS["llama"])

    def ask(*arguments: str) -> str:
        code = run_command(list(arguments))
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    imported = ask("import", "hf", "--tokenizer", "bytes", "--out", "mine")
    assert "next: run mine/experiment.py:Hf" in imported
    (tmp_path / "tiny.py").write_text(MINE.format(corpus=corpus.name))
    assert ask("generate", "mine", "a line", "--max-new-tokens", "2").startswith("a line")
    assert "init_from = 'mine/checkpoints/step-00000000'" in ask("show", "tiny.py:Tiny")
    assert "begins with the weights of mine/checkpoints/step-00000000" in ask("run", "tiny.py:Tiny", "--out", "one")
    straight = ask("run", "tiny.py:Tiny", "--set", "init_from=hf", "--out", "straight")
    assert "begins with the weights of hf" in straight
    path = "mine/checkpoints/step-00000000"
    resumed = ask("run", "tiny.py:Tiny", "--set", "init_from=None", "--resume", path, "--out", "resumed")
    assert f"{path} has weights alone: optimizer, schedule and data begin at step 0" in resumed
    assert losses("one") == losses("straight") == losses("resumed")
    fresh = ask("run", "tiny.py:Tiny", "--set", "init_from=None", "--out", "fresh")
    assert "begins with" not in fresh
    assert losses("fresh")[0] != losses("one")[0]  # the weights did arrive
    ask("export", "one", "--to", "hf", "--out", "trained")
    trained, begun = load_file("trained/model.safetensors"), load_file("hf/model.safetensors")
    assert set(trained) == set(begun)
    assert not torch.equal(trained["model.norm.weight"], begun["model.norm.weight"])


MINE = """
from forgather_dsl import *
from mine.experiment import Hf

class Tiny(Hf):
    seq_len, batch_size, microbatch_size, steps, log_every = 24, 4, 1, 2, 1
    sampling, loggers, eval_data = None, (), None
    data = TextFiles(paths="{corpus}", held_out=0.0)
"""


def losses(run: str) -> list[str]:
    lines = map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines())
    return [float(line["loss"]).hex() for line in lines if "loss" in line]


WRONG_BEGINNINGS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"model.norm.weight": None}, "1 missing: model.norm.weight"),
    "unexpected": ({"score.weight": torch.zeros(2)}, "1 unexpected: score.weight"),
    "another shape": ({"lm_head.weight": torch.zeros(263, 24)}, "lm_head.weight is [263, 24], the model has [263, 48]"),
    "integers": ({"lm_head.weight": torch.zeros(263, 48, dtype=torch.int8)}, "lm_head.weight is I8"),
}


@pytest.mark.parametrize("name", WRONG_BEGINNINGS)
def test_a_run_does_not_begin_with_other_weights(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, said = WRONG_BEGINNINGS[name]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGATHER_CACHE", str(tmp_path / "cache"))
    write_corpus(tmp_path / "corpus")
    (tmp_path / "good").mkdir()
    import_folder(write_hf(tmp_path / "good", MODELS["llama"]), "mine", BYTES)
    write_hf(tmp_path, MODELS["llama"], **changes)
    (tmp_path / "tiny.py").write_text(MINE.format(corpus="corpus"))
    capsys.readouterr()
    assert run_command(["run", "tiny.py:Tiny", "--set", "init_from=hf", "--out", "run"]) == 2
    answer = capsys.readouterr()
    assert "init_from: hf does not hold the weights of this model:" in answer.err
    assert said in answer.err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert run_command(["run", "tiny.py:Tiny", "--set", "init_from=good/hf", "--out", "run"]) == 0
    assert run_command(["run", "tiny.py:Tiny", "--set", "init_from=hf", "--set", "steps=3", "--out", "run"]) == 2
    assert "a run that has a checkpoint goes on from that" in capsys.readouterr().err


def test_what_cannot_be_begun_with_is_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus")
    import_folder(write_hf(tmp_path, MODELS["llama"]), "mine", BYTES)
    (tmp_path / "tiny.py").write_text(MINE.format(corpus="corpus"))
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "pickles").mkdir()
    (tmp_path / "pickles" / "pytorch_model.bin").write_text("")
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**to_config(MODELS["llama"], 64), "rope_theta": 5.0}))
    for path, said in {
        "nowhere": "'nowhere' is no folder",
        "empty": "empty has no checkpoint to begin with",
        "pickles": "holds its weights as pickles (pytorch_model.bin)",
        "hf": "model.rope.theta: config.json says 5.0, the experiment 10000.0",
    }.items():
        capsys.readouterr()
        assert run_command(["run", "tiny.py:Tiny", "--set", f"init_from={path}", "--out", "run"]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_the_run_wins_over_what_it_began_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGATHER_CACHE", str(tmp_path / "cache"))
    write_corpus(tmp_path / "corpus")
    write_hf(tmp_path, MODELS["llama"])
    import_folder("hf", "mine", BYTES)
    (tmp_path / "tiny.py").write_text(MINE.format(corpus="corpus"))
    assert run_command(["run", "tiny.py:Tiny", "--out", "one"]) == 0
    (tmp_path / "mine" / "checkpoints").rename(tmp_path / "gone")
    capsys.readouterr()
    assert run_command(["run", "tiny.py:Tiny", "--set", "steps=3", "--out", "one"]) == 0
    assert "begins with" not in capsys.readouterr().out
    assert run_command(["run", "tiny.py:Tiny", "--out", "two"]) == 2
    assert "init_from" in (said := capsys.readouterr().err)
    assert "'mine/checkpoints/step-00000000' is no folder; write a run, a checkpoint or a Hugging Face folder" in said
    assert not (tmp_path / "two").exists()


def test_the_experiment_says_only_what_differs_and_is_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    scaled = {"rope_parameters": {"rope_theta": 500_000.0, **STRETCHED}}
    write_model(tmp_path / "hf", "Llama", True, rope_scaling=None, **scaled)
    write_tokenizer(tmp_path / "hf", vocab_size=263)
    done = import_folder("hf", "run", name="Stretched", check=True)
    assert "bit for bit" in done.said[0]
    text = (tmp_path / "run" / "experiment.py").read_text()
    found: Any = load(done.target)()  # type: ignore[operator]
    wanted = from_config(json.loads((tmp_path / "hf" / "config.json").read_text()))
    assert diff(found.model, wanted) == []
    assert "rope=Llama3Rope(original_max_position=16)" in text  # the rest are the defaults
    assert "qk_norm" not in text
    assert "dropout" not in text
    assert found.tokenizer.vocab_size == 263
    assert (tmp_path / "run" / "tokenizer" / "chat_template.jinja").read_text() == TEMPLATE
    formatted = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--check", "--line-length", "120", str(tmp_path / "run" / "experiment.py")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert formatted.returncode == 0, formatted.stderr + text


OLD = {"rope_theta": 500.0, "rope_scaling": None, "torch_dtype": "float32", "head_dim": None}
NEW = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "dtype": "float32"}


@pytest.mark.parametrize("keys", [OLD, NEW])
def test_keys_of_old_and_new_versions_are_one(keys: dict[str, Any], tmp_path: Path) -> None:
    """An absent head_dim, both names of the number format, both spellings of rotation."""
    hf = Path(write_hf(tmp_path, MODELS["qwen2-tied"]))
    config = json.loads((hf / "config.json").read_text())
    kept = {k: v for k, v in config.items() if not k.startswith("rope") and k not in ("torch_dtype", "head_dim")}
    (hf / "config.json").write_text(json.dumps({**kept, **{k: v for k, v in keys.items() if v is not None}}))
    assert "bit for bit" in import_folder(str(hf), str(tmp_path / "run"), BYTES, check=True).said[0]
    model: Any = load(f"{tmp_path}/run/experiment.py:Hf")().model  # type: ignore[operator]
    assert (model.rope.theta, model.head_dim) == (500.0, 8)


def test_a_folder_without_a_tokenizer_says_what_to_name(tmp_path: Path) -> None:
    hf = write_hf(tmp_path, MODELS["llama"])
    with pytest.raises(UserError, match=r"has no tokenizer; write --tokenizer PATH"):
        import_folder(hf, str(tmp_path / "run"))
    write_tokenizer(tmp_path / "words", vocab_size=263)
    import_folder(hf, str(tmp_path / "run"), Vocabulary(tokenizer=str(tmp_path / "words")))
    import_folder(hf, str(tmp_path / "file"), Vocabulary(tokenizer=str(tmp_path / "words" / "tokenizer.json")))
    for run in ("run", "file"):
        assert load(f"{tmp_path}/{run}/experiment.py:Hf")().tokenizer.vocab_size == 263  # type: ignore[operator]
    for name in ("x-y", "Llama", "class"):
        with pytest.raises(UserError, match=rf"'{name}' is no name for a class"):
            import_folder(hf, str(tmp_path / "other"), BYTES, name=name)
    assert left(tmp_path) == ["file", "hf", "run", "words"]


MEMORY = """
import sys, torch
from forgather_dsl.interop.incoming import Vocabulary, import_folder
import forgather_dsl.train.directory

def peak():
    return int([l for l in open("/proc/self/status") if l.startswith("VmHWM")][0].split()[1]) * 1024

import_folder("small", "warm", Vocabulary(tokenizer="bytes"))
open("/proc/self/clear_refs", "w").write("5")
before = peak()
done = import_folder("large", "run", Vocabulary(tokenizer="bytes", size=int(sys.argv[1])))
print(done.bytes, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux tells the peak of a moment")
def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "head_dim": 64}
    write_model(tmp_path / "large", "Llama", False, vocab_size=4096, num_hidden_layers=8, **sizes)
    write_model(tmp_path / "small", "Llama", False)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, "4096"], cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    total, peak = map(int, done.stdout.split())
    largest = 4 * 4096 * 768
    assert total > 15 * largest
    assert peak < 2 * largest + 2**24, (
        f"{peak / 2**20:.0f} MiB for {total / 2**20:.0f} MiB"
    )  # 4 MiB of it is the buffer


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("tiny-llama", "TinyLlama"),
        ("Qwen2.5-0.5B", "Qwen2_5_0_5B"),
        ("hf_model", "HfModel"),
        ("7b", "Llama"),
        ("-", "Llama"),
    ],
)
def test_a_class_is_called_as_its_folder(folder: str, name: str) -> None:
    assert class_name(folder, "Llama") == name
