"""`--smoke` shrinks sizes and keeps what makes the run what it is; it says everything that it changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgather_dsl import (
    ConfigError,
    Cycle,
    Experiment,
    Llama,
    Model,
    Pipeline,
    SlidingWindow,
    Stdlib,
    TextFiles,
    TrainedBPE,
    patch,
    replace,
)
from forgather_dsl.dsl import check, diff, load, to_dict
from forgather_dsl.plan.layout import lay_out
from forgather_dsl.plan.smoke import DIM, smoke
from forgather_dsl.specs.experiment import num_microbatches, world_size

GALLERY = Path(__file__).parents[2] / "experiments"
LARGE = (
    "PP4OneFOneB",
    "PP4ZeroBubble",
    "PP4ZeroBubbleH1",
    "PP4GPipe",
    "Llama31PP2",
    "MistralPP4",
    "QwenPP4",
    "PP4ZeroBubbleV",
    "PP4Auto",
)


def large(name):
    return load(f"{GALLERY / 'llama7b.py'}:{name}")()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name.endswith("Auto") else []) for name in LARGE]
)
def test_what_makes_the_run_stays(name):
    before = large(name)
    after, _ = smoke(before)
    check(after)
    for part in ("optimizer", "precision", "recompute", "lr_schedule", "loss", "clip_norm", "seed", "hardware"):
        assert getattr(after, part) == getattr(before, part)
    assert (world_size(after), num_microbatches(after)) == (world_size(before), num_microbatches(before))
    assert after.parallel.schedule == before.parallel.schedule
    assert lay_out(after).schedule.num_ranks == before.parallel.stages
    assert after.model.num_heads / after.model.num_kv_heads == before.model.num_heads / before.model.num_kv_heads
    for part in ("norm", "mlp", "rope", "tie_embeddings"):
        assert getattr(after.model, part) == getattr(before.model, part)
    assert type(after.model.attention) is type(before.model.attention)
    assert after.model.attention.qk_norm == before.model.attention.qk_norm
    assert after.model.dim == DIM
    assert after.model.head_dim % 2 == 0
    assert after.model.ffn_dim / after.model.dim == pytest.approx(before.model.ffn_dim / before.model.dim, rel=0.05)
    assert after.model.vocab_size >= after.tokenizer.vocab_size


def test_every_stage_keeps_one_layer_and_cuts_follow():
    after, _ = smoke(large("PP4ZeroBubbleH1"))
    assert after.model.num_layers == 4
    assert after.parallel.cuts == (1, 1, 1, 1)
    two_per_rank = replace(large("PP4ZeroBubble"), parallel=patch(Pipeline, schedule=patch(_zero_bubble(), chunks=2)))
    assert smoke(two_per_rank)[0].model.num_layers == 8


def _zero_bubble():
    return type(large("PP4ZeroBubble").parallel.schedule)


class Alternating(Experiment):
    """Five kinds of attention on two stages of two replicas, uneven cuts, files of its own."""

    seq_len, batch_size, microbatch_size, tokens = 1024, 48, 4, 10**9
    data = TextFiles(paths="/nowhere")
    model = patch(
        Llama, dim=512, num_layers=20, num_heads=8, attention=Cycle(*(SlidingWindow(window=2**n) for n in range(5, 10)))
    )
    parallel = Pipeline(stages=2, replicas=2, cuts=(15, 5))


def test_cycles_windows_cuts_and_replicas():
    before = Alternating()
    after, _ = smoke(before)
    check(after)
    assert after.model.num_layers == 5
    assert [option.window for option in after.model.attention.options] == [4, 8, 16, 32, 64]
    assert after.parallel.cuts == (4, 1)
    assert (world_size(after), num_microbatches(after)) == (4, 6)
    assert after.data == before.data
    assert isinstance(after.tokenizer, TrainedBPE)
    assert after.tokenizer.source is after.data


def test_the_hub_is_replaced_wherever_it_is_named():
    after, told = smoke(large("PP4ZeroBubble"))
    assert isinstance(after.data, Stdlib)
    assert (type(after.eval_data), after.eval_data.split) == (Stdlib, "held_out")
    assert isinstance(after.tokenizer, TrainedBPE)
    assert after.tokenizer.source is after.data
    assert "HF" not in str(to_dict(after))
    text = "\n".join(told)
    for change in ("data HF -> Stdlib", "tokenizer HFTokenizer -> TrainedBPE", "dim 4096 -> 64", "num_layers 32 -> 4"):
        assert change in text


def test_every_change_is_told():
    before = Alternating()
    after, told = smoke(before)
    text = "\n".join(told)
    for change in diff(before, after):
        assert f"{change.left} -> {change.right}" in text, change


def test_what_is_small_stays_as_it_is():
    class Small(Experiment):
        seq_len, batch_size, steps = 32, 2, 2
        model = patch(Llama, dim=32, num_layers=1, num_heads=2)

    after, _ = smoke(Small())
    assert (after.model.dim, after.model.num_layers, after.seq_len, after.steps) == (32, 1, 32, 2)


def test_a_model_that_is_not_known_is_refused():
    class Other(Model["somewhere.Other"]):
        pass

    class Mine(Experiment):
        steps = 1
        model = Other(vocab_size=10_000, dim=8, num_layers=2)

    with pytest.raises(ConfigError, match="shrink Llama, not Other; write small sizes yourself"):
        smoke(Mine())
