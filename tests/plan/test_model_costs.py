"""Seconds and bytes per stage against numbers worked out by hand, and measured profiles in their place."""

from __future__ import annotations

from pathlib import Path

import pytest

from forgather_dsl import (
    FP32,
    BF16Mixed,
    CrossEntropy,
    FullRecompute,
    KeepAttention,
    Muon,
    NoRecompute,
    NormsAndActivation,
    Pipeline,
)
from forgather_dsl.dsl import ConfigError, load, replace
from forgather_dsl.plan import cards, hardware
from forgather_dsl.plan.hardware import BANDWIDTH_SUSTAINED, FLOPS_SUSTAINED, GIB, parse
from forgather_dsl.plan.model_costs import model_costs

GALLERY = Path(__file__).parents[2] / "experiments"
TOKENS = 4096  # one sequence of Llama 2 7B on four RTX 4090s
PEAK, BANDWIDTH = 165.2e12 * FLOPS_SUSTAINED, 1008e9 * BANDWIDTH_SUSTAINED
MATRICES = 4 * 4096**2 + 3 * 4096 * 11008  # of one layer
ATTENTION = 2 * 4096 * TOKENS  # forward, per token: half of the scores, and the sum over values
KEPT = 2 * (2 * 4096 + 4 * 4096 + 4096 + 4096 + 4 * 11008) + 4 * (2 + 32)  # bytes per token and layer: 150.1 KiB


def llama(**changes):
    experiment = load(f"{GALLERY / 'llama7b.py'}:PP4OneFOneB")()
    return replace(
        experiment,
        **{
            "hardware": "4x24GB",
            "seq_len": TOKENS,
            "recompute": NoRecompute(),
            "precision": BF16Mixed(),
            "optimizer": Muon(),
            "loss": CrossEntropy(),
            **changes,
        },
    )


def costs(experiment, cuts=(8, 8, 8, 8), **more):
    stops = [sum(cuts[: i + 1]) for i in range(len(cuts))]
    layers = [range(stop - n, stop) for n, stop in zip(cuts, stops)]
    return model_costs(experiment, range(len(cuts)), layers, **more)


def test_a_middle_stage_of_llama_2_7b_takes_its_arithmetic_and_its_memory_traffic():
    found = costs(llama())
    assert round(KEPT / 1024, 1) == 150.1
    products, attention = 8 * 2 * MATRICES * TOKENS / PEAK, 8 * ATTENTION * TOKENS / PEAK
    assert found.forward[1] == pytest.approx(products + attention + 8 * 2 * KEPT * TOKENS / BANDWIDTH)
    gradients = 2 * (4096 * 3 + 4096 + 2 * 11008)  # of q, k, v, and of the MLP's input and two hidden products
    assert found.input_grad[1] == pytest.approx(
        products + 2 * attention + 8 * (KEPT + 2 * gradients) * TOKENS / BANDWIDTH
    )
    assert found.weight_grad[1] == pytest.approx(products + 8 * 12 * MATRICES / BANDWIDTH)


def test_seven_billion_parameters_on_a_4090_take_about_what_published_runs_take():
    """LLMQ, written in CUDA, trains 7.6 B on one RTX 4090 at 2,800 tokens/s with sequences of 1024, computing no matrix
    product twice (arXiv 2512.15306): in parameters times tokens a second, a bound for what is written in torch."""
    experiment = replace(llama(), hardware="1x24GB", seq_len=1024, microbatch_size=4)
    found = model_costs(experiment, (0,), (range(32),))
    rate = TOKENS / (found.forward[0] + found.input_grad[0] + found.weight_grad[0])
    assert 0.7 < rate * 6.74 / (2800 * 7.6) < 1.0


def test_recomputing_adds_a_forward_less_its_last_product_to_the_backward_for_inputs_and_keeps_layer_inputs():
    plain, again = costs(llama()), costs(llama(recompute=FullRecompute()))
    last = 8 * 2 * 4096 * 11008 * TOKENS / PEAK
    assert again.input_grad[1] == pytest.approx(plain.input_grad[1] + plain.forward[1] - last)
    assert (again.forward, again.weight_grad) == (plain.forward, plain.weight_grad)
    assert again.kept[1] == 9 * 2 * 4096 * TOKENS  # eight inputs and the output that is sent on
    assert plain.kept[1] == pytest.approx((8 * KEPT + 2 * 4096) * TOKENS, rel=0.001)


def test_policies_add_memory_traffic_alone_or_all_but_attention():
    plain, cheap, attention, full = (
        costs(llama(recompute=how)) for how in (NoRecompute(), NormsAndActivation(), KeepAttention(), FullRecompute())
    )
    made = 2 * 4096 + 2 * 11008  # results of both norms, silu, product: read what makes them, write them
    assert cheap.input_grad[1] - plain.input_grad[1] == pytest.approx(8 * 2 * 2 * made * TOKENS / BANDWIDTH)
    assert full.input_grad[1] - attention.input_grad[1] == pytest.approx(8 * ATTENTION * TOKENS / PEAK)
    mixed = model_costs(llama(), range(4), [range(i * 8, i * 8 + 8) for i in range(4)], policies=["full", "none"] * 2)
    assert (mixed.kept[2], mixed.kept[1]) == (full.kept[2], plain.kept[1])
    assert (mixed.input_grad[2], mixed.input_grad[1]) == (full.input_grad[2], plain.input_grad[1])


def test_the_head_is_its_matrix_and_the_loss_and_the_embedding_takes_no_products():
    found = costs(llama())
    product = 2 * 32_000 * 4096 * TOKENS / PEAK
    assert found.forward[3] - found.forward[1] == pytest.approx(product + 16 * 32_000 * TOKENS / BANDWIDTH)
    assert found.forward[0] == found.forward[1]
    assert found.input_grad[0] == found.input_grad[1]


def test_a_message_takes_its_bytes_over_the_link():
    found = costs(llama(hardware="4x24GB,link=8GB/s,latency=50us"))
    assert found.transfer == pytest.approx(4096 * TOKENS * 2 / 8e9)
    assert found.latency == pytest.approx(50e-6)
    assert costs(llama()).transfer == pytest.approx(4096 * TOKENS * 2 / 12e9)
    alone = model_costs(llama(), (0,), (range(32),))
    assert (alone.latency, alone.transfer) == (0, 0)


def test_room_for_microbatches_is_the_card_less_what_stays():
    """By hand: Muon, mixed precision: fp32 weights, a bf16 copy, fp32 gradients, one fp32 momentum; two for the rest."""
    found = costs(llama(hardware="4x24GB"))
    stage = 8 * (MATRICES * (4 + 2 + 4 + 4) + 2 * 4096 * (4 + 4 + 8))
    buffers = 2 * 2 * 4096 * TOKENS * 2
    assert found.capacity[1] == pytest.approx((24 * GIB - 0.6 * GIB) / 1.04 - stage - buffers, rel=1e-6)
    assert found.capacity[0] == pytest.approx(found.capacity[1] + buffers / 2 - 32_000 * 4096 * (4 + 4 + 8))


def test_each_rank_has_the_speed_and_the_memory_of_its_own_card():
    found = costs(llama(hardware="2xRTX4090+2xRTX3090"))
    assert found.forward[2] / found.forward[1] == pytest.approx(165.2 / 71.0, rel=0.1)
    assert found.capacity[2] == found.capacity[1]
    assert costs(llama(hardware="3x24GB+16GB")).capacity[3] < found.capacity[3]


def test_fp32_takes_the_fp32_rate():
    slow, fast = costs(llama(precision=FP32())), costs(llama())
    assert slow.weight_grad[1] == pytest.approx(8 * 2 * MATRICES * TOKENS / (82.6e12 * FLOPS_SUSTAINED))
    assert slow.weight_grad[1] > fast.weight_grad[1]


def test_two_stages_on_a_rank_share_its_memory():
    v = model_costs(llama(parallel=Pipeline(stages=2)), (0, 1, 1, 0), [range(i * 8, i * 8 + 8) for i in range(4)])
    assert len(v.capacity) == 2
    assert len(v.forward) == 4


def test_ranks_that_share_a_card_share_its_memory_and_speed():
    whole, half = (costs(llama(hardware=f"{n}x80GB", parallel=Pipeline(stages=2)), (16, 16)) for n in (2, 1))
    assert half.forward[0] == pytest.approx(2 * whole.forward[0])
    assert half.capacity[0] < whole.capacity[0] - 35 * GIB


def test_without_cards_the_ranks_share_the_host(monkeypatch):
    monkeypatch.setattr(hardware, "gpus", tuple)
    monkeypatch.setattr(hardware, "host_memory", lambda: 512 * GIB)
    one, four = (costs(llama(hardware="auto"), cuts) for cuts in ((32,), (8, 8, 8, 8)))
    assert four.forward[1] == pytest.approx(one.forward[0], rel=0.05)  # a quarter of the layers and of the cores
    assert four.capacity[1] < 128 * GIB < one.capacity[0]
    assert four.transfer == 4096 * TOKENS * 4 / 1e9


PROFILE = {
    "device": "a card",
    "seq_len": TOKENS,
    "microbatch_size": 1,
    "seconds": {
        "embedding": {"F": 0.001, "I": 0.0, "W": 0.002},
        "layer": {"F": 0.01, "I": 0.011, "W": 0.009},
        "head": {"F": 0.02, "I": 0.02, "W": 0.02},
    },
    "link": {"latency": 1e-5, "bytes_per_second": 1e9},
}


def test_measured_seconds_replace_modelled_ones():
    found = costs(llama(), profile=PROFILE)
    assert found.forward == pytest.approx((0.081, 0.08, 0.08, 0.10))
    assert found.input_grad == pytest.approx((0.088, 0.088, 0.088, 0.108))
    assert found.weight_grad == pytest.approx((0.074, 0.072, 0.072, 0.092))
    assert (found.latency, found.transfer) == (1e-5, 4096 * TOKENS * 2 / 1e9)
    assert found.kept == costs(llama()).kept


def test_layers_may_be_measured_one_by_one():
    each = [{"F": i, "I": 0, "W": 0} for i in range(32)]
    seconds = {**PROFILE["seconds"], "layers": each}
    assert costs(llama(), profile={**PROFILE, "seconds": seconds}).forward[1] == sum(range(8, 16))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seq_len": 2048}, "seq_len is 2048 in the profile and 4096 here"),
        ({"microbatch_size": None}, "microbatch_size is None in the profile and 1 here"),
        ({"seconds": None}, 'no "seconds"'),
        ({"seconds": {**PROFILE["seconds"], "layers": [{"F": 1, "I": 1, "W": 1}] * 30}}, "30 layers, the model 32"),
        ({"seconds": {**PROFILE["seconds"], "head": {"F": 1}}}, "head needs"),
        ({"seconds": {**PROFILE["seconds"], "head": {"F": 1, "I": -1, "W": True}}}, "head needs"),
        ({"link": {"latency": 1}}, "link needs"),
    ],
)
def test_a_profile_of_something_else_is_refused(change, message):
    with pytest.raises(ConfigError, match=message) as caught:
        costs(llama(), profile={**PROFILE, **change})
    assert "run --profile" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("rtx4090", "RTX 4090"),
        ("4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX 3090 Ti"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Odd", None),
    ],
)
def test_cards_are_found_by_the_names_that_drivers_and_people_write(name, card):
    found = cards.by_name(name)
    assert (found.name if found else None) == card


def test_a_card_known_by_its_memory_alone_is_a_usual_one_of_that_size():
    assert [cards.by_memory(gib).name for gib in (24, 23.99, 12, 80, 7)] == [
        "RTX 4090", "RTX 4090", "RTX 3060", "A100", "RTX 3080",
    ]  # fmt: skip
    assert [d.name for d in parse("2x4090+rtx-3090").devices] == ["RTX 4090", "RTX 4090", "RTX 3090"]


def test_options_are_for_every_card():
    found = parse("2x24GB+12GB, tflops=100, bandwidth=1.5TB/s, link=500MB/s, latency=2ms")
    assert {(d.flops, d.bandwidth) for d in found.devices} == {(1e14, 1.5e12)}
    assert (found.link, found.latency) == (5e8, 2e-3)


@pytest.mark.parametrize(
    ("text", "write"),
    [
        ("4x24GB,link", "link=12GB/s"),
        ("4x24GB,link=fast", "link=12GB/s"),
        ("4x24GB,link=12GiB", "link=12GB/s"),
        ("4x24GB,latency=0us", "latency=30us"),
        ("4x24GB,12GB", r"\+ before another card"),
        ("4xRTX9999", "4xRTX4090"),
        ("0xRTX4090", "4xRTX4090"),
    ],
)
def test_what_is_not_understood_comes_with_what_to_write(text, write):
    with pytest.raises(ConfigError, match=write) as caught:
        parse(text)
    assert repr(text) in str(caught.value)
