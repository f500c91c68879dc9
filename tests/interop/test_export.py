"""What leaves: stock folders with the same logits and the same bits, proven; and nothing written where something is wrong."""

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
from runs_of_weights import (
    MODELS,
    SIZES,
    experiment,
    largest_difference,
    left,
    logits,
    make_run,
    random_weights,
    tokens,
    write_corpus,
)
from safetensors.torch import load_file

from forgather_dsl import (
    GELUMLP,
    GroupedQueryAttention,
    LayerNorm,
    Llama,
    NoRope,
    RMSNorm,
    SlidingWindow,
    SwiGLU,
    replace,
)
from forgather_dsl.cli.app import run_command
from forgather_dsl.dsl import Cycle
from forgather_dsl.errors import UserError
from forgather_dsl.interop.export import export
from forgather_dsl.interop.families import to_config
from forgather_dsl.interop.incoming import import_folder
from forgather_dsl.train import checkpoint, directory
from forgather_dsl.train.checkpoint.snapshot import source
from forgather_dsl.train.weights import alone


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus")


@pytest.mark.parametrize("name", MODELS)
def test_out_and_in_again(name: str, tmp_path: Path, corpus: Path) -> None:
    """Our model to a folder that transformers loads with our logits; back to a checkpoint with the same bits."""
    model = MODELS[name]
    weights = random_weights(model)
    make_run(tmp_path / "run", model, corpus, weights)
    done = export(str(tmp_path / "run"), "hf", str(tmp_path / "hf"), shard_bytes=60_000)
    assert "the same logits, bit for bit" in done.said[0]
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", output_loading_info=True, attn_implementation="eager"
    )
    assert type(theirs).__name__.lower().startswith(name.partition("-")[0].rstrip("3") if "llama" in name else name[:5])
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        assert largest_difference(logits(model, weights, tokens()), theirs.eval()(tokens()).logits) < 1e-5
    back = import_folder(str(tmp_path / "hf"), str(tmp_path / "back"))
    assert back.tensors == len(weights)
    saved = checkpoint.newest(str(tmp_path / "back" / "checkpoints"), alone())
    assert saved is not None
    assert saved.step == 0
    found = dict(saved.tensors(saved.stored()))
    assert set(found) == {f"weights/{n}" for n in weights}
    assert all(torch.equal(found[f"weights/{n}"].view(torch.uint8), w.view(torch.uint8)) for n, w in weights.items())
    export(str(tmp_path / "back"), "hf", str(tmp_path / "again"), proof=False, shard_bytes=60_000)
    for file in sorted(os.listdir(tmp_path / "hf")):
        assert (tmp_path / "hf" / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


def test_numbers_can_be_narrowed_on_the_way_out_but_not_overflow(tmp_path: Path, corpus: Path) -> None:
    weights = random_weights(MODELS["llama"])
    make_run(tmp_path / "run", MODELS["llama"], corpus, weights)
    export(str(tmp_path / "run"), "hf", str(tmp_path / "hf"), dtype="bfloat16")
    found = load_file(tmp_path / "hf" / "model.safetensors")
    assert all(torch.equal(found[name], weight.bfloat16()) for name, weight in weights.items())
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"] == "bfloat16"
    weights["model.norm.weight"][0] = 1e6
    make_run(tmp_path / "large", MODELS["llama"], corpus, weights)
    with pytest.raises(UserError, match=r"model.norm.weight has numbers above 65504.*bfloat16"):
        export(str(tmp_path / "large"), "hf", str(tmp_path / "half"), dtype="float16")
    assert left(tmp_path) == ["hf", "large", "run"]


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


def test_a_damaged_checkpoint_is_not_exported(tmp_path: Path, corpus: Path) -> None:
    path = Path(make_run(tmp_path / "run", MODELS["llama"], corpus, random_weights(MODELS["llama"])))
    file = next(path.glob("*.safetensors"))
    damaged = bytearray(file.read_bytes())
    damaged[-5] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(UserError, match=r"hash|damaged"):
        export(str(path), "hf", str(tmp_path / "hf"))
    assert left(tmp_path) == ["run"]


def test_a_checkpoint_of_another_model_is_not_exported(tmp_path: Path, corpus: Path) -> None:
    weights = random_weights(MODELS["llama"])
    path = make_run(tmp_path / "run", MODELS["llama"], corpus, weights)
    deep, wide = replace(MODELS["llama"], num_layers=4), replace(MODELS["llama"], ffn_dim=96)
    with pytest.raises(UserError, match=r"9 missing: model.layers.3"):
        export(path, "hf", str(tmp_path / "hf"), experiment(deep, corpus))
    with pytest.raises(UserError, match=r"9 of another shape"):
        export(path, "hf", str(tmp_path / "hf"), experiment(wide, corpus))
    with pytest.raises(UserError, match=r"too few for num_layers = 1000"):
        export(path, "hf", str(tmp_path / "hf"), experiment(replace(MODELS["llama"], num_layers=1000), corpus))
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
    export(str(tmp_path / "run"), "hf", str(tmp_path / "hf"))
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
        export(path, "hf", str(tmp_path / "hf"))
    assert left(tmp_path / "hf") == ["mine.txt"]
    assert left(tmp_path) == ["hf", "run"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x", "--to", "onnx", "--out", "y"], "--to 'onnx': write one of torch, hf, hf-remote, gguf"),
        (["x", "--to", "hf", "--out", "y", "--dtype", "int8"], "--dtype int8: write one of float32"),
        (["x", "--to", "hf", "--out", "y", "--set", "seed=1"], "add --target"),
        (["x", "--to", "hf", "--out", "y"], "x is not a run directory"),
    ],
)
def test_a_wrong_command_line_ends_with_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["export", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert left(tmp_path) == []


MEMORY = """
import torch
from forgather_dsl.interop.export import export

def peak():
    return int([l for l in open("/proc/self/status") if l.startswith("VmHWM")][0].split()[1]) * 1024

export("small", "hf", "warm", proof=False, tokenizer=False)
open("/proc/self/clear_refs", "w").write("5")
before = peak()
done = export("large", "hf", "out", dtype="bfloat16", proof=False, tokenizer=False)
print(done.bytes, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="only Linux tells the peak of a moment")
def test_one_tensor_is_in_memory_at_a_time_on_the_way_out(tmp_path: Path, corpus: Path) -> None:
    for name, sizes in {
        "small": {},
        "large": {"dim": 768, "ffn_dim": 2048, "vocab_size": 4096, "num_layers": 6},
    }.items():
        model = Llama(**{**SIZES, **sizes})
        make_run(tmp_path / name, model, corpus, random_weights(model))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=tmp_path, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    total, peak = map(int, done.stdout.split())
    largest = 4 * 4096 * 768
    assert 2 * total > 12 * largest
    assert peak < 2 * largest + 2**24, f"{peak / 2**20:.0f} MiB for {2 * total / 2**20:.0f} MiB"
