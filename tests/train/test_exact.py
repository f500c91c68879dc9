"""Memory found by running the real program on fake tensors: equal to real tensors to the byte, and the planner's within 3 %.

Not checked here, for want of a GPU: that the stand-ins for CUDA's kernels keep what these keep.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch.profiler import ProfilerActivity, profile

from forgather_dsl import (
    BF16,
    FP8,
    FP32,
    AdamW,
    Auto,
    ChunkedCrossEntropy,
    Cycle,
    Experiment,
    FullRecompute,
    GroupedQueryAttention,
    InBackward,
    KeepAttention,
    LayerNorm,
    Llama,
    Muon,
    NoRecompute,
    NormsAndActivation,
    OnHost,
    Pipeline,
    RMSNorm,
    SlidingWindow,
    ZeroBubbleH1,
    patch,
)
from forgather_dsl.dsl import replace
from forgather_dsl.dsl.load import experiments_in, load_file
from forgather_dsl.plan import schedules
from forgather_dsl.plan.estimate import estimate
from forgather_dsl.plan.layout import Layout, lay_out
from forgather_dsl.plan.partition import split
from forgather_dsl.plan.resident import overhead
from forgather_dsl.train.exact import exact, run_rank

WITHIN = (
    0.03  # worst measured: 0.5 % for the shipped recipes, 2.2 % for V-min with layers a thousandth of a real one's size
)

SCHEDULES = {
    "gpipe": lambda ranks, m: schedules.gpipe(ranks, m),
    "1f1b": lambda ranks, m: schedules.one_f_one_b(ranks, m),
    "zb-h1": lambda ranks, m: schedules.zero_bubble_h1(ranks, m),
    "zb-h2": lambda ranks, m: schedules.zero_bubble_h2(ranks, m),
    "interleaved": lambda ranks, m: schedules.interleaved(ranks, m, 2),
    "looped-bfs": lambda ranks, m: schedules.looped_bfs(ranks, m, 2),
    "zb-v": lambda ranks, m: schedules.zero_bubble_v(ranks, m),
    "v-half": lambda ranks, m: schedules.v_half(ranks, m),
    "v-min": lambda ranks, m: schedules.v_min(ranks, m),
    "dualpipe-v": lambda ranks, m: schedules.dualpipe_v(ranks, m),
}
RECOMPUTE = {
    "none": NoRecompute(),
    "cheap": NormsAndActivation(),
    "attention": KeepAttention(),
    "full": FullRecompute(),
}
BETWEEN = ("1f1b", "zb-h1", "zb-v")  # schedules under which every policy is run
GALLERY = Path(__file__).parents[2] / "experiments"
RECIPES = {
    cls.__name__: cls
    for file in ("first", "tiny_llama", "llama7b", "finetune")
    for cls in experiments_in(load_file(str(GALLERY / f"{file}.py")))
    if not cls.__abstract__
}


class Tiny(Experiment):
    """Real tensors are made of it."""

    steps = 1
    seq_len = 32
    batch_size = 4
    microbatch_size = 1
    model = patch(Llama, vocab_size=200, dim=32, num_layers=4, num_heads=4, num_kv_heads=2, ffn_dim=80)


class Narrow(Experiment):
    """Proportions of a 7B model, a sixteenth of its width."""

    steps = 1
    seq_len = 512
    batch_size = 4
    microbatch_size = 1
    model = patch(Llama, vocab_size=4000, dim=256, num_layers=4, num_heads=4, ffn_dim=688)


SHARED = replace(Narrow().model, num_kv_heads=1)


def laid_out(experiment: Experiment, name: str, ranks: int) -> Layout:
    schedule = SCHEDULES[name](ranks, experiment.batch_size // experiment.microbatch_size)
    return Layout(schedule, split([1.0] * experiment.model.num_layers, schedule.num_stages))


def allocated(run) -> tuple[object, int]:
    """What `run()` returns, and the most bytes that torch's CPU allocator had handed out at once meanwhile."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        result = run()
    events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return result, most


@pytest.mark.parametrize(
    ("name", "ranks", "recompute", "changes"),
    [
        pytest.param("1f1b", 1, "none", {}, marks=pytest.mark.slow),
        ("1f1b", 1, "full", {"optimizer": Muon(), "model": replace(Tiny().model, tie_embeddings=True)}),
        pytest.param("1f1b", 2, "none", {"optimizer": Muon()}, marks=pytest.mark.slow),
        pytest.param("1f1b", 2, "full", {"model": replace(Tiny().model, tie_embeddings=True)}, marks=pytest.mark.slow),
        pytest.param("gpipe", 2, "full", {"isolate_documents": True}, marks=pytest.mark.slow),
        ("zb-h1", 2, "full", {"precision": BF16()}),
        pytest.param("zb-h2", 2, "none", {"optimizer": Muon(), "precision": BF16()}, marks=pytest.mark.slow),
        ("zb-v", 2, "none", {"model": replace(Tiny().model, tie_embeddings=True)}),
        pytest.param(
            "v-min",
            2,
            "full",
            {"model": replace(Tiny().model, attention=SlidingWindow(window=8))},
            marks=pytest.mark.slow,
        ),
        pytest.param("zb-h1", 2, "cheap", {"model": replace(Tiny().model, norm=LayerNorm())}, marks=pytest.mark.slow),
        pytest.param("zb-h1", 2, "attention", {"isolate_documents": True}, marks=pytest.mark.slow),
        ("zb-h1", 2, "none", {"loss": ChunkedCrossEntropy(chunk=20)}),
    ],
)
def test_fake_tensors_take_the_bytes_of_real_ones(name, ranks, recompute, changes):
    """By kind, to the byte; and their peak is that of the allocator's own record."""
    experiment = Tiny(recompute=RECOMPUTE[recompute], **changes)
    experiment = replace(
        experiment, model=replace(experiment.model, num_layers=4 if name.startswith(("zb-v", "v")) else 2)
    )
    layout = laid_out(experiment, name, ranks)
    for rank in range(ranks):
        fake = run_rank(experiment, layout, rank, on_gpu=False, fake=True)
        for _ in range(3):  # on a busy machine the profiler loses its first events; it never makes one up
            real, most = allocated(lambda rank=rank: run_rank(experiment, layout, rank, on_gpu=False, fake=False))
            assert fake.kinds == real.kinds
            if most >= real.total:
                break
        beside = most - real.total
        if isinstance(experiment.precision, BF16):
            assert 0 <= beside < 0.1 * real.total  # the CPU's kernels make copies in fp32 for themselves
        else:
            assert beside == 0


def some_slow(every: int, *parameters: object) -> list[Any]:
    """One in `every` is routine, the others are slow."""
    return [pytest.param(one, marks=[pytest.mark.slow] if n % every else []) for n, one in enumerate(parameters)]


def off_by(experiment: Experiment, layout: Layout | None = None) -> dict[int, float]:
    """Per rank, by how much the planner's peak differs from the exact one; without what no run on fake tensors shows."""
    planned = estimate(experiment, on_gpu=True, layout=layout).ranks
    return {
        found.rank: (planned[found.rank].total - planned[found.rank].overhead) / found.total - 1
        for found in exact(experiment, layout, on_gpu=True)
    }


@pytest.mark.parametrize(
    ("name", "recompute", "ranks"),
    [
        *(
            pytest.param(name, list(RECOMPUTE)[number % 4], 2, marks=[pytest.mark.slow] if number % 3 else [])
            for number, name in enumerate(SCHEDULES)
        ),
        *(
            pytest.param(name, how, 4, marks=pytest.mark.exhaustive)
            for name in SCHEDULES
            for how in RECOMPUTE
            if how in ("none", "full") or name in BETWEEN
        ),
    ],
)
def test_the_plan_is_within_three_percent_under_every_schedule(name, recompute, ranks):
    experiment = Narrow(recompute=RECOMPUTE[recompute], optimizer=Muon())
    experiment = replace(experiment, model=replace(experiment.model, num_layers=2 * ranks))
    off = off_by(experiment, laid_out(experiment, name, ranks))
    assert {rank: share for rank, share in off.items() if abs(share) > WITHIN} == {}


@pytest.mark.parametrize(
    "changes",
    some_slow(
        4,
        {"optimizer": AdamW(), "precision": BF16()},
        {"optimizer": Muon(), "precision": BF16()},
        {"precision": FP32()},
        {"model": replace(Narrow().model, num_kv_heads=1, attention=GroupedQueryAttention(qk_norm=RMSNorm()))},
        {"parallel": Pipeline(stages=2), "model": replace(Narrow().model, tie_embeddings=True)},
        {"precision": FP8()},
        {"precision": FP8(), "recompute": FullRecompute(), "parallel": Pipeline(stages=2, schedule=ZeroBubbleH1())},
        {"isolate_documents": True, "recompute": FullRecompute()},
        {"isolate_documents": True, "model": SHARED},  # on a GPU keys and values are copied for every head
        {"precision": FP32(), "model": SHARED},
        {
            "isolate_documents": True,
            "recompute": KeepAttention(),
            "parallel": Pipeline(stages=2, schedule=ZeroBubbleH1()),
            "model": SHARED,
        },
        {"model": replace(SHARED, attention=SlidingWindow(window=64))},
        {
            "isolate_documents": True,
            "parallel": Pipeline(stages=2),
            "model": replace(Narrow().model, attention=Cycle(SlidingWindow(window=64), GroupedQueryAttention())),
        },
        {"loss": ChunkedCrossEntropy(chunk=128), "precision": BF16()},
        {"loss": ChunkedCrossEntropy(chunk=512), "precision": BF16(), "recompute": FullRecompute()},
        {"loss": ChunkedCrossEntropy(chunk=200), "model": replace(Narrow().model, vocab_size=40_000, num_layers=2)},
        {"precision": BF16(gradients="fp32")},
        {"precision": BF16(), "update": InBackward(), "clip_norm": None, "microbatch_size": 2},
        {"precision": BF16(), "update": InBackward(), "clip_norm": None, "parallel": Pipeline(stages=2)},
        {"precision": BF16(), "update": OnHost()},
        {"precision": BF16(), "update": OnHost(gradients="host"), "recompute": FullRecompute()},
        {
            "precision": BF16(),
            "update": OnHost(gradients="host"),
            "parallel": Pipeline(stages=2, schedule=ZeroBubbleH1()),
            "model": replace(Narrow().model, tie_embeddings=True),
        },
    ),
)
def test_the_plan_is_within_three_percent_of_other_formats_and_parts(changes):
    off = off_by(Narrow(batch_size=2, **changes))
    assert {rank: share for rank, share in off.items() if abs(share) > WITHIN} == {}


@pytest.mark.parametrize(
    "name", ["zb-h1", *(pytest.param(n, marks=pytest.mark.exhaustive) for n in ("gpipe", "1f1b", "zb-v"))]
)
def test_the_plan_is_within_three_percent_with_a_chunked_loss(name):
    experiment = Narrow(loss=ChunkedCrossEntropy(chunk=128), recompute=FullRecompute(), precision=BF16())
    experiment = replace(experiment, model=replace(experiment.model, vocab_size=40_000))
    off = off_by(experiment, laid_out(experiment, name, 2))
    assert {rank: share for rank, share in off.items() if abs(share) > WITHIN} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recompute"),
    [
        ("zb-h1", NoRecompute(offload=True)),
        ("zb-v", NoRecompute(offload=True)),
        ("interleaved", NoRecompute(offload=True)),
        ("zb-h2", NormsAndActivation(offload=True)),
        ("1f1b", NormsAndActivation(offload=True)),
        ("1f1b", FullRecompute(mlp_tiles=4)),
        ("zb-h1", KeepAttention(offload=True, mlp_tiles=4)),
    ],
)
def test_the_plan_with_offload_and_tiles(name, recompute):
    """What waits on the host to the byte, the rest within 3 %, but up to 10 % too high under other schedules than 1F1B where most of a layer travels to the host."""
    experiment = Narrow(recompute=recompute, optimizer=Muon(), seq_len=2048)
    layout = laid_out(experiment, name, 2)
    planned = estimate(experiment, on_gpu=True, layout=layout).ranks
    found = exact(experiment, layout, on_gpu=True)
    off = [(plan.total - plan.overhead) / real.total - 1 for plan, real in zip(planned, found)]
    above = isinstance(recompute, (NoRecompute, NormsAndActivation)) and name != "1f1b"
    most = 0.1 if above else WITHIN
    assert [share for share in off if not -WITHIN <= share <= most] == []
    assert [real.host for real in found] == [plan.host for plan in planned]


def is_automatic(experiment):
    return isinstance(experiment.parallel, Pipeline) and isinstance(experiment.parallel.schedule, Auto)


LARGE = ("PP4ZeroBubbleV",)


@pytest.mark.parametrize(
    "name",
    [
        *(name for name, cls in RECIPES.items() if cls().model.dim <= 1000),
        *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE),
    ],
)
def test_the_plan_is_within_three_percent_of_every_recipe(name):
    """Of the large ones, one with a quarter of the layers here; all of them, as they are, in the exhaustive test."""
    experiment = RECIPES[name]()
    if experiment.model.dim > 1000:
        experiment = replace(experiment, model=replace(experiment.model, num_layers=8))
        if isinstance(experiment.parallel, Pipeline):
            experiment = replace(experiment, parallel=replace(experiment.parallel, cuts=None))
    off = off_by(experiment)
    assert {rank: share for rank, share in off.items() if abs(share) > WITHIN} == {}


FULL_SIZE = [name for name, cls in RECIPES.items() if cls().model.dim > 1000]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", FULL_SIZE)
def test_the_plan_is_within_three_percent_of_every_large_recipe_in_full(name):
    """And what the real code holds leaves room on a card of 24 GB, with what a process and its allocator take besides. Takes one
    to eight minutes each; benchmarks/LOG.md has the figures.
    """
    experiment = RECIPES[name]()
    planned = estimate(experiment, on_gpu=True).ranks
    for found in exact(experiment, on_gpu=True):
        ours = planned[found.rank]
        assert abs((ours.total - ours.overhead) / found.total - 1) <= WITHIN, found.rank
        assert found.total + overhead(found.total, on_gpu=True) <= 21.5 * 2**30, found.rank


@pytest.mark.parametrize(
    ("name", "model", "recompute"),
    [
        pytest.param(name, model, how, marks=pytest.mark.exhaustive)
        for name, model, how in [
            *((name, "PP4OneFOneB", "full") for name in SCHEDULES),
            *((name, "Llama31PP2", how) for name in BETWEEN for how in ("none", "cheap", "attention")),
        ]
    ],
)
def test_the_plan_is_within_three_percent_at_real_widths_under_every_schedule(name, model, recompute):
    shape = RECIPES[model]()
    experiment = replace(shape, batch_size=8, recompute=RECOMPUTE[recompute], model=replace(shape.model, num_layers=8))
    off = off_by(experiment, laid_out(experiment, name, 4))
    assert {rank: share for rank, share in off.items() if abs(share) > WITHIN} == {}


def test_fewer_microbatches_lead_to_the_same_peak():
    """Those that `exact` takes instead of all, by running all of them too."""
    experiment = Narrow(batch_size=12, seq_len=2048, parallel=Pipeline(stages=2))
    experiment = replace(experiment, model=replace(experiment.model, num_layers=2))
    layout = lay_out(experiment)
    for rank, some in enumerate(exact(experiment)):
        every = run_rank(experiment, layout, rank, on_gpu=True, fake=True)
        assert some.microbatches < every.microbatches == 12
        beside = (12 - some.microbatches) * (512 + 2 * 2048 * 8)  # each has a loss, and a row of tokens and of targets
        assert 0 <= every.total - some.total <= beside


def test_nothing_is_allocated():
    """Layers of a 405B model: 100 GiB of weights, gradients and moments."""
    experiment = Narrow(
        model=replace(Narrow().model, dim=16_384, num_heads=128, ffn_dim=53_248, num_layers=2), batch_size=2
    )
    (found,) = exact(experiment, on_gpu=True)
    assert found.total > 100 * 2**30
