"""What `doctor --links` measured, as options of `hardware`: what counts of many numbers, what is refused, what a plan makes of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from forgather_dsl import FP32, Experiment, Llama, Pipeline, patch
from forgather_dsl.dsl import ConfigError
from forgather_dsl.plan.contract import to_dict
from forgather_dsl.plan.hardware import for_ranks, parse, speed
from forgather_dsl.plan.measured import Links, read_links
from forgather_dsl.plan.planner import plan


class Two(Experiment):
    """Two ranks."""

    steps = 1
    seq_len = 256
    microbatch_size = 1
    hardware = "2xRTX4090"
    parallel = Pipeline(stages=2)
    model = patch(Llama, dim=256, num_layers=4, num_heads=4)


def rank(card: int | None, bf16: float, **more: Any) -> dict[str, Any]:
    return {"products_bf16": bf16, "products_fp32": bf16 / 2, "copies": 8e11, "card": card, "host": "one", **more}


def measured(**changes: Any) -> dict[str, Any]:
    pairs = [{"ranks": [0, 1], "both_ways": 6e9, "one_way": 9e9, "latency": 25e-6}]
    pairs.append({"ranks": [1, 2], "both_ways": 5e9, "one_way": 9e9, "latency": 35e-6})
    between = {"neighbours": 5.5e9, "all_gather": 4e9, "reduce_scatter": 2e9, "all_reduce": 3e9}
    ranks = [rank(0, 120e12), rank(1, 115e12), rank(2, 118e12)]
    return {"device": "cuda", "backend": "nccl", "when": "then", "ranks": ranks, "pairs": pairs, **between, **changes}


def test_the_slowest_link_and_card_count_and_three_passes_of_fsdp2():
    found = Links.of(measured())
    assert found.link == 5e9
    assert found.latency == 35e-6
    assert found.gather == pytest.approx(3 / (2 / 4e9 + 1 / 2e9))
    assert found.options(bf16=True) == {
        "link": "5GB/s",
        "latency": "35us",
        "gather": "3GB/s",
        "products": "115TFLOP/s",
        "copies": "800GB/s",
    }
    assert found.options(bf16=False)["products"] == "57.5TFLOP/s"
    assert found.source == "doctor --links, 3 ranks on 1 host over nccl, then"


def test_ranks_on_one_host_or_on_shared_cards_are_one_device():
    ranks = [rank(None, 20e9, copies=3e9), rank(None, 30e9, copies=4e9)]
    host = Links.of(measured(device="cpu", ranks=ranks))
    assert host.products_bf16 == 50e9
    assert host.copies == 7e9
    shared = Links.of(measured(ranks=[rank(0, 40e12), rank(0, 60e12)]))
    assert shared.products_bf16 == 100e12


def test_the_line_is_understood_and_what_was_said_stays():
    text = Links.of(measured()).hardware("3xRTX4090,link=7GB/s", Two())
    assert text == "3xRTX4090,link=7GB/s,latency=35us,gather=3GB/s,products=115TFLOP/s,copies=800GB/s"
    found = parse(text)
    assert (found.link, found.latency, found.gather) == (7e9, pytest.approx(35e-6), 3e9)
    one = speed(found.devices[0], bf16=True)
    assert (one.products, one.copies) == (115e12, 800e9)
    assert one.flops == pytest.approx(165.2e12)
    wide = Links.of(measured()).hardware("3xRTX4090", Two(precision=FP32()))
    assert "products=57.5TFLOP/s" in wide


def test_a_hosts_ranks_share_what_it_reached():
    share = for_ranks(parse("auto,products=60GFLOP/s,copies=9GB/s"), 3)
    if share.devices[0].kind == "host":
        one = speed(share.devices[0], bf16=False)
        assert (one.products, one.copies) == (20e9, 3e9)


def test_a_plan_says_that_it_was_measured():
    text = Links.of(measured()).hardware("2xRTX4090", Two())
    data = to_dict(plan(Two(), text))
    assert data["assumptions"]["products_tflops_measured"] == [115, 115]
    assert data["assumptions"]["copies_gb_per_second_measured"] == [800, 800]
    assert data["assumptions"]["gather_gb_per_second_measured"] == 3
    assert data["assumptions"]["link_gb_per_second"] == 5
    assert to_dict(plan(Two()))["tokens_per_second"] != data["tokens_per_second"]
    assert "products_tflops_measured" not in to_dict(plan(Two()))["assumptions"]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file"),
        ("{", "not JSON"),
        ("[1]", "holds no object"),
        ("{}", "no numbers for neighbours, all_gather, reduce_scatter, all_reduce, ranks, pairs"),
        (json.dumps(measured(neighbours=True, pairs=[{"latency": 1}])), "no numbers for neighbours, pairs: both_ways"),
        (json.dumps(measured(all_reduce=-1.0)), "no numbers for all_reduce"),
    ],
)
def test_a_file_of_something_else_is_told_with_what_to_do(tmp_path, content, told):
    file = tmp_path / "links.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=told) as caught:
        read_links(str(file))
    assert f"doctor --links --out {file}" in str(caught.value)


def test_cards_are_not_planned_with_what_a_host_did():
    with pytest.raises(ConfigError, match=r"ranks with no cards, and hardware '2xRTX4090' has some"):
        Links.of(measured(device="cpu")).hardware("2xRTX4090", Two())


@pytest.mark.parametrize("option", ["link=fast", "gather=3", "products=1TFLOPS", "copies=-3GB/s", "speed=3GB/s"])
def test_options_that_are_not_understood_are_told(option):
    with pytest.raises(ConfigError, match="hardware = "):
        parse(f"2x24GB,{option}")
