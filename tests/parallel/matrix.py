"""Every schedule on one, two and four real ranks against one process, bit for bit; prints JSON as ranks.py does.

`python matrix.py FOLDER [--all]`: every schedule x {tied, untied} x {with, without recomputation} x two ways to accumulate;
without --all each schedule once per number of ranks, the other options in turn. A case is five clipped steps with
evaluation and generation between them, so that nothing one of them leaves behind can go unnoticed.
"""

from __future__ import annotations

import itertools
import math
import sys
from functools import partial
from pathlib import Path

import ranks
import torch
import torch.distributed as dist
from standin import batch, fill, loss_sum, meta_model

from forgather_dsl.parallel.interpreter import Pipeline
from forgather_dsl.parallel.stage import Stage
from forgather_dsl.plan import schedules
from forgather_dsl.plan.costs import uniform
from forgather_dsl.plan.partition import split
from forgather_dsl.train.gradients import clip, sum_of_squares

EVERYTHING = "--all" in sys.argv
LAYERS, STEPS, CLIP = 8, 5 if EVERYTHING else 3, 0.5


def searched(ranks, microbatches, chunks):
    """An order for W at two thirds of F, within the memory of 1F1B."""
    costs = uniform(chunks * ranks, ranks, weight_grad=0.67)
    return schedules.zero_bubble(ranks, microbatches, costs, chunks, ranks, None)


SCHEDULES = {
    "gpipe": schedules.gpipe,
    "1f1b": schedules.one_f_one_b,
    "interleaved": partial(schedules.interleaved, chunks=2),
    "looped-bfs": partial(schedules.looped_bfs, chunks=2),
    "zb-h1": schedules.zero_bubble_h1,
    "zb-h2": schedules.zero_bubble_h2,
    "zb-v": schedules.zero_bubble_v,
    "v-half": schedules.v_half,
    "v-min": schedules.v_min,
    "dualpipe-v": schedules.dualpipe_v,
    "zb": partial(searched, chunks=1),
    "zb-searched-v": partial(searched, chunks=2),
}
MODELS = {
    "plain": {"dropout": 0.1},
    "tied": {"tied": True},
    "recompute": {"recompute": "full"},
    "tied+recompute": {"tied": True, "recompute": "full", "dropout": 0.1},
}
ACCUMULATIONS = ((8, 2), (9, 1))  # microbatches, sequences in each


def build(options, schedule, group):
    """This rank's part of the model, with its first weights."""
    options = dict(options)
    recompute = options.pop("recompute", "none")
    layers = split([1.0] * LAYERS, schedule.num_stages)
    mine = []
    for index in schedule.stages_of(group.rank if group else 0):
        stage = Stage(meta_model(layers=LAYERS, **options), index, schedule.num_stages, layers[index], torch.device("cpu"),
                      recompute=recompute)  # fmt: skip
        fill(stage.model)
        mine.append(stage)
    return Pipeline(mine, schedule, seed=5, group=group)


def norm_of(pipeline, parameters):
    """Over all ranks of the pipeline, each parameter once, in the order of names."""
    squares = {name: float(sum_of_squares(p.grad)) for name, p in parameters.items()}
    if pipeline.wire.group is not None:
        everyone = [None] * pipeline.wire.group.size
        dist.all_gather_object(everyone, squares, group=pipeline.wire.group.everyone)
        assert sum(map(len, everyone)) == len({name for part in everyone for name in part})
        squares = {name: square for part in everyone for name, square in part.items()}
    return math.sqrt(sum(square for _, square in sorted(squares.items())))


def train(pipeline, sequences):
    """What the steps, and evaluation and generation between them, come to on this rank."""
    tokens, targets, documents = batch(sequences=sequences, seq=8)
    parameters = dict(pipeline.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.01) if parameters else None
    said = {"losses": [], "norms": [], "evaluation": [], "generated": []}
    for step in range(STEPS):
        for parameter in parameters.values():
            parameter.grad = None
        num_valid = int((targets >= 0).sum())
        said["losses"].append(pipeline.step(tokens, targets, documents, loss_sum, step, num_valid))
        said["norms"].append(norm_of(pipeline, parameters))
        clip(list(parameters.values()), said["norms"][-1], CLIP)
        if optimizer:
            optimizer.step()
        if step in (0, STEPS - 2):
            held_out = batch(sequences=5, seq=8, seed=3)
            said["evaluation"].append(pipeline.forward_only(*held_out, loss_sum, microbatch_size=2))
            second = lambda logits: int(logits.topk(2).indices[1])  # noqa: E731
            said["generated"].append(pipeline.sample(torch.tensor([[3, 1, 4]]), 5, second))
    gradients = {f"gradient of {name}": parameter.grad for name, parameter in parameters.items()}
    return said | gradients | {name: parameter.detach().clone() for name, parameter in parameters.items()}


def compare(options, schedule, group, sequences, expected):
    """What differs from one process."""
    pipeline = build(options, schedule, group)
    found, wrong = train(pipeline, sequences), []
    for name, value in found.items():
        wanted = expected[name]
        if name in ("losses", "evaluation") and pipeline.wire.rank != pipeline.last_rank:
            wanted = [None] * len(wanted)
        if not (torch.equal(value, wanted) if isinstance(value, torch.Tensor) else value == wanted):
            wrong.append(f"{name}: {value} instead of {wanted}" if isinstance(value, list) else name)
    if set(pipeline.timing.actions) != set(schedule.actions[pipeline.wire.rank]):
        wrong.append("not every action was timed")
    return wrong


def references():
    """(model, accumulation) to what one process comes to; each rank computes its share of them for all."""
    made = list(itertools.product(MODELS, ACCUMULATIONS))
    for model, (microbatches, size) in made[dist.get_rank() :: ranks.RANKS]:
        single = build(MODELS[model], schedules.accumulate(microbatches), None)
        torch.save(train(single, microbatches * size), path_of(model, microbatches, size))
    dist.barrier()
    return {(model, how): torch.load(path_of(model, *how)) for model, how in made}


def path_of(*key):
    return Path(sys.argv[1], "-".join(map(str, key)) + ".pt")


def chosen(index, num_ranks):
    """The models and accumulations that schedule number `index` runs with."""
    everything = list(itertools.product(MODELS, ACCUMULATIONS))
    first = index * 5 + num_ranks  # 5 has no factor in common with 8: all combinations take turns
    return everything if EVERYTHING else [everything[first % len(everything)]]


def cases(groups):
    """Names and functions of no arguments that return what is wrong. Small groups of ranks share the cases out."""
    expected, me = references(), dist.get_rank()
    for num_ranks, group in ((1, None), *groups.items()):
        counter = itertools.count()
        for index, (name, make) in enumerate(SCHEDULES.items()):
            for model, (microbatches, size) in chosen(index, num_ranks):
                mine = next(counter) % (ranks.RANKS // num_ranks) == me // num_ranks
                run = partial(compare, MODELS[model], make(num_ranks, microbatches), group, microbatches * size)
                title = f"{name} {num_ranks} {model} {microbatches}x{size}"
                yield title, partial(run, expected[model, (microbatches, size)]) if mine else list


if __name__ == "__main__":
    ranks.cases = cases
    ranks.main(sys.argv[1])
