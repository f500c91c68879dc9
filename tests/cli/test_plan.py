"""The `plan` verb: text, JSON alone, exit codes, and nothing heavy imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LLAMA = f"{ROOT}/experiments/llama7b.py"


def test_plan_tells_what_fits(cli):
    answer = cli("plan", f"{LLAMA}:PP4OneFOneB")
    assert answer.code == 0
    assert "on 4x24GB: OneFOneB(), 32 microbatches of 1 x 4096 tokens, 6.74 B parameters\nfits: rank" in answer.out
    assert "embedding, layers 0-7" in answer.out
    assert "*OneFOneB()" in answer.out
    assert "taken for one RTX 4090" in answer.out
    assert answer.err == ""


def test_plan_of_what_does_not_fit_ends_with_advice_and_no_error(cli):
    answer = cli("plan", f"{LLAMA}:PP4OneFOneB", "--gpus", "1x24GB")
    assert answer.code == 0
    assert "note: 1x24GB is 1 card, so planned with parallel = Single()" in answer.out
    assert "does not fit: rank 0 needs" in answer.out
    assert "write in the class body:\n    parallel = Single()" in answer.out
    assert "or:\n    hardware = " in answer.out


def test_plan_prints_json_alone(cli):
    found = cli("plan", f"{LLAMA}:PP4ZeroBubble", "--gpus", "4x24GB,link=6GB/s", "--set", "seq_len=1024", "--json").json
    assert found["target"] == f"{LLAMA}:PP4ZeroBubble"
    assert found["gpus"] == "4x24GB,link=6GB/s"
    assert found["assumptions"]["link_gb_per_second"] == 6
    assert found["schedule"] == "ZeroBubble()"
    assert isinstance(found["fits"], bool)
    assert len(found["ranks"]) == 4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--gpus", "4x24"], None),
        (["--gpus", "lots"], "write 4x24GB"),
        (["--gpus", "4x24GB,speed=3"], "link=12GB/s"),
        (["--gpus", "4x24GB,link=fast"], "write link=12GB/s"),
        (["--set", "parallel=AutoParallel", "--set", "parallel.stages=4"], "no field 'stages'"),
        (["--measured", "nowhere.json"], "doctor --links --out nowhere.json"),
        (["--gpus", "64x24GB"], "name 32 cards or fewer"),
        (["--set", "parallel.schedule.memory_cap=0"], "memory_cap"),
        (["--set", "parallel.stages=33"], "33 stages for 32 layers"),
    ],
)
def test_wrong_hardware_and_settings_are_told_with_what_to_write(cli, arguments, told):
    answer = cli("plan", f"{LLAMA}:PP4ZeroBubble", *arguments)
    assert answer.code == (0 if told is None else 2)
    assert told is None or told in answer.err


def test_plan_of_one_process_has_no_other_schedules(cli):
    answer = cli("plan", f"{ROOT}/experiments/first.py:First", "--gpus", "24GB")
    assert answer.code == 0
    assert "First on 24GB: Single()" in answer.out
    assert "schedule (*" not in answer.out


def test_plan_imports_nothing_heavy():
    code = (
        "import sys; from forgather_dsl.cli.app import run_command; run_command(sys.argv[1:]);"
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy', 'rich', 'pydantic') if m in sys.modules],"
        "file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "plan", f"{LLAMA}:PP4OneFOneB", "--json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"
    assert json.loads(done.stdout)["fits"]


@pytest.mark.slow
def test_plan_runs_the_real_code_beside_the_formulas(cli):
    target = f"{ROOT}/experiments/first.py:FirstPP2"
    found = cli("plan", target, "--gpus", "2x24GB", "--exact", "--json").json
    for rank in found["ranks"]:
        planned = rank["peak_gib"] - rank["memory_gib"]["overhead"]
        assert planned == pytest.approx(rank["exact_peak_gib"], rel=0.03)
    assert "off by" in cli("plan", target, "--gpus", "2x24GB", "--exact").out
    refused = cli("plan", target, "--gpus", "2x24GB", "--exact", "--set", "parallel.spread_head=true")
    assert refused.code == 2
    assert "--exact does not know the shards of a spread head" in refused.err


def test_plan_draws(cli, project, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    target = f"{LLAMA}:PP4OneFOneB"
    answer = cli("plan", target, "--draw", "--svg", "schedule.svg", "--html", "plan.html")
    assert answer.code == 0
    assert {len(line) for line in answer.out.splitlines() if line.startswith("rank ") and "|" in line} == {100}
    assert (project / "schedule.svg").read_text().startswith("<svg ")
    assert target in (project / "plan.html").read_text()


def test_a_picture_that_cannot_be_written_is_told(cli, project):
    answer = cli("plan", f"{LLAMA}:PP4OneFOneB", "--svg", "nowhere/schedule.svg")
    assert answer.code == 2
    assert "--svg nowhere/schedule.svg: No such file or directory" in answer.err


def test_plan_takes_measured_seconds(cli, project):
    seconds = {part: {"F": 0.01, "I": 0.02, "W": 0.01} for part in ("embedding", "layer", "head")}
    measured = {"device": "a card", "seq_len": 4096, "microbatch_size": 1, "seconds": seconds}
    (project / "profile.json").write_text(json.dumps(measured))
    found = cli("plan", f"{LLAMA}:PP4OneFOneB", "--profile", "profile.json", "--json").json
    assert found["assumptions"]["seconds_measured_on"] == "a card"
    assert found["ranks"][1]["busy_seconds"] == pytest.approx(32 * 8 * 0.04)
    answer = cli("plan", f"{LLAMA}:PP4OneFOneB", "--profile", "profile.json", "--set", "seq_len=1024")
    assert answer.code == 2
    assert "seq_len is 4096 in the profile and 1024 here" in answer.err
    (project / "profile.json").write_text("{")
    assert "not JSON" in cli("plan", f"{LLAMA}:PP4OneFOneB", "--profile", "profile.json").err
    assert "write one with run --profile" in cli("plan", f"{LLAMA}:PP4OneFOneB", "--profile", "none.json").err


SMALL = ["--set", "seq_len=1024", "--set", "batch_size=8", "--gpus", "4x24GB,link=3GB/s"]


def test_plan_compares_strategies_and_says_where_they_break_even(cli, project):
    answer = cli("plan", f"{LLAMA}:PP4OneFOneB", *SMALL, "--html", "plan.html")
    assert answer.code == 0
    assert "strategy (* this one)" in answer.out
    assert "*Pipeline(stages=4)" in answer.out
    assert "FSDP2(shards=4)" in answer.out
    assert "GB/s on if all that it sends is hidden" in answer.out
    assert "at 3 GB/s, this link, from" in answer.out
    assert "without peer-to-peer" in answer.out
    page = (project / "plan.html").read_text()
    assert "Strategies on the same cards" in page
    assert "FSDP2(shards=4)" in page
    found = cli("plan", f"{LLAMA}:PP4OneFOneB", *SMALL, "--json").json
    assert {"parallel", "fits", "peak_gib", "tokens_per_second", "rho", "bubble_factor", "verdict"} <= set(
        found["strategies"][0]
    )
    assert found["break_even"]["pipeline_wins"]


def test_plan_chooses_for_auto_parallel(cli, project):
    target = f"{ROOT}/experiments/first.py:First"
    auto = ("--set", "parallel=AutoParallel", "--gpus", "2x24GB,link=1GB/s")
    found = cli("plan", target, *auto, "--json").json
    (own,) = [row for row in found["strategies"] if row["this"]]
    assert own == max(
        (row for row in found["strategies"] if row["fits"] and row["microbatch_size"] == 2),
        key=lambda row: row["tokens_per_second"],
    )
    assert found["choice"].startswith(own["parallel"])
    assert f"note: AutoParallel: {own['parallel']}: " in cli("plan", target, *auto).out


def test_options_of_links_go_with_links(cli):
    assert "write doctor --links too" in cli("doctor", "--ranks", "2").err
    assert "a link has two ends" in cli("doctor", "--links", "--ranks", "1").err
    assert "its folder does not exist" in cli("doctor", "--links", "--out", "nowhere/links.json").err
