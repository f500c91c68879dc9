"""Weights between our checkpoints and Hugging Face folders: the same logits, the same bits, and nothing written where it is wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from forgather_dsl import (
    FP32,
    GELUMLP,
    Bytes,
    Experiment,
    GroupedQueryAttention,
    LayerNorm,
    Llama,
    Llama3Rope,
    NoRope,
    RMSNorm,
    Rope,
    SlidingWindow,
    SwiGLU,
    TextFiles,
    replace,
)
from forgather_dsl.cli.app import run_command
from forgather_dsl.dsl import Cycle, build
from forgather_dsl.errors import UserError
from forgather_dsl.interop.convert import from_folder, to_folder
from forgather_dsl.interop.families import from_config, to_config
from forgather_dsl.models.init import tie_weights
from forgather_dsl.train import checkpoint, directory
from forgather_dsl.train.checkpoint.snapshot import source
from forgather_dsl.train.weights import alone, save_weights

SEQ = 24
STRETCHED = Llama3Rope(theta=10_000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position=16)
SIZES: dict[str, Any] = {
    "dim": 48,
    "num_layers": 3,
    "num_heads": 6,
    "num_kv_heads": 2,
    "ffn_dim": 80,
    "vocab_size": 263,
}
MODELS = {
    "llama": Llama(**SIZES),
    "llama-biases": Llama(
        **SIZES, attention=GroupedQueryAttention(bias=True, output_bias=True), mlp=SwiGLU(bias=True), head_dim=10
    ),
    "llama3-tied": Llama(**SIZES, rope=STRETCHED, tie_embeddings=True, norm=RMSNorm(eps=1e-3)),
    "mistral": Llama(**SIZES, attention=SlidingWindow(window=7), rope=Rope(theta=500.0)),
    "qwen2-tied": Llama(**SIZES, attention=GroupedQueryAttention(bias=True), tie_embeddings=True),
    "qwen2-window": Llama(**SIZES, attention=SlidingWindow(bias=True, window=7)),
    "qwen3": Llama(**SIZES, attention=GroupedQueryAttention(qk_norm=RMSNorm()), head_dim=10),
    "qwen3-window-tied": Llama(
        **SIZES,
        attention=SlidingWindow(qk_norm=RMSNorm(), window=7, bias=True, output_bias=True),
        head_dim=10,
        tie_embeddings=True,
    ),
}


class Tiny(Experiment):
    seq_len = SEQ
    batch_size = 4
    steps = 2
    sampling = None
    loggers = ()
    eval_data = None
    tokenizer = Bytes()
    precision = FP32()


def experiment(model: Any, corpus: Path) -> Any:
    return Tiny(model=model, data=TextFiles(paths=(str(corpus),), held_out=0.0))


def random_weights(model: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    with torch.device("meta"):
        built: Any = build(model)
    shapes = {name: parameter.shape for name, parameter in built.named_parameters()}
    return {n: torch.randn(s) * 0.1 + (1.0 if len(s) == 1 else 0.0) for n, s in shapes.items()}


def logits(model: Any, weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Of our model."""
    with torch.device("meta"):
        built: Any = build(model)
    built.to_empty(device="cpu")
    tie_weights(built)
    left = built.load_state_dict(weights, strict=False)
    assert not left.unexpected_keys
    assert set(left.missing_keys) <= ({"lm_head.weight"} if model.tie_embeddings else set())
    with torch.no_grad():
        return built.eval()(tokens)


def make_run(path: Path, model: Any, corpus: Path, weights: dict[str, torch.Tensor]) -> str:
    """A run directory with one checkpoint of these weights."""
    directory.write(experiment(model, corpus), str(path), "tiny.py:Tiny", [])
    return save_weights(str(path / "checkpoints"), weights)


def tokens() -> torch.Tensor:
    return torch.randint(0, SIZES["vocab_size"], (2, SEQ), generator=torch.Generator().manual_seed(3))


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.std() > 0.3, "logits too small to tell anything"
    return (a - b).abs().max().item()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text("a line of text to learn from\n" * 200)
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_out_and_in_again(name: str, tmp_path: Path, corpus: Path) -> None:
    """Our model to a folder that transformers loads with our logits; back to a checkpoint with the same bits."""
    model = MODELS[name]
    weights = random_weights(model)
    make_run(tmp_path / "run", model, corpus, weights)
    to_folder(str(tmp_path / "run"), str(tmp_path / "hf"), shard_bytes=60_000)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", output_loading_info=True, attn_implementation="eager"
    )
    assert type(theirs).__name__.lower().startswith(name.partition("-")[0].rstrip("3") if "llama" in name else name[:5])
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert largest_difference(logits(model, weights, tokens()), theirs.eval()(tokens()).logits) < 1e-5
    back = from_folder(str(tmp_path / "hf"), experiment(model, corpus), str(tmp_path / "back"), "tiny.py:Tiny")
    assert back.tensors == len(weights)
    saved = checkpoint.newest(str(tmp_path / "back" / "checkpoints"), alone())
    assert saved is not None
    assert saved.step == 0
    found = dict(saved.tensors(saved.stored()))
    assert set(found) == {f"weights/{n}" for n in weights}
    assert all(torch.equal(found[f"weights/{n}"].view(torch.uint8), w.view(torch.uint8)) for n, w in weights.items())
    to_folder(str(tmp_path / "back"), str(tmp_path / "again"), shard_bytes=60_000)
    for file in sorted(os.listdir(tmp_path / "hf")):
        assert (tmp_path / "hf" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


FAMILIES = {
    "Llama": ({"attention_bias": True, "mlp_bias": True, "head_dim": 10}, False),
    "Mistral": ({"sliding_window": 7, "head_dim": 10}, True),
    "Qwen2": ({}, False),
    "Qwen3": ({"head_dim": 10}, True),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_writes_is_read(family: str, dtype: torch.dtype, tmp_path: Path, corpus: Path) -> None:
    options, tied = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2, intermediate_size=80,
        vocab_size=263, max_position_embeddings=64, tie_word_embeddings=tied, **options,
    )  # fmt: skip
    torch.manual_seed(5)
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).to(dtype).eval()
    for parameter in theirs.parameters():
        parameter.data.normal_(0.0, 0.1).add_(1.0 if parameter.dim() == 1 else 0.0)
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="60KB")
    ours = from_config(json.loads((tmp_path / "hf" / "config.json").read_text()))
    from_folder(str(tmp_path / "hf"), experiment(ours, corpus), str(tmp_path / "run"), "tiny.py:Tiny")
    saved = checkpoint.newest(str(tmp_path / "run" / "checkpoints"), alone())
    assert saved is not None
    weights = {k.removeprefix("weights/"): t for k, t in saved.tensors(saved.stored())}
    state = theirs.state_dict()
    assert all(torch.equal(tensor, state[name]) and tensor.dtype == dtype for name, tensor in weights.items())
    wide = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        found = logits(ours, {n: w.float() for n, w in weights.items()}, tokens())
        assert largest_difference(found, wide.eval()(tokens()).logits) < 1e-4
    to_folder(str(tmp_path / "run"), str(tmp_path / "again"))
    kept = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(tensor, state[name]) and tensor.dtype == dtype for name, tensor in kept.items())


def test_numbers_can_be_narrowed_on_the_way_out_but_not_overflow(tmp_path: Path, corpus: Path) -> None:
    weights = random_weights(MODELS["llama"])
    make_run(tmp_path / "run", MODELS["llama"], corpus, weights)
    to_folder(str(tmp_path / "run"), str(tmp_path / "hf"), dtype="bfloat16")
    found = load_file(tmp_path / "hf" / "model.safetensors")
    assert all(torch.equal(found[name], weight.bfloat16()) for name, weight in weights.items())
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    weights["model.norm.weight"][0] = 1e6
    make_run(tmp_path / "large", MODELS["llama"], corpus, weights)
    with pytest.raises(UserError, match=r"model.norm.weight has numbers above 65504.*bfloat16"):
        to_folder(str(tmp_path / "large"), str(tmp_path / "half"), dtype="float16")
    assert left(tmp_path) == ["hf", "large", "run"]


def left(folder: Path) -> list[str]:
    """What a refusal may leave: nothing of its own, hidden files included."""
    return sorted(name for name in os.listdir(folder) if name != "__pycache__")  # of the experiment's file


NOT_STOCK = {
    "a LayerNorm": ({"norm": LayerNorm()}, "norm = LayerNorm"),
    "another MLP": ({"mlp": GELUMLP()}, "mlp = GELUMLP"),
    "no positions": ({"rope": NoRope()}, "rope = NoRope"),
    "alternating attention": (
        {"attention": Cycle(options=(GroupedQueryAttention(), SlidingWindow()))},
        "the same in all layers",
    ),
    "a bias of the output alone": ({"attention": GroupedQueryAttention(output_bias=True)}, "output_bias without"),
    "another eps of q and k": (
        {"attention": GroupedQueryAttention(qk_norm=RMSNorm(eps=1e-3))},
        "the eps of the other norms",
    ),
    "q and k norms with half of the biases": (
        {"attention": GroupedQueryAttention(qk_norm=RMSNorm(), bias=True)},
        "Qwen 3 has output_bias as well",
    ),
    "a window with biases of the output": (
        {"attention": SlidingWindow(bias=True, output_bias=True)},
        "Mistral has no biases",
    ),
    "a window with biases of the MLP": (
        {"attention": SlidingWindow(), "mlp": SwiGLU(bias=True)},
        "mlp.bias: of the stock classes only Llama's",
    ),
}


@pytest.mark.parametrize("name", NOT_STOCK)
def test_what_no_stock_class_computes_is_refused(name: str) -> None:
    changes, said = NOT_STOCK[name]
    with pytest.raises(UserError, match="no stock class of transformers computes this model") as raised:
        to_config(Llama(**SIZES, **changes), 64)
    assert said in str(raised.value)


def test_all_reasons_are_told_at_once() -> None:
    with pytest.raises(UserError) as raised:
        to_config(Llama(**SIZES, norm=LayerNorm(), mlp=GELUMLP(), rope=NoRope()), 64)
    assert len(str(raised.value).splitlines()) == 4


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
        from_folder(hf, experiment(other, corpus), str(tmp_path / "run"), "tiny.py:Tiny")
    assert str(raised.value).splitlines() == [
        f"tiny.py:Tiny is another model than {hf}:",
        "  model.num_layers: config.json says 3, the experiment 4",
        "  model.norm.eps: config.json says 1e-05, the experiment 1e-06",
        "  model.tie_embeddings: config.json says True, the experiment False",
    ]
    assert left(tmp_path) == ["hf"]


def write_hf(folder: Path, model: Any, **changes: torch.Tensor | None) -> str:
    """A folder as transformers writes them, its tensors changed or left out."""
    (folder / "hf").mkdir()
    tensors = {n: t for n, t in {**random_weights(model), **changes}.items() if t is not None}
    save_file(tensors, folder / "hf" / "model.safetensors", metadata={"format": "pt"})
    (folder / "hf" / "config.json").write_text(json.dumps(to_config(model, 64)))
    return str(folder / "hf")


def test_all_wrong_tensors_are_named_and_nothing_is_written(tmp_path: Path, corpus: Path) -> None:
    model = MODELS["llama"]
    wrong = {
        "model.norm.weight": None,
        "model.layers.0.mlp.up_proj.weight": torch.zeros(48, 80),
        "score.weight": torch.zeros(2, 48),
        "model.layers.1.mlp.up_proj.weight": torch.zeros(80, 48, dtype=torch.int8),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4),  # of old versions; computed here
    }
    with pytest.raises(UserError) as raised:
        from_folder(write_hf(tmp_path, model, **wrong), experiment(model, corpus), str(tmp_path / "run"), "t")
    assert [line.strip() for line in str(raised.value).splitlines()[1:]] == [
        "1 missing: model.norm.weight",
        "1 unexpected: score.weight",
        "1 of another shape: model.layers.0.mlp.up_proj.weight is [48, 80], the model has [80, 48]",
        "1 of another number format than F32, BF16, F16: model.layers.1.mlp.up_proj.weight is I8",
    ]
    assert left(tmp_path) == ["hf"]


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_head_that_is_stored_too_has_to_be_the_embedding(same: bool, tmp_path: Path, corpus: Path) -> None:
    model = MODELS["qwen2-tied"]
    head = random_weights(model)["model.embed_tokens.weight"] + (0.0 if same else 1e-3)
    hf = write_hf(tmp_path, model, **{"lm_head.weight": head})
    if same:
        assert from_folder(hf, experiment(model, corpus), str(tmp_path / "run"), "t").family == "qwen2"
        return
    with pytest.raises(UserError, match=r"ties the embeddings, but lm_head\.weight is not"):
        from_folder(hf, experiment(model, corpus), str(tmp_path / "run"), "t")
    assert left(tmp_path) == ["hf"]


def spoilt(folder: Path, how: str) -> str:
    """A folder with something wrong in its files; what has to be said of it."""
    single = folder / "model.safetensors"
    if how == "pickles":
        single.rename(folder / "pytorch_model.bin")
        return "holds its weights as pickles (pytorch_model.bin)"
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
        "pickles", "no weights", "truncated", "no JSON", "keys twice", "a list",
        "a path out", "an absolute path", "a name too many", "a name too few",
    ],
)  # fmt: skip
def test_a_spoilt_folder_is_refused(how: str, tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hf = Path(write_hf(tmp_path, MODELS["llama"]))
    said = spoilt(hf, how)
    target = tmp_path / "tiny.py"
    target.write_text(TARGET.format(corpus=corpus))
    code = run_command(
        ["convert", str(hf), "--to", "checkpoint", "--target", str(target), "--out", str(tmp_path / "run")]
    )
    answer = capsys.readouterr()
    assert (code, answer.out) == (2, "")
    assert said in answer.err
    assert "Traceback" not in answer.err
    assert left(tmp_path)[:1] == ["hf"]
    assert not {n for n in left(tmp_path) if n.startswith((".run", "run"))}


TARGET = """
from forgather_dsl import *

class Tiny(Experiment):
    seq_len = 24
    batch_size = 4
    microbatch_size = 1
    steps = 2
    sampling = None
    loggers = ()
    log_every = 1
    eval_data = None
    tokenizer = Bytes()
    data = TextFiles(paths="{corpus}", held_out=0.0)
    model = patch(Llama, dim=48, num_layers=3, num_heads=6, num_kv_heads=2, ffn_dim=80, vocab_size=263)
"""


def test_a_run_goes_on_from_converted_weights_and_back_out(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way through the command line: in, generate, train from them in two ways, out."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGATHER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tiny.py").write_text(TARGET.format(corpus=corpus))
    write_hf(tmp_path, MODELS["llama"])

    def ask(*arguments: str) -> str:
        code = run_command(list(arguments))
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    converted = ask("convert", "hf", "--to", "checkpoint", "--target", "tiny.py:Tiny", "--out", "run")
    assert "next: run tiny.py:Tiny --out run" in converted
    assert ask("generate", "run", "a line", "--max-new-tokens", "2").startswith("a line")
    path = "run/checkpoints/step-00000000"
    elsewhere = ask("run", "tiny.py:Tiny", "--out", "elsewhere", "--resume", path)
    here = ask("run", "tiny.py:Tiny", "--out", "run")
    said = f"{path} has weights alone: optimizer, schedule and data begin at step 0"
    assert said in elsewhere
    assert said in here
    assert losses("run") == losses("elsewhere")
    fresh = ask("run", "tiny.py:Tiny", "--out", "fresh")
    assert "weights alone" not in fresh
    assert losses("fresh")[0] != losses("run")[0]  # the weights did arrive
    ask("convert", "run", "--to", "hf", "--out", "trained")
    trained = load_file("trained/model.safetensors")
    begun = load_file("hf/model.safetensors")
    assert set(trained) == set(begun)
    assert not torch.equal(trained["model.norm.weight"], begun["model.norm.weight"])


def losses(run: str) -> list[str]:
    lines = map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines())
    return [float(line["loss"]).hex() for line in lines if "loss" in line]


def test_a_damaged_checkpoint_is_not_converted(tmp_path: Path, corpus: Path) -> None:
    path = Path(make_run(tmp_path / "run", MODELS["llama"], corpus, random_weights(MODELS["llama"])))
    file = next(path.glob("*.safetensors"))
    damaged = bytearray(file.read_bytes())
    damaged[-5] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(UserError, match=r"hash|damaged"):
        to_folder(str(path), str(tmp_path / "hf"))
    assert left(tmp_path) == ["run"]


def test_a_checkpoint_of_another_model_is_not_converted(tmp_path: Path, corpus: Path) -> None:
    weights = random_weights(MODELS["llama"])
    path = make_run(tmp_path / "run", MODELS["llama"], corpus, weights)
    deep, wide = replace(MODELS["llama"], num_layers=4), replace(MODELS["llama"], ffn_dim=96)
    with pytest.raises(UserError, match=r"9 missing: model.layers.3"):
        to_folder(path, str(tmp_path / "hf"), experiment(deep, corpus))
    with pytest.raises(UserError, match=r"9 of another shape"):
        to_folder(path, str(tmp_path / "hf"), experiment(wide, corpus))
    with pytest.raises(UserError, match=r"too few for num_layers = 1000"):
        to_folder(path, str(tmp_path / "hf"), experiment(replace(MODELS["llama"], num_layers=1000), corpus))
    assert left(tmp_path) == ["run"]


def test_slices_of_a_spread_head_become_one_tensor(tmp_path: Path, corpus: Path) -> None:
    model = MODELS["llama"]
    weights = random_weights(model)
    directory.write(experiment(model, corpus), str(tmp_path / "run"), "t", [])
    head = weights["lm_head.weight"]
    rows = (range(100), range(100, len(head)))

    class Two:
        world = 2

        def __init__(self, rank: int, meet: Any) -> None:
            self.rank, self.meet = rank, meet

        def gather(self, value: Any) -> list[Any]:
            return self.meet(self.rank, value)

    def write(rank: int, meet: Any) -> None:
        mine = dict(weights) if rank == 0 else {}
        mine["lm_head.weight"] = head[rows[rank].start : rows[rank].stop]
        slices = {
            "weights/lm_head.weight": checkpoint.Slice(
                tuple(head.shape), (rows[rank].start, 0), tuple(mine["lm_head.weight"].shape)
            )
        }
        state = {"data": {}, "optimizer": "AdamW", "tokens": 1, "seconds": 1.0}
        what = checkpoint.Contents(5, [source(f"weights/{n}", t) for n, t in mine.items()], state, slices=slices)
        checkpoint.Saver(str(tmp_path / "run" / "checkpoints"), Two(rank, meet)).save(what, wait=True)

    in_two_threads(write)
    to_folder(str(tmp_path / "run"), str(tmp_path / "hf"))
    found = load_file(tmp_path / "hf" / "model.safetensors")
    assert set(found) == set(weights)
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())


def in_two_threads(write: Any) -> None:
    """Run `write(rank, meet)` as two ranks that exchange values."""
    import threading

    barrier, values = threading.Barrier(2), {}

    def meet(rank: int, value: Any) -> list[Any]:
        values[rank] = value
        barrier.wait(timeout=30)
        out = [values[0], values[1]]
        barrier.wait(timeout=30)
        return out

    failed: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            write(rank, meet)
        except BaseException as error:
            failed.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed


def test_an_existing_folder_is_never_written_into(tmp_path: Path, corpus: Path) -> None:
    path = make_run(tmp_path / "run", MODELS["llama"], corpus, random_weights(MODELS["llama"]))
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        to_folder(path, str(tmp_path / "hf"))
    assert left(tmp_path / "hf") == ["mine.txt"]
    assert left(tmp_path) == ["hf", "run"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x", "--to", "gguf", "--out", "y"], "--to 'gguf': write one of hf, checkpoint"),
        (["x", "--to", "checkpoint", "--out", "y"], "needs --target file.py:Class"),
        (["x", "--to", "hf", "--out", "y", "--dtype", "int8"], "--dtype int8: write one of float32"),
        (["x", "--to", "hf", "--out", "y", "--set", "seed=1"], "add --target"),
        (["x", "--to", "hf", "--out", "y"], "x is not a run directory"),
    ],
)
def test_a_wrong_command_line_ends_with_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["convert", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert left(tmp_path) == []
