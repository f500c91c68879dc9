"""Four real ranks, forked, train with a chunked loss and compare with one process; prints JSON as ranks.py does."""

from __future__ import annotations

import sys
from functools import partial

import ranks
import torch
import torch.nn as nn
from ranks import MICROBATCHES

from forgather_dsl.plan.schedules import accumulate, gpipe, one_f_one_b, zero_bubble_h1, zero_bubble_v
from forgather_dsl.train.chunked_loss import ChunkedCrossEntropy

CHUNK = 7  # of 24 tokens in a microbatch: the last one is shorter
MODELS = {
    "plain": {},
    "tied": {"tied": True, "recompute": "full", "dropout": 0.2},
    "bf16": {"autocast": torch.bfloat16, "tied": True},
    "bias": {"bias": True},
    "frozen": {"frozen": ("head", "layers.0")},
}


def build(options, schedule, group):
    """As ranks.build; with a bias in the head if asked for."""
    options = dict(options)
    bias = options.pop("bias", False)
    pipeline = plain_build(options, schedule, group)
    for stage in pipeline.stages.values():
        if bias and stage.last:
            generator = torch.Generator().manual_seed(3)
            stage.model.head.bias = nn.Parameter(torch.randn(23, generator=generator))
    return pipeline


def cases(groups):
    """Names and functions of no arguments that return what is wrong."""
    for model, options in MODELS.items():
        single = build(options, accumulate(MICROBATCHES), None)
        reference = ranks.train(single)
        schedules = [zero_bubble_h1(4, MICROBATCHES), one_f_one_b(2, MICROBATCHES)]
        if model in ("plain", "tied"):
            schedules += [gpipe(4, MICROBATCHES), zero_bubble_v(4, MICROBATCHES), ranks.on_v(True)]
        for schedule in schedules:
            group = groups[schedule.num_ranks]
            name = f"{model} {schedule.name} {schedule.num_ranks}"
            yield name, partial(ranks.pipelined, options, schedule, group, reference)
        yield f"{model} use 2", partial(ranks.used, options, 2, groups[2], single)
        if model in ("plain", "bf16"):
            for schedule in (one_f_one_b(4, MICROBATCHES), zero_bubble_h1(2, MICROBATCHES)):
                about = (options, schedule, groups[schedule.num_ranks], reference)
                yield f"torch {model} {schedule.name} {schedule.num_ranks}", partial(ranks.torchs_engine, *about)


if __name__ == "__main__":
    plain_build = ranks.build
    ranks.build, ranks.cases, ranks.loss_sum = build, cases, ChunkedCrossEntropy(chunk=CHUNK, kernel="torch")
    ranks.main(sys.argv[1])
