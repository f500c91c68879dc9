"""What a notebook shows of an experiment, a plan and a run: HTML that needs nothing else, with everything escaped."""

from __future__ import annotations

from pathlib import Path

from made_runs import made

from forgather_dsl import AdamW, Experiment, Llama, Run, patch
from forgather_dsl.plan.planner import plan


class Shown(Experiment):
    """Shown in a <notebook>."""

    steps = 10
    seq_len = 64
    model = patch(Llama, dim=32, num_layers=2, num_heads=2)
    optimizer = AdamW(lr=0.5)


class Unfilled(Experiment):
    """Its model's sizes are left to others."""

    steps = 10


def test_an_experiment_is_a_table_of_values_and_who_set_them():
    html = Shown()._repr_html_()
    assert html.startswith("<details><summary><b>Shown ← Experiment</b> Shown in a &lt;notebook&gt;.")
    assert '<td style="text-align:left">optimizer.lr</td><td style="text-align:left">0.5</td>' in html
    assert (
        '<td style="text-align:left">steps</td><td style="text-align:left">10</td><td style="text-align:left">Shown</td>'
        in html
    )
    assert (
        '<td style="text-align:left">model.dim</td><td style="text-align:left">REQUIRED</td>'
        in Unfilled()._repr_html_()
    )


def test_a_plan_is_its_page_without_the_frame():
    html = plan(Shown(), "1x24GB")._repr_html_()
    assert html.startswith("<div><style>.fg{")
    assert "One step, as simulated" in html
    assert "<html" not in html


def test_a_run_shows_its_result_and_its_curve(tmp_path: Path):
    html = Run(str(made(tmp_path, "Base", loss=2.5)))._repr_html_()
    assert "2.5000" in html
    assert '<polyline class="line"' in html
    assert "<script" not in html
