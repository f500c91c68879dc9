"""`report`: groups, verdicts, what is unfair, and run directories that are broken, unfinished or hostile."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from made_runs import made, of_seeds

from forgather_dsl import UserError, report

NOISE = [0.00, 0.02, -0.01]


def losses(mean: float, extra: tuple[float, ...] = (0.0, 0.0, 0.0)) -> list[float]:
    return [mean + noise + more for noise, more in zip(NOISE, extra)]


def verdict_of(found: Any, name: str) -> Any:
    return next(v for group, v in zip(found.groups, found.verdicts) if group.name == name)


@pytest.fixture
def ablations(tmp_path: Path) -> Path:
    of_seeds(tmp_path, "Better", losses(2.5, (0.001, -0.001, 0.0)), {"optimizer": "Muon", "optimizer.momentum": "0.95"})
    of_seeds(tmp_path, "Base", losses(3.0))
    of_seeds(tmp_path, "Same", losses(3.0, (0.01, -0.02, 0.012)), {"optimizer.lr": "0.002"})
    of_seeds(tmp_path, "Bits", losses(3.0), {"parallel": "Pipeline"})
    return tmp_path


def test_seeds_are_one_group_and_only_what_differs_is_shown(ablations: Path):
    found = report(str(ablations))
    assert [group.name for group in found.groups] == ["Base", "Better", "Bits", "Same"]
    assert found.groups[found.base].name == "Base"
    changed = dict(zip((group.name for group in found.groups), found.changes))
    assert changed["Base"] == []
    assert changed["Better"] == [("optimizer", "AdamW", "Muon")]  # its momentum comes with it
    assert changed["Same"] == [("optimizer.lr", "0.001", "0.002")]
    assert changed["Bits"] == [("parallel", "-", "Pipeline")]


def test_a_setting_that_only_changes_what_is_told_makes_no_group(tmp_path: Path):
    made(tmp_path, "Base", 0)
    made(tmp_path, "Base", 1, settings={"log_every": "1", "sampling.top_k": "7", "loggers[1]": "TensorBoard"})
    assert len(report(str(tmp_path)).groups) == 1


def test_groups_of_one_class_are_named_by_what_tells_them_apart(tmp_path: Path):
    for rate in ("0.001", "0.002"):
        made(tmp_path / rate, "Base", settings={"optimizer.lr": rate})
    assert [group.name for group in report(str(tmp_path)).groups] == ["Base lr=0.001", "Base lr=0.002"]


def test_groups_of_a_sweep_over_several_classes_are_named_after_these(tmp_path: Path):
    for name in ("Base", "Wide"):
        folder = made(tmp_path, name, settings={"optimizer.lr": {"Base": "0.1", "Wide": "0.2"}[name]})
        (folder / "config.json").write_text(json.dumps({"$type": f"lab:{name}"}))
        (folder / "environment.json").write_text(json.dumps({"target": "lab.py:all_of_them"}))
    assert {group.name for group in report(str(tmp_path)).groups} == {"Base", "Wide"}


def test_what_is_real_and_what_is_noise(ablations: Path):
    found = report(str(ablations))
    better, same, bits = (verdict_of(found, name) for name in ("Better", "Same", "Bits"))
    assert (better.kind, same.kind, bits.kind) == ("better", "noise", "identical")
    assert better.difference.value == pytest.approx(-0.5)
    assert better.difference.low < -0.5 < better.difference.high < 0
    assert better.corrected == pytest.approx(3 * better.difference.p)  # of three comparisons the clearest
    assert "would not show" in same.text
    assert found.groups[found.order[0]].name == "Better"
    turned = report(str(ablations), base="Better")
    assert verdict_of(turned, "Base").kind == "worse"


def test_many_comparisons_are_held_to_more(tmp_path: Path):
    of_seeds(tmp_path, "Base", losses(3.0))
    of_seeds(tmp_path, "Perhaps", losses(3.1, (0.02, -0.02, 0.0)), {"optimizer.lr": "1"})
    assert verdict_of(report(str(tmp_path)), "Perhaps").kind == "worse"
    for index in range(6):
        of_seeds(tmp_path, f"Other{index}", losses(3.0, (0.1, -0.1, 0.01 * index)), {"optimizer.lr": str(index + 2)})
    verdict = verdict_of(report(str(tmp_path)), "Perhaps")
    assert verdict.kind == "noise"
    assert "alone, but 7 were compared" in verdict.text


def test_one_run_or_a_diverged_one_gets_no_test(tmp_path: Path):
    of_seeds(tmp_path, "Base", losses(3.0))
    made(tmp_path, "Once", 0, 2.0, settings={"optimizer.lr": "1"})
    of_seeds(tmp_path, "Lost", [2.0, math.nan, 2.1], {"optimizer.lr": "2"})
    found = report(str(tmp_path))
    assert verdict_of(found, "Once").text == "unknown: one run says nothing of noise"
    assert verdict_of(found, "Lost").text == "1 of 3 runs diverged"
    json.dumps(found.data, allow_nan=False)


def test_the_same_seed_twice_is_no_second_sample(tmp_path: Path):
    made(tmp_path / "a", "Base", 0, 3.0)
    made(tmp_path / "b", "Base", 0, 3.0)
    found = report(str(tmp_path))
    assert found.outcomes[0].mean.runs == 1  # type: ignore[union-attr]
    assert any("no second sample" in text for text in found.warnings)


def test_other_tokenizers_are_compared_in_bits_per_byte_alone(tmp_path: Path):
    of_seeds(tmp_path, "Base", losses(3.0))
    start = {"data_fingerprint": "x", "eval_fingerprint": "y"}
    of_seeds(tmp_path, "Words", losses(4.0), {"tokenizer": "TrainedBPE"}, start=start)
    found = report(str(tmp_path))
    assert found.metric.name == "eval_bits_per_byte"
    assert verdict_of(found, "Words").kind == "worse"
    forced = report(str(tmp_path), by="eval_loss")
    assert verdict_of(forced, "Words").kind == "apart"
    assert "another tokenizer" in verdict_of(forced, "Words").text


def test_what_makes_a_comparison_unfair_is_said(tmp_path: Path):
    of_seeds(tmp_path, "Base", losses(3.0))
    of_seeds(
        tmp_path, "Text", losses(2.0), {"optimizer.lr": "2"}, start={"eval_fingerprint": "z", "data_fingerprint": "w"}
    )
    made(tmp_path, "Other", 0, 3.0, settings={"optimizer.lr": "3"}, start={"device": "NVIDIA H200"})
    longer = {"step": 50, "data_fingerprint": "d", "steps": 200}
    made(tmp_path, "Longer", 0, 3.0, settings={"optimizer.lr": "4"}, records=(longer,))
    made(tmp_path, "Short", 0, 3.0, settings={"optimizer.lr": "5"}, steps=50, state="stopped")
    found = report(str(tmp_path))
    assert verdict_of(found, "Text").text == "not comparable: other held-out text"
    told = "\n".join(found.warnings)
    for part in (
        "1 run is stopped, at step 50",
        "training text is not the same although its settings are",
        "different machines: cpu, 1 threads of x with 2 cores; NVIDIA H200 of x",
        "its end was changed from 100 to 200 steps, last when it was resumed at step 50",
    ):
        assert part in told
    assert verdict_of(found, "Short").text == "no result yet"


def test_runs_in_progress_are_compared_at_the_step_they_share(tmp_path: Path):
    of_seeds(tmp_path, "Base", losses(3.0), steps=90, state="stopped")
    of_seeds(tmp_path, "Other", losses(2.0), {"optimizer.lr": "2"}, steps=60, state="stopped")
    found = report(str(tmp_path))
    assert found.step == 50
    assert verdict_of(found, "Other").kind == "better"
    assert "compared at step 50" in found.warnings[0]
    with pytest.raises(UserError, match="--step 60: no run has eval_loss at it; the last there are: 50"):
        report(str(tmp_path), step=60)


def test_broken_files_cost_a_line_and_not_the_report(tmp_path: Path):
    of_seeds(tmp_path, "Base", losses(3.0))
    cut, garbage, bare, odd = (made(tmp_path, "Cut", seed) for seed in range(4))
    file = cut / "metrics.jsonl"
    file.write_text(file.read_text() + '{"step": 100, "lo')
    (garbage / "metrics.jsonl").write_text('{"step": 0}\nnot json\n{"step": 1, "loss": 2}\n')
    (garbage / "environment.json").write_text("[1]")
    for name in ("metrics.jsonl", "snapshot.txt", "environment.json"):
        (bare / name).unlink()
    lines = [{"step": 1, "loss": "high", "tokens": [], "eval_loss": True}, {"step": 2, "loss": 1.0, "tokens": None}]
    (odd / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = report(str(tmp_path))
    told = "\n".join(found.warnings)
    assert "metrics.jsonl:2: not JSON" in told
    assert "environment.json is not a JSON object" in told
    for text in (found.text(), found.markdown(), found.html(), found._repr_html_()):
        assert "Base" in text
    json.dumps(found.data, allow_nan=False)


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>`|**\x1b[2J</pre>'


def test_nothing_from_a_run_becomes_markup_or_steers_a_terminal(tmp_path: Path):
    of_seeds(tmp_path, "Base", losses(3.0))
    made(
        tmp_path,
        "Other",
        0,
        2.0,
        settings={HOSTILE: "1", "optimizer": HOSTILE},
        sample=HOSTILE,
        start={"device": HOSTILE},
    )
    found = report(str(tmp_path))
    page = found.html()
    for text in (page, found._repr_html_()):
        inside = re.sub(r"<style>.*?</style>|<script>.*?</script>", "", text, count=2, flags=re.S)
        assert "<script" not in inside
        assert "<img" not in inside
        assert "&lt;script&gt;" in inside
    assert page.count("<script>") == 1
    assert "script-src 'sha256-" in page
    assert "\x1b" not in page + found.text(with_samples=True) + found.markdown()
    prose = re.sub(r"^(`{3,})text\n.*?^\1$", "", found.markdown(), flags=re.S | re.M)
    assert "\\<script" in prose
    assert "<img" not in prose.replace("\\<", "")


def test_a_page_works_offline_and_shows_bands_for_seeds(ablations: Path):
    page = report(str(ablations)).html()
    assert not re.search(r"(src|href)=|@import|url\(", page)
    assert page.count('class="chart multi x0 linear"') == page.count('class="chart multi x2 log"') >= 3
    assert page.count('<polygon class="band"') > 4
    assert page.count('<g class="v better">') == 1


def test_curves_average_seeds_over_steps_tokens_and_seconds(ablations: Path):
    from forgather_dsl.runs.curves import curves

    found = report(str(ablations), smooth=3)
    curve = curves(found.groups, "eval_loss", 1, None)[0]
    assert curve.runs == 3
    assert [point.x for point in curve.points] == [
        (50.0, 3200.0, pytest.approx(5.0)),
        (100.0, 6400.0, pytest.approx(10.0)),
    ]
    values = [3.0 + noise for noise in NOISE]
    mean = sum(values) / 3
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / 2)
    assert curve.points[-1].mean == pytest.approx(mean)
    assert curve.points[-1].high == pytest.approx(mean + spread)
    smoothed = curves(found.groups, "loss", 3, None)[0].points
    assert smoothed[3].mean == pytest.approx(5.0 - 0.4)  # of a straight line a running mean is the line


def test_ranks_show_what_was_measured_beside_the_plan(tmp_path: Path):
    run = made(tmp_path, "Base", ranks=2)
    (run / "plan.json").write_text(
        json.dumps({"ranks": [{"peak_gib": 1.25, "bubble": 0.15}, {"peak_gib": 1.5, "bubble": 0.3}]})
    )
    text = report(str(run)).text()
    assert re.search(r"Base\s+0\s+1\.00\s+1\.25\s+20\.0%\s+15\.0%", text)
    assert re.search(r"1\s+1\.00\s+1\.50\s+30\.0%\s+30\.0%", text)


def test_runs_are_found_in_folders_and_by_patterns_but_not_inside_runs(tmp_path: Path):
    first = made(tmp_path / "deep" / "er", "Base")
    made(first / "checkpoints", "Inner")
    made(tmp_path, "Gone", 0)
    (tmp_path / "sweep.json").write_text(json.dumps({"members": [{"run": "Gone-0", "dropped": True}]}))
    assert [r.path for r in report(str(tmp_path)).records] == [str(first)]
    assert [r.path for r in report(str(tmp_path / "de*"), str(first)).records] == [str(first)]
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as caught:
        report(str(tmp_path / "no*"), str(tmp_path / "nowhere"), str(tmp_path / "file"), str(tmp_path / "empty"))
    for part in ("matches nothing", "does not exist", "is a file", "holds no run"):
        assert part in str(caught.value)


def test_what_is_asked_for_has_to_be_there(ablations: Path):
    with pytest.raises(UserError, match=r"--base 'Bas' is none of these groups .*'Base'"):
        report(str(ablations), base="Bas")
    with pytest.raises(
        UserError, match="--metric 'acc': no run has it; write one of eval_loss, eval_bits_per_byte, loss"
    ):
        report(str(ablations), by="acc")
    assert report(str(ablations), base=str(ablations / "Same-1")).groups[3].name == "Same"
    speed = report(str(ablations), by="tokens_per_second")
    assert verdict_of(speed, "Same").kind == "identical"


def test_sixty_runs_make_one_readable_page(tmp_path: Path):
    for index in range(20):
        of_seeds(tmp_path, f"Model{index}", losses(3.0 + index / 50), {"optimizer.lr": str(index)})
    found = report(str(tmp_path))
    assert len(found.groups) == 20
    assert len(found.html()) < 2_000_000
    assert 'stroke-dasharray="6 3"' in found.html()  # colours come again, in dashes
