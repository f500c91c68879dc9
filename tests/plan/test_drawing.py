"""Schedules as text and as pictures: what is drawn is what was simulated."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from forgather_dsl import Experiment, Llama, Pipeline, ZeroBubbleH1, patch
from forgather_dsl.plan.contract import to_dict
from forgather_dsl.plan.costs import uniform
from forgather_dsl.plan.drawing import timeline_text
from forgather_dsl.plan.page import html
from forgather_dsl.plan.picture import svg
from forgather_dsl.plan.planner import plan
from forgather_dsl.plan.schedules import gpipe, one_f_one_b, simulate, zero_bubble_h1, zero_bubble_v

SVG = "{http://www.w3.org/2000/svg}"


class Drawn(Experiment):
    """<Four> & more."""

    steps = 1
    batch_size = 8
    microbatch_size = 1
    hardware = "2x24GB"
    parallel = Pipeline(stages=2, schedule=ZeroBubbleH1())
    model = patch(Llama, vocab_size=500, dim=64, num_layers=4, num_heads=4)


@pytest.mark.parametrize("width", [40, 80, 133, 400])
def test_every_line_has_the_width_of_the_terminal(width):
    for schedule in (one_f_one_b(4, 16), zero_bubble_v(4, 16), gpipe(1, 1)):
        lines = timeline_text(schedule, simulate(schedule), width).splitlines()
        assert {len(line) for line in lines[: schedule.num_ranks]} == {width}


def test_wide_drawings_label_every_action():
    schedule = zero_bubble_v(2, 4)
    text = timeline_text(schedule, simulate(schedule), 300)
    for row, line in zip(schedule.actions, text.splitlines()):
        assert re.findall(r"\d[FBIW]\d", line) == list(map(str, row))
    assert "2F0 is stage 2, microbatch 0" in text


def test_narrow_drawings_have_a_letter_for_as_long_as_an_action_lasts():
    schedule = one_f_one_b(2, 4)
    result = simulate(schedule)
    assert result.makespan == 15
    columns = len("rank 0 |") + len("| bubble 20.0%")
    first, second, legend = timeline_text(schedule, result, columns + 15).splitlines()
    assert first.endswith("| bubble 20.0%")
    assert first[8:23].count("F") == second[8:23].count("F") == 4
    assert first[8:23].count("B") == second[8:23].count("B") == 8
    assert first[8:23].count(".") == 3
    assert legend == "F forward, B backward, . idle; 15 s from left to right"


def test_later_stages_of_a_rank_are_small_letters():
    schedule = zero_bubble_v(2, 4)
    first = timeline_text(schedule, simulate(schedule), 50).splitlines()[0]
    assert set(first[8:36]) - set("FIWfiw.|") == set()
    assert "f" in first
    assert "F" in first


def test_colours_are_for_terminals_and_do_not_change_the_width():
    schedule = zero_bubble_h1(4, 8)
    result = simulate(schedule)
    colored = timeline_text(schedule, result, 100, color=True)
    assert "\x1b[" in colored
    plain = re.sub(r"\x1b\[[0-9;]*m", "", colored)
    assert {len(line) for line in plain.splitlines()[:4]} == {100}
    assert "\x1b" not in timeline_text(schedule, result, 100)


def boxes(picture):
    root = ElementTree.fromstring(picture)
    return [(rect, title.text) for rect in root.iter(f"{SVG}rect") if (title := rect.find(f"{SVG}title")) is not None]


def test_the_picture_has_a_box_per_action_where_the_simulation_has_it():
    schedule = zero_bubble_v(4, 8)
    costs = uniform(8, 4, 1.0, 1.5, 0.5)
    result = simulate(schedule, costs)
    found = boxes(svg(schedule, result, costs, "a < b & c"))
    intervals = [interval for line in result.timeline for interval in line]
    assert len(found) == len(intervals)
    scale = float(found[-1][0].get("x", 0)) - 64
    scale /= intervals[-1].start
    for (rect, told), (action, start, end) in zip(found, intervals):
        assert told.startswith(f"{action}: ")
        assert f"stage {action.stage}, microbatch {action.microbatch}" in told
        assert float(rect.get("x")) == pytest.approx(64 + start * scale, abs=0.1)
        assert float(rect.get("width")) == pytest.approx((end - start) * scale - 0.8, abs=0.1)
        depth = schedule.stages_of(schedule.placement[action.stage]).index(action.stage)
        assert rect.get("class") == f"{action.kind}{depth}"


def test_the_memory_curve_ends_empty_and_peaks_at_the_peak():
    schedule = zero_bubble_h1(4, 8)
    costs = uniform(4, 4)
    result = simulate(schedule, costs)
    root = ElementTree.fromstring(svg(schedule, result, costs, "curves"))
    for curve, peak in zip(root.iter(f"{SVG}polygon"), result.peak_bytes):
        heights = [float(point.split(",")[1]) for point in curve.get("points", "").split()]
        base = heights[0]
        assert heights[-1] == base
        assert (base - min(heights)) / 30 == pytest.approx(peak / max(result.peak_bytes), abs=0.01)


def test_the_page_stands_alone():
    found = plan(Drawn(), "2x24GB")
    text = html(found, to_dict(found, "a<b>.py:Drawn"))
    assert "a&lt;b&gt;.py:Drawn" in text
    assert "a<b>" not in text
    assert not re.search(r"(src|href)=|url\(|@import", text)
    assert "prefers-color-scheme:dark" in text
    assert text.count("<svg") == 1
    for word in ("ZeroBubbleH1()", "tokens/s", "taken for one RTX 4090", "activations"):
        assert word in text


def test_the_page_has_the_advice():
    found = plan(Drawn(batch_size=64, microbatch_size=64, seq_len=4096), "2x1GB")
    data = to_dict(found)
    assert data["advice"]
    assert data["advice"][0].split("#")[0].strip().split(" = ")[0] in html(found, data)
