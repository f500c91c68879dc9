"""Four real ranks, forked, train with a spread head and compare with one process; prints JSON as ranks.py does."""

from __future__ import annotations

import sys
from functools import partial

import ranks
import torch
from ranks import LAYERS, MICROBATCHES
from standin import batch, fill, loss_sum, meta_model

from forgather_dsl.models.parts import drop_part
from forgather_dsl.parallel.interpreter import Pipeline
from forgather_dsl.parallel.shard import HeadShard
from forgather_dsl.parallel.stage import Stage
from forgather_dsl.plan.costs import uniform, with_shards
from forgather_dsl.plan.partition import split
from forgather_dsl.plan.schedules import accumulate, gpipe, one_f_one_b, zero_bubble_h1
from forgather_dsl.plan.spread import spread_head

STEPS = 5
# Of losses, relative; of gradients and weights, relative to the largest number of their tensor. After one step, in fp32,
# nothing but the order of the softmax's sums differs; every further step starts from the differences of the one before.
AT_ONCE, AFTER_STEPS = 1e-5, 3e-4
BF16 = 4e-2  # after one step with products in bfloat16, each rounded to 8 bits
SCHEDULES = {"gpipe": gpipe, "1f1b": one_f_one_b, "zb-h1": zero_bubble_h1}
MODELS = {
    "plain": {},  # a vocabulary of 23: shards of 12 and 11, of 6, 6, 6 and 5
    "recompute": {"recompute": "full", "dropout": 0.2},
    "frozen": {"frozen": ("head", "layers.0")},
    "bf16": {"autocast": torch.bfloat16},
    "llama": {"llama": True},
}


def spread(schedule):
    """`schedule` with a head that is as dear as two layers."""
    costs = uniform(schedule.num_stages, schedule.num_ranks)
    share = 2 / schedule.num_ranks
    return spread_head(schedule, with_shards(costs, 2 * share, share, kept=share))


def build(options, schedule, group):
    """This rank's part of the model, as ranks.build, its shard of the head included."""
    options = dict(options)
    llama, frozen = options.pop("llama", False), options.pop("frozen", ())
    settings = {key: options.pop(key) for key in ("autocast", "recompute") if key in options}
    layers, rank = split([1.0] * LAYERS, schedule.num_stages), group.rank if group else 0
    parts = []
    for index in (*schedule.stages_of(rank), *schedule.shards[rank : rank + 1]):
        model = ranks.meta_llama(**options) if llama else meta_model(layers=LAYERS, **options)
        if index in schedule.shards:
            part = HeadShard(model, index, rank, schedule.num_shards, torch.device("cpu"), settings.get("autocast"))
            if llama:
                part.initialise(7)
            else:
                whole = fill(part.model.to_empty(device="cpu")).head.weight
                part.weight.detach().copy_(whole[part.rows.start : part.rows.stop])
        else:
            if schedule.num_shards:
                drop_part(model, "head")
            part = Stage(model, index, schedule.num_stages, layers[index], torch.device("cpu"), **settings)
            ranks.initialise(part.model, 7) if llama else fill(part.model)
        for name, parameter in part.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
        parts.append(part)
    return Pipeline(parts, schedule, seed=5, group=group)


def train(pipeline, steps):
    """As ranks.train, with an eps well above rounding: biases of keys have no gradient but rounding errors, and AdamW
    would make whole steps of those."""
    tokens, targets, documents = batch()
    parameters = {name: p for name, p in pipeline.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=0.01, eps=1e-3)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        losses.append(pipeline.step(tokens, targets, documents, loss_sum, step, int((targets >= 0).sum())))
        optimizer.step()
    gradients = {name: p.grad.clone() for name, p in parameters.items()}
    return losses, gradients, {name: p.detach().clone() for name, p in pipeline.named_parameters()}


def distance(found, expected, pipeline, name):
    """The largest difference, relative to the largest number of the tensor; of a shard, with its rows."""
    if pipeline.shard is not None and name == pipeline.shard.name:
        expected = expected[pipeline.shard.rows.start : pipeline.shard.rows.stop]
    return float((found - expected).abs().max() / expected.abs().max())


def compare(options, schedule, group, references, bound=None):
    """What is further than the bounds from the runs in one process."""
    wrong = []
    for steps, reference in references.items():
        pipeline = build(options, schedule, group)
        limit = bound or (AT_ONCE if steps == 1 else AFTER_STEPS)
        losses, *found = train(pipeline, steps)
        for what, mine, theirs in zip(("gradient", "weight"), found, reference[1:]):
            for name in mine:
                if not (off := distance(mine[name], theirs[name], pipeline, name)) <= limit:
                    wrong.append(f"{what} of {name} is off by {off} after {steps} steps")
        if pipeline.wire.rank != pipeline.last_rank:
            wrong += [f"losses {losses} on a rank without them"] * (losses != [None] * steps)
        elif not all(abs(a / b - 1) <= limit for a, b in zip(losses, reference[0], strict=True)):
            wrong.append(f"losses {losses} instead of {reference[0]}")
        if set(pipeline.timing.actions) != set(schedule.actions[pipeline.wire.rank]):
            wrong.append("not every action was timed")
    return wrong


def use(options, group, single):
    """Evaluation and generation between training steps."""
    pipeline = build(options, spread(one_f_one_b(group.size, MICROBATCHES)), group)
    train(pipeline, 2)
    wrong = []
    tokens, targets, documents = batch(sequences=7, seed=3)
    for size in (2, 3):
        loss = pipeline.forward_only(tokens, targets, documents, loss_sum, size)
        expected = single.forward_only(tokens, targets, documents, loss_sum, size)
        off = abs(loss / expected - 1) if pipeline.wire.rank == pipeline.last_rank else float(loss is not None)
        if not off <= AFTER_STEPS:
            wrong.append(f"evaluation by {size} is {loss}, not {expected}")
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    generated, expected = (
        p.sample(prompt, 12, lambda logits: int(logits.topk(2).indices[1])) for p in (pipeline, single)
    )
    if generated != expected or len(generated) != 12:
        wrong.append(f"generated {generated}, not {expected}")
    again = train(pipeline, 1)[0]
    if (again[0] is None) == (pipeline.wire.rank == pipeline.last_rank):
        wrong.append(f"training goes on with the loss {again}")
    return wrong


def out_of_range(group):
    """A target beyond the vocabulary is told on every rank before anything runs."""
    pipeline = build({}, spread(gpipe(group.size, MICROBATCHES)), group)
    tokens, targets, documents = batch()
    targets[-1, 0] = 23
    try:
        pipeline.step(tokens, targets, documents, loss_sum, 0, 10)
    except ValueError as error:
        return [] if "outside the 23 rows" in str(error) else [str(error)]
    return ["nothing"]


def cases(groups):
    """Names and functions of no arguments that return what is wrong."""
    for model, options in MODELS.items():
        references = {steps: train(build(options, accumulate(MICROBATCHES), None), steps) for steps in (1, STEPS)}
        bound = None
        if model == "bf16":
            bound = BF16
            del references[STEPS]
        for name, make in SCHEDULES.items() if model == "plain" else [("zb-h1", zero_bubble_h1)]:
            for size, group in groups.items() if model == "plain" else [(4, groups[4])]:
                schedule = spread(make(size, MICROBATCHES))
                yield f"{model} {name} {size}", partial(compare, options, schedule, group, references, bound)
        if model == "plain":
            v = spread(ranks.on_v(True))
            yield "plain v 2", partial(compare, options, v, groups[2], references, bound)
    for model in ("plain", "llama"):
        for size, group in groups.items():
            single = build(MODELS[model], accumulate(MICROBATCHES), None)
            train(single, 2)
            yield f"{model} use {size}", partial(use, MODELS[model], group, single)
    yield "targets 4", partial(out_of_range, groups[4])


if __name__ == "__main__":
    ranks.cases = cases
    ranks.main(sys.argv[1])
