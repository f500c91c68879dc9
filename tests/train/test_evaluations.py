"""Finished models evaluated again: the number that training wrote, on other text, against each other, and through lm-eval."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from forgather_dsl import BF16, Bytes, Run, TextFiles, TrainedBPE, Trainer, UserError, replace
from forgather_dsl.cli.app import run_command
from forgather_dsl.specs import ChunkedCrossEntropy


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextFiles:
    file = tmp_path_factory.mktemp("text") / "prose.txt"
    file.write_text("All happy families are alike; each unhappy family is unhappy in its own way.\n" * 20)
    return TextFiles(paths=str(file), split="all")


@pytest.fixture(scope="module")
def runs(small: Any, text: TextFiles, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run directories of a byte model with everything that changes bits, of one in bfloat16, and of one with a tokenizer."""
    folder = tmp_path_factory.mktemp("runs")
    base = small.Hard(steps=4, eval_sets={"prose": text})
    made = {
        "bytes": base,
        "bf16": replace(base, precision=BF16(), optimizer=small.AdamW(lr=1e-3), loss=ChunkedCrossEntropy()),
        "words": replace(base, tokenizer=TrainedBPE(vocab_size=300, source=base.data), model=small.Small().model),
    }
    made["words"] = replace(made["words"], model=replace(made["words"].model, vocab_size=300))
    return {name: Trainer(one, out=str(folder / name)).fit().path for name, one in made.items()}


def run(*words: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any, str]:
    capsys.readouterr()
    code = run_command([*words, "--json"])
    told = capsys.readouterr()
    return code, json.loads(told.out) if told.out else None, told.err


@pytest.mark.parametrize("name", ["bytes", "bf16", "words"])
def test_evaluated_again_it_is_the_number_of_training_bit_for_bit(
    runs: dict[str, str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found, err = run("eval", runs[name], capsys=capsys)
    assert code == 0, err
    written = next(r for r in reversed(Run(runs[name]).metrics) if "eval_loss" in r)
    assert found["step"] == 4
    for key, after in (("eval_data", ""), ("prose", "/prose")):
        for value in ("loss", "bits_per_byte", "perplexity"):
            assert found["sets"][key][value] == written[f"eval_{value}{after}"], (key, value)
    told = Run(runs[name]).metrics[0]
    assert found["sets"]["prose"]["fingerprint"] == told["eval_sets"]["prose"]["fingerprint"]


def test_results_are_kept_beside_earlier_ones_of_the_step(
    runs: dict[str, str], text: TextFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "more.txt"
    file.write_text("It was the best of times, it was the worst of times.\n" * 10)
    code, found, _ = run("eval", runs["bytes"], "--data", f"more={file}", capsys=capsys)
    assert code == 0
    assert list(found["sets"]) == ["more"]
    path = Path(runs["bytes"]) / "evaluations" / "sets-step-00000004.json"
    assert found["file"] == str(path)
    kept = json.loads(path.read_text())
    assert {"more"} <= set(kept["sets"])
    checkpoint = str(Path(runs["bytes"]) / "checkpoints" / "step-00000003")
    code, found, _ = run("eval", checkpoint, "--data", f"more={file}", "--no-save", capsys=capsys)
    assert (code, found["step"], found["file"]) == (0, 3, None)
    assert found["sets"]["more"]["loss"] != kept["sets"]["more"]["loss"]


def test_two_models_are_compared_piece_by_piece(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    code, found, err = run("compare", runs["bytes"], runs["words"], "--top", "4", "--html", str(page), capsys=capsys)
    assert code == 0, err
    for side, name in enumerate(("bytes", "words")):
        written = next(r for r in reversed(Run(runs[name]).metrics) if "eval_loss" in r)
        assert found["bits_per_byte"][side] == pytest.approx(written["eval_bits_per_byte"], rel=1e-6)
    low, high = found["interval"]
    assert low < found["difference"] < high
    assert found["difference"] == pytest.approx(found["bits_per_byte"][1] - found["bits_per_byte"][0])
    assert len(found["places"]["second_better"]) == 4
    assert "<pre>" in page.read_text()
    assert "http" not in page.read_text()
    code, same, _ = run("compare", runs["bytes"], runs["bytes"], capsys=capsys)
    assert (code, same["difference"], same["interval"]) == (0, 0.0, [0.0, 0.0])


def test_an_exported_folder_has_the_same_loss(
    runs: dict[str, str], text: TextFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from forgather_dsl.interop.export import export

    out = str(tmp_path / "hf")
    export(runs["words"], "hf", out, proof=False)
    data = f"prose={text.paths[0]}"
    code, found, err = run("eval", out, runs["words"], "--data", data, "--no-save", capsys=capsys)
    assert code == 0, err
    folder, own = found
    assert folder["step"] is None
    assert folder["file"] is None
    assert folder["sets"]["prose"]["tokens"] == own["sets"]["prose"]["tokens"]
    assert folder["sets"]["prose"]["bits_per_byte"] == pytest.approx(own["sets"]["prose"]["bits_per_byte"], rel=1e-6)
    code, _, err = run("eval", out, capsys=capsys)
    assert code == 2
    assert "names no held-out text; write --data NAME=SOURCE" in err


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["eval", "RUN", "--data", "x"], "--data 'x': write NAME=SOURCE"),
        (["eval", "RUN", "--data", "x=No(a=1)"], "No is no source; write one of HF, "),
        (["eval", "RUN", "--data", "x=TextFiles(paths=f())"], "write a path, or a source such as"),
        (["eval", "RUN", "--data", "x=TextFiles(path='a')"], "no field 'path'; did you mean 'paths'?"),
        (["eval", "RUN", "--data", "x=/nowhere.txt", "--data", "y=/nobody.txt"], "y: "),
        (["eval", "/nowhere"], "'/nowhere' is no folder"),
        (["eval", "RUN", "--limit", "3"], "--limit and --task-folder are for --tasks"),
        (["eval", "RUN", "--tasks", "a", "--data", "x=y"], "write --data or --tasks"),
        (["compare", "RUN", "OTHER"], "do not hold out the same text; write --data"),
        (["compare", "RUN", "RUN", "--data", "a=b", "--data", "c=d"], "compare takes one text"),
        (["compare", "RUN", "RUN", "--html", "/nowhere/page.html"], "--html /nowhere/page.html"),
    ],
)
def test_bad_input_is_explained(
    runs: dict[str, str], words: list[str], wanted: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    if "OTHER" in words:
        (other / "checkpoints").mkdir(parents=True)
        config = json.loads((Path(runs["bytes"]) / "config.json").read_text())
        config["eval_data"]["held_out"] = 0.3
        (other / "config.json").write_text(json.dumps(config))
    named = {"RUN": runs["bytes"], "OTHER": str(other)}
    code, _, err = run(*(named.get(word, word) for word in words), capsys=capsys)
    assert code == 2
    assert wanted in err


TASK = """
task: tiny_choice
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
metadata: {{version: 1}}
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
def test_tasks_of_lm_eval_run_on_the_exported_model(
    runs: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    file = tmp_path / "tiny.jsonl"
    rows = [{"question": f"def function_{i}", "choices": ["_1(x, y", "QQ~~Q^^"], "answer": i % 2} for i in range(6)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(TASK.format(file=file))
    words = ["eval", runs["words"], "--task-folder", str(tmp_path)]
    code, found, err = run(*words, "--tasks", "tiny_choice", "--limit", "4", capsys=capsys)
    assert code == 0, err
    assert found["tasks"]["tiny_choice"]["acc"] == 0.5  # it likes what it has seen
    kept = json.loads(Path(found["file"]).read_text())
    assert (kept["step"], kept["limit"]) == (4, 4)
    code, _, err = run(*words, "--tasks", "tiny_choise", capsys=capsys)
    assert code == 2
    assert "lm-eval knows no such task; did you mean tiny_choice" in err


@pytest.mark.slow
def test_a_run_of_two_ranks_is_evaluated_by_one_with_the_same_bits(
    small: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Trainer(small.HardPP2(steps=3), out=str(tmp_path / "run")).fit().path
    code, found, _ = run("eval", path, capsys=capsys)
    assert code == 0
    assert found["sets"]["eval_data"]["loss"] == Run(path).series("eval_loss")[-1][1]


def test_ids_with_ends_are_those_of_the_stream(small: Any) -> None:
    from forgather_dsl import build

    texts = ["def naïve(x):\n\n    return  x  \n", "  ", "☃ and <|endoftext|> and é\t"]
    for spec in (Bytes(), TrainedBPE(vocab_size=300, source=small.Small().data)):
        tokenizer: Any = build(spec)
        for text, ids, (own, ends) in zip(texts, tokenizer.encode_batch(texts), tokenizer.encode_ends(texts)):
            assert own == ids
            assert ends == sorted(ends)
            assert ends[-1] == len(text)


def test_no_experiment_without_weights_is_evaluated(small: Any, tmp_path: Path) -> None:
    from forgather_dsl.runs.evaluations import evaluate_sets, own_sets, subject_of_run

    run_path = tmp_path / "run"
    Trainer(small.Small(steps=1), out=str(run_path)).fit()
    for checkpoint in (run_path / "checkpoints").iterdir():
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    of = subject_of_run(str(run_path))
    with pytest.raises(UserError, match="has no checkpoint"):
        evaluate_sets(of, own_sets(of.experiment))
