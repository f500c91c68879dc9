"""Models as files that need torch alone: users' own parts, models too large to try, refusals, and what a run leaves."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import codegen
from forgather_dsl.dsl import build, load
from forgather_dsl.errors import UserError
from forgather_dsl.interop import finished, standalone, tracing
from forgather_dsl.interop.finished import write_model
from forgather_dsl.interop.outgoing import open_outgoing
from forgather_dsl.interop.standalone import check_of, source_of, write_text
from forgather_dsl.interop.tracing import traced
from forgather_dsl.interop.twin import same_code, twin_of
from forgather_dsl.models.init import tie_weights

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PARTS = (HERE / "own_parts.py").read_text()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Experiments with parts of their own, in a file that no import statement finds."""
    (tmp_path / "own-parts.py").write_text(PARTS)
    return tmp_path / "own-parts.py"


def test_parts_of_users_are_taken_in_and_the_text_knows_no_folder(own: Path) -> None:
    found = {name: traced(load(f"{own}:{name}")().model) for name in ("OwnNorm", "Called")}
    checks = [check_of(load(f"{own}:{name}")().model, each) for name, each in found.items()]
    for result in codegen.verify_many(checks):
        assert isinstance(result, codegen.Report), result
    text = found["OwnNorm"].source.text
    assert "class Scaled(nn.Module)" in text
    assert "# larger" in text, "a comment of what stays"
    assert re.search(r"^    own-parts:\d+  self.power == 2  ->  True$", text, re.MULTILINE)
    assert "\nfrom torch.nn import LayerNorm\n" in found["Called"].source.text
    assert "input_layernorm=LayerNorm(normalized_shape=(24,), eps=0.0001)," in found["Called"].source.text
    for each in found.values():
        assert str(own.parent) not in each.source.text
        assert "_experiment_" not in each.source.text
        assert "built_" not in each.source.text
        assert not re.search(
            r"\b(forgather_dsl|attrs)\b", "\n".join(re.findall(r"^\s*(?:from|import) .*", each.source.text))
        )


def test_what_has_no_source_is_refused_with_its_place(own: Path) -> None:
    with pytest.raises(UserError) as raised:
        source_of(load(f"{own}:Refused")())
    line = 1 + PARTS.split("\n").index('        return eval("x * self.weight")')
    assert f"own-parts.py:{line}: " in str(raised.value)
    assert "eval" in str(raised.value)


def test_a_file_that_is_another_model_is_not_written(
    tmp_path: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = codegen.trace

    def wrong(*arguments: Any, **options: Any) -> codegen.Source:
        source = trace(*arguments, **options)
        return dataclasses.replace(source, text=source.text.replace("eps=1e-05", "eps=1e-03"))

    experiment = load(f"{own}:Small")()
    monkeypatch.setattr(tracing.codegen, "trace", wrong, raising=False)
    with pytest.raises(UserError, match="the emitted model is another one"):
        write_text(experiment, str(tmp_path))
    assert not (tmp_path / "model.py").exists()


@pytest.mark.slow
def test_a_large_model_is_proven_by_a_twin_with_the_same_code(tmp_path: Path) -> None:
    experiment = load(f"{ROOT}/experiments/llama7b.py:Llama31PP2")()
    lines = write_text(experiment, str(tmp_path))
    assert re.match(
        r"proven by a twin of [\d,]+ parameters, whose file differs in the numbers it is built with alone", lines[0]
    )
    assert lines[1] == "not tried: the model itself, whose 8,030,261,248 parameters are too many to hold twice"
    assert "dim=4096," in (tmp_path / "model.py").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["QwenPP4", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("PP4OneFOneB", "MistralPP4"))]
)
def test_a_twin_has_the_code_of_its_model(name: str) -> None:
    model = load(f"{ROOT}/experiments/llama7b.py:{name}")().model
    twin: Any = twin_of(model)
    assert twin.dim < 100
    assert same_code(traced(model).source, traced(twin).source)
    other = dataclasses.replace(
        traced(twin).source, text=traced(twin).source.text.replace("1e-05", "1e-04").replace("1e-06", "1e-04")
    )
    assert not same_code(traced(model).source, other)


SMALL = """
from forgather_dsl import *
from own_parts import OwnNorm, Refused

class Tiny(Experiment, abstract=True):
    seq_len = 16
    batch_size = 4
    steps = 2
    sampling = None
    loggers = ()
    data = TextFiles(paths="{corpus}", held_out=0.0)
    tokenizer = Bytes()

class Tied(Tiny):
    model = patch(Llama, dim=32, num_layers=2, num_heads=2, tie_embeddings=True)

class TiedPP2(Tied):
    parallel = Pipeline(stages=2)

class Own(Tiny, OwnNorm):
    pass

class NoSource(Tiny, Refused):
    pass
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Experiments of a second, in files of their own."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "own_parts.py").write_text(PARTS)
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 100)
    (folder / "tiny.py").write_text(SMALL.format(corpus=folder / "text.txt"))
    return folder / "tiny.py"


@pytest.fixture
def with_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORGATHER_NO_MODEL")


def opened(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("emitted_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def logits_of_checkpoint(run: Path, tokens: torch.Tensor) -> torch.Tensor:
    weights = open_outgoing(str(run))
    model: Any = build(weights.experiment.model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in weights.tensors():
            parameters[name].copy_(tensor)
    tie_weights(model)
    return model.eval()(tokens)


@pytest.mark.usefixtures("with_models")
@pytest.mark.parametrize("name", ["Tied", pytest.param("TiedPP2", marks=pytest.mark.exhaustive)])
def test_a_finished_run_leaves_its_model(
    name: str, tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(tiny, name, tmp_path / "run")
    folder = tmp_path / "run" / "model"
    said = f"model   {folder}: model.py, model.safetensors: the same with torch alone, bit for bit"
    assert said in capfd.readouterr().out
    assert sorted(os.listdir(folder)) == ["model.py", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    module, tokens = opened(folder), torch.arange(60)[None]
    model = module.load_model(str(folder / "model.safetensors"))
    assert torch.equal(model(tokens), logits_of_checkpoint(tmp_path / "run", tokens))
    assert model.lm_head.weight is model.model.embed_tokens.weight

    assert write_model(str(tmp_path / "run")) == "", "nothing is new"
    monkeypatch.setattr(finished, "MOST_BYTES", 0)
    (folder / "model.py").unlink()
    assert "model.py; export --to torch writes the weights" in write_model(str(tmp_path / "run"))
    assert "model.safetensors" not in os.listdir(folder)
    assert os.listdir(tmp_path / "run" / "model"), "the old one is replaced, and nothing else is left"
    assert not [entry for entry in os.listdir(tmp_path / "run") if "model" in entry and entry != "model"]


def _run(tiny: Path, name: str, out: Path) -> None:
    from forgather_dsl.train.trainer import Trainer

    Trainer(load(f"{tiny}:{name}")(), out=str(out)).fit()


@pytest.mark.usefixtures("with_models")
def test_a_run_whose_model_has_no_source_is_a_run_all_the_same(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _run(tiny, "NoSource", tmp_path / "run")
    assert f"no {tmp_path / 'run' / 'model'}: this model has no source that stands alone" in capfd.readouterr().out
    assert not (tmp_path / "run" / "model").exists()
    assert os.listdir(tmp_path / "run" / "checkpoints")


def test_a_bug_at_the_end_is_told_and_no_failure_of_the_run(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(tiny, "Own", tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists(), "FORGATHER_NO_MODEL=1"

    def broken(*arguments: Any) -> None:
        raise RuntimeError("unheard of")

    monkeypatch.setattr(standalone, "check", broken)
    told = write_model(str(tmp_path / "run"), load(f"{tiny}:Own")())
    assert "RuntimeError: unheard of (this should not happen" in told
    assert not (tmp_path / "run" / "model").exists()
    without = write_model(str(tmp_path / "run"))
    assert "--trust" in without, "a part that nobody vouched for is not imported"
