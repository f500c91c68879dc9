"""Replicas share the batch, and ranks share cards: what is counted, what is refused, and what to write instead."""

from __future__ import annotations

import pytest

from forgather_dsl import Experiment, Llama, OneFOneB, Pipeline, UserError, patch, replace
from forgather_dsl.dsl import problems
from forgather_dsl.plan import estimate as estimates
from forgather_dsl.plan.contract import to_dict
from forgather_dsl.plan.fit import require_fit
from forgather_dsl.plan.hardware import GIB, Device, parse
from forgather_dsl.plan.layout import lay_out
from forgather_dsl.plan.planner import plan
from forgather_dsl.plan.prediction import predict
from forgather_dsl.specs.experiment import num_microbatches, world_size


class Shared(Experiment):
    """Four ranks: two replicas of two stages."""

    seq_len, batch_size, microbatch_size, steps = 128, 12, 2, 10
    model = patch(Llama, dim=256, num_layers=4, num_heads=4)
    parallel = Pipeline(stages=2, replicas=2, schedule=OneFOneB())


def with_parallel(**values):
    return replace(Shared(), parallel=patch(Pipeline, **values))


def told(experiment):
    return "\n".join(map(str, problems(experiment)))


def test_each_replica_has_its_share_of_the_microbatches():
    assert world_size(Shared()) == 4
    assert num_microbatches(Shared()) == 3
    assert lay_out(Shared()).schedule.num_microbatches == 3
    assert lay_out(Shared()).schedule.num_ranks == 2


def test_without_a_microbatch_size_a_replica_takes_its_share_at_once():
    class Whole(Experiment):
        batch_size, steps = 12, 1
        model = patch(Llama, dim=64, num_layers=2, num_heads=2)
        parallel = Pipeline(stages=1, replicas=3)

    assert Whole().microbatch_size == 4
    assert num_microbatches(Whole()) == 1


def test_a_batch_that_replicas_cannot_share():
    text = told(with_parallel(replicas=5))
    assert "12 sequences do not divide among 5 replicas" in text
    assert "batch_size = 10 or 15" in text
    assert "parallel.replicas = one of 1, 2, 3, 4, 6, 12" in text


def test_a_share_that_microbatches_do_not_divide():
    text = told(replace(Shared(), microbatch_size=4))
    assert "6 for each of 2 replicas, is not a multiple of microbatch_size 4; write one of 1, 2, 3, 6" in text


def test_every_replica_needs_the_same_memory():
    found = estimates.estimate(Shared(), on_gpu=True)
    assert [memory.rank for memory in found.ranks] == [0, 1, 2, 3]
    assert [memory.total for memory in found.ranks[:2]] == [memory.total for memory in found.ranks[2:]]
    assert found.parameters == estimates.estimate(with_parallel(replicas=1), on_gpu=True).parameters


@pytest.fixture
def cards(monkeypatch):
    """Pretend that this machine has cards of so many GiB."""

    def put(*gib):
        found = tuple(Device(f"card {i}", int(size * GIB), "gpu") for i, size in enumerate(gib))
        monkeypatch.setattr(estimates.hardware, "gpus", lambda: found)

    return put


def test_more_ranks_than_cards_are_refused_with_the_line_that_lets_them_share(cards):
    cards(24)
    with pytest.raises(UserError) as caught:
        require_fit(Shared())
    assert caught.value.exit_code == 3
    assert "needs 4 GPUs, one for each rank, this machine has 1" in str(caught.value)
    assert "parallel = patch(Pipeline, ranks_per_gpu=4)" in str(caught.value)
    require_fit(with_parallel(ranks_per_gpu=4))


def test_permission_for_fewer_ranks_than_there_are_is_not_enough(cards):
    cards(24)
    with pytest.raises(UserError, match="needs 2 GPUs, one for each 2 ranks, this machine has 1"):
        require_fit(with_parallel(ranks_per_gpu=2))


def test_ranks_that_share_a_card_fit_on_it_together(cards):
    """Ranks go round: with two cards 0 and 2 share one, 1 and 3 the other."""
    ranks = estimates.estimate(Shared(), on_gpu=True).ranks
    first, second = (ranks[i].total + ranks[i + 2].total for i in (0, 1))
    sharing = with_parallel(ranks_per_gpu=2)
    cards(first / GIB + 0.001, second / GIB + 0.001)
    require_fit(sharing)
    cards(first / GIB + 0.001, second / GIB - 0.001)
    with pytest.raises(UserError, match="does not fit: ranks 1, 3 of 4 on 2 shared need more than there is"):
        require_fit(sharing)


def test_sharing_is_not_advised_where_it_would_not_fit(cards):
    total = sum(memory.total for memory in estimates.estimate(Shared(), on_gpu=True).ranks)
    cards(total / GIB - 0.01)
    with pytest.raises(UserError) as caught:
        require_fit(Shared())
    assert "ranks_per_gpu" not in str(caught.value)


def test_a_card_for_each_rank_needs_no_permission(cards):
    cards(24, 24, 24, 24)
    require_fit(Shared())


def test_the_plan_counts_all_replicas_and_the_sum_of_their_gradients():
    one, two = (to_dict(plan(with_parallel(replicas=n), gpus=f"{2 * n}x24GB")) for n in (1, 2))
    assert [(rank["rank"], rank["replica"]) for rank in two["ranks"]] == [(0, 0), (1, 0), (2, 1), (3, 1)]
    assert (one["microbatches"], two["microbatches"]) == (6, 3)
    gradients = max(rank["memory_gib"]["gradients"] for rank in two["ranks"]) * GIB
    link = two["assumptions"]["link_gb_per_second"] * 1e9
    run = predict(Shared(), parse("4x24GB"))
    beside = run.step_seconds - run.simulation.makespan - max(run.optimizer_seconds)
    last = min(
        run.costs.seconds("B", stage) for stage in range(len(run.layout.layers))
    )  # hides as much of the sum as it takes
    assert 0 < beside < gradients / link  # each half of it is sent twice
    assert beside == pytest.approx(gradients / link - last, rel=0.01)


def test_the_plan_leaves_ranks_on_a_card_that_they_may_share():
    found = to_dict(plan(with_parallel(ranks_per_gpu=4), gpus="1x24GB"))
    assert (len(found["ranks"]), found["notes"], found["fits"]) == (4, [], True)
    assert len(to_dict(plan(with_parallel(ranks_per_gpu=3), gpus="1x24GB"))["ranks"]) == 1
