"""The schedule's class settles the stages; layers are spread over all of them; what does not go together is refused."""

from __future__ import annotations

import pytest

from forgather_dsl import (
    Bytes,
    DualPipeV,
    Experiment,
    Interleaved,
    Llama,
    LoopedBFS,
    OneFOneB,
    Pipeline,
    Schedule,
    ScheduleFile,
    VHalf,
    VMin,
    ZeroBubbleH1,
    ZeroBubbleH2,
    ZeroBubbleV,
    patch,
)
from forgather_dsl.dsl import ConfigError, check, problems, replace
from forgather_dsl.plan import schedules
from forgather_dsl.plan.layout import from_dict, lay_out, schedule_problems, to_dict
from forgather_dsl.plan.planner import plan


class Base(Experiment):
    steps = 1
    batch_size = 8
    microbatch_size = 1
    tokenizer = Bytes()
    model = patch(Llama, dim=32, num_layers=12, num_heads=2)


LINE, VEE, LOOP = (0, 1, 2), (0, 1, 2, 2, 1, 0), (0, 1, 2, 0, 1, 2, 0, 1, 2)
PLACES = [
    (OneFOneB(), LINE),
    (ZeroBubbleH1(), LINE),
    (ZeroBubbleH2(), LINE),
    (Interleaved(chunks=3), LOOP),
    (Interleaved(), LOOP[:6]),
    (LoopedBFS(chunks=3), LOOP),
    (ZeroBubbleV(), VEE),
    (VHalf(), VEE),
    (VMin(), VEE),
    (DualPipeV(), VEE),
]


def three_ranks(schedule, **more):
    return replace(Base(), parallel=Pipeline(stages=3, schedule=schedule, **more))


@pytest.mark.parametrize(("schedule", "places"), PLACES, ids=lambda value: type(value).__name__)
def test_a_schedules_class_says_where_its_stages_are(schedule, places):
    experiment = three_ranks(schedule)
    check(experiment)
    layout = lay_out(experiment)
    assert layout.schedule.placement == schedule.__placement__(3) == places
    assert [layer for layers in layout.layers for layer in layers] == list(range(12))
    assert len(layout.layers) == len(places)
    assert max(map(len, layout.layers)) - min(map(len, layout.layers)) <= 2  # a head is worth a layer or two
    assert from_dict(to_dict(layout)) == layout


def test_cuts_are_one_number_for_each_stage():
    assert lay_out(three_ranks(VHalf(), cuts=(1, 2, 3, 3, 2, 1))).layers[-1] == range(11, 12)
    texts = [str(problem) for problem in problems(three_ranks(VHalf(), cuts=(4, 4, 4)))]
    assert len(texts) == 1
    assert "parallel.cuts: 3 numbers for 6 stages (3 ranks x 2 under VHalf); give one number of layers" in texts[0]


def test_more_stages_than_layers_counts_all_stages_of_a_rank():
    text = str(problems(three_ranks(Interleaved(chunks=5)))[0])
    assert "parallel.stages: 15 stages (3 ranks x 5 under Interleaved) for 12 layers" in text
    assert "num_layers=15 or more" in text


def test_a_schedule_from_a_file_settles_the_stages_too(tmp_path):
    made = schedules.zero_bubble_v(3, 8)
    (tmp_path / "mine.csv").write_text(schedules.to_csv(made))
    experiment = three_ranks(ScheduleFile(path=str(tmp_path / "mine.csv")))
    assert problems(experiment) == schedule_problems(experiment) == []
    assert lay_out(experiment).schedule.actions == made.actions
    assert "6 stages" in str(problems(replace(experiment, parallel=replace(experiment.parallel, cuts=(4, 4, 4))))[0])


def test_a_schedule_of_ones_own_stands_in_the_comparison_as_it_is_written(tmp_path):
    mine = in_file(tmp_path, schedules.to_csv(schedules.zero_bubble_v(3, 8)))
    for experiment, written in (
        (mine, f'ScheduleFile(path="{tmp_path / "mine.csv"}")'),
        (three_ranks(AsIs()), "AsIs()"),
    ):
        rows = [row.schedule for row in plan(experiment, "3x24GB").comparison]
        assert rows.count(written) == 1
        assert "ZeroBubbleV()" in rows
        assert len(rows) == len(set(rows))


def in_file(tmp_path, text):
    (tmp_path / "mine.csv").write_text(text)
    return three_ranks(ScheduleFile(path=str(tmp_path / "mine.csv")))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (schedules.one_f_one_b(3, 4), "for 4 microbatches, the experiment has 8: write microbatch_size=2"),
        (schedules.one_f_one_b(3, 6), "for 6 microbatches, the experiment has 8: write batch_size=6"),
        (schedules.one_f_one_b(2, 8), "for 2 ranks, the pipeline has 3: write stages=2"),
    ],
)
def test_a_file_of_another_size_says_what_to_write(made, message, tmp_path):
    experiment = in_file(tmp_path, schedules.to_csv(made))
    assert [message in str(problem) for problem in schedule_problems(experiment)] == [True]
    with pytest.raises(ConfigError, match=f"parallel.schedule.path: mine.csv is {message}"):
        lay_out(experiment)


def test_a_file_for_replicas_counts_the_microbatches_of_each(tmp_path):
    experiment = in_file(tmp_path, schedules.to_csv(schedules.one_f_one_b(3, 4)))
    twice = replace(experiment, parallel=replace(experiment.parallel, replicas=2))
    assert schedule_problems(twice) == []
    assert lay_out(twice).schedule.num_microbatches == 4
    in_file(tmp_path, schedules.to_csv(schedules.one_f_one_b(3, 3)))
    assert "for 3 microbatches, the experiment has 4: write batch_size=6" in str(schedule_problems(twice)[0])


def test_everything_wrong_with_a_file_is_told_at_once(tmp_path):
    experiment = in_file(tmp_path, "0F0,0B0,0F1,0B1\n1F0,1F1,1B0,1B1,1B1\n2F1,2F0,2B0\n")
    texts = [str(problem) for problem in schedule_problems(experiment)]
    for expected in (
        "for 2 microbatches, the experiment has 8",
        "2B1 of rank 2 occurs 0 times",
        "1B1 of rank 1 occurs 2 times",
        "2F0 on rank 2 comes after the forward of microbatch 1",
        "deadlock: rank 0 stops at 0B0, which waits for 1B0",
    ):
        assert any(expected in text for text in texts), expected


def at_least_sixteen(ranks, microbatches):
    if microbatches < 16:
        raise ValueError(f"{microbatches} microbatches are less than 16: write microbatch_size=1 and a larger batch")
    return schedules.one_f_one_b(ranks, microbatches)


def not_as_said(ranks, microbatches):
    return schedules.zero_bubble_v(ranks, microbatches)


class AsIs(Schedule["schedules.one_f_one_b"]):
    """A schedule of somebody's own."""


def nothing(ranks, microbatches):
    return ranks + microbatches


class TooFew(Schedule["at_least_sixteen"]):
    """A schedule that has a least number of microbatches."""


class NotAsSaid(Schedule["not_as_said"]):
    """A V without a __placement__."""


class Nothing(Schedule["nothing"]):
    """Not a schedule at all."""


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (TooFew(), "parallel.schedule: 8 microbatches are less than 16: write microbatch_size=1"),
        (NotAsSaid(), r"on ranks \[0, 1, 2, 2, 1, 0\], its class says \[0, 1, 2\]: write def __placement__"),
        (Nothing(), "Nothing makes 11, not a Schedule"),
    ],
)
def test_a_users_own_schedule_is_checked(schedule, message):
    with pytest.raises(ConfigError, match=message):
        check(three_ranks(schedule), schedule_problems(three_ranks(schedule)))


def test_what_cannot_be_said_yet_is_left_to_the_other_checks(tmp_path):
    unknown = three_ranks(ScheduleFile())
    assert schedule_problems(unknown) == []
    assert "path" in str(problems(unknown)[0])
    assert schedule_problems(replace(in_file(tmp_path, "0F0,0B0"), microbatch_size=3)) == []
