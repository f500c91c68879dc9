"""Four real ranks, forked, train as replicas of pipelines and compare with one process; prints JSON.

`python replica_ranks.py FOLDER [--measure]` prints {case: [what each rank found wrong]}; an empty list is a pass.
Replicas sum their own microbatches in order, and then one another's sums: the order of additions differs from that of one
process, hence `BOUNDS`; `--measure` shows how far from them the cases are.
"""

from __future__ import annotations

import math
import sys
from functools import partial

import ranks
import torch
import torch.distributed as dist
from ranks import MICROBATCHES, MODELS, RANKS, build
from standin import batch, loss_sum

from forgather_dsl.parallel.group import World, make_mesh
from forgather_dsl.parallel.reducing import make_reducer
from forgather_dsl.parallel.replicas import sum_gradients
from forgather_dsl.parallel.staging import HostCopy, Staging
from forgather_dsl.plan.schedules import accumulate, gpipe, interleaved, one_f_one_b, zero_bubble_h1, zero_bubble_v
from forgather_dsl.train.agreement import Ranks, Said
from forgather_dsl.train.gradients import clip, squares

STEPS, CLIP = 5, 0.5
BOUNDS = {"gradient": 2e-6, "loss": 1e-6, "norm": 1e-5, "weight": 2e-5}
"""Relative, in fp32 (one rounding is 6e-8): of the first step's gradients to the largest number of each, of losses and norms
of all steps, of the weights after them to the largest of each."""
SCHEDULES = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "zb-h1": zero_bubble_h1,
    "interleaved": partial(interleaved, chunks=2),
    "zb-v": zero_bubble_v,
}
MODELLED = ("plain", "all", "llama") if "--all" in sys.argv else ("plain",)


def train(pipeline, world, replicas=1, mesh=None):
    """First gradients, (loss, norm) of every step, and weights at the end.

    Without a mesh one process is all replicas, one after the other.
    """
    tokens, targets, documents = batch()
    num_valid, share = int((targets >= 0).sum()), len(tokens) // replicas
    parameters = dict(pipeline.named_parameters())
    agreement = Ranks(world, list(parameters), None if mesh is None or mesh.replica == 0 else ())
    optimizer = torch.optim.AdamW(list(parameters.values()), lr=0.01, eps=1e-4)
    reducer = make_reducer(pipeline, mesh, pipeline.summed_later(), bucket_bytes=2000) if mesh else None
    first, numbers = {}, []
    for step in range(STEPS):
        losses, gradients = [], []
        for replica in range(replicas) if mesh is None else (mesh.replica,):
            pipeline.replica = replica
            rows = slice(replica * share, (replica + 1) * share)
            if reducer:
                reducer.begin()
            losses.append(pipeline.step(tokens[rows], targets[rows], documents[rows], loss_sum, step, num_valid))
            if reducer:
                reducer.finish()
            gradients.append({name: p.grad for name, p in parameters.items()})
            for parameter in parameters.values():
                parameter.grad = None
        for name, parameter in parameters.items():
            parameter.grad = sum((g[name] for g in gradients[1:]), gradients[0][name])
        loss = None if losses[0] is None else sum(losses)
        agreed = agreement.agree(squares(parameters), Said(loss))
        first = first or {name: p.grad.clone() for name, p in parameters.items()}
        numbers.append((agreed.loss_sum, agreed.grad_norm))
        clip(list(parameters.values()), agreed.grad_norm, CLIP)
        optimizer.step()
        for parameter in parameters.values():
            parameter.grad = None
    return first, numbers, {name: p.detach().clone() for name, p in parameters.items()}


def differences(found, expected):
    """{kind: the largest relative difference}."""
    (first, numbers, weights), (their_first, their_numbers, their_weights) = found, expected
    worst = dict.fromkeys(BOUNDS, 0.0)

    def see(kind, difference):
        worst[kind] = max(worst[kind], difference if math.isfinite(difference) else math.inf)

    for kind, mine, theirs in (("gradient", first, their_first), ("weight", weights, their_weights)):
        for name, tensor in mine.items():
            see(kind, float((tensor - theirs[name]).abs().max() / theirs[name].abs().max()))
    for mine, theirs in zip(numbers, their_numbers, strict=True):
        for kind, a, b in zip(("loss", "norm"), mine, theirs):
            see(kind, abs(a - b) / b)
    return worst


def compared(options, schedule, world, places, references):
    """Within the bounds of one process; bit for bit what one process gets that adds up replica by replica."""
    mesh = make_mesh(world, places)
    pipeline = build(options, schedule(places, MICROBATCHES // mesh.replicas), mesh.pipeline)
    found = train(pipeline, world, mesh.replicas, mesh)
    worst = differences(found, references[1])
    if "--measure" in sys.argv and world.rank == 0:
        print(f"{mesh.replicas} x {places}", worst, file=sys.stderr)
    wrong = [f"{kind} differs by {worst[kind]:.1e}" for kind, bound in BOUNDS.items() if worst[kind] > bound]
    if found[1][0][0] != references[1][1][0][0]:
        wrong.append("the first loss is not that of one process bit for bit")
    exact = references.get(mesh.replicas)
    if exact and any(differences(found, exact).values()):
        wrong.append(f"differs from {mesh.replicas} replicas in one process: {differences(found, exact)}")
    return wrong + same_numbers_everywhere(found, world) + same_on_every_replica(found, mesh)


def same_numbers_everywhere(found, world):
    everyone = [None] * world.size
    dist.all_gather_object(everyone, found[1])
    return [] if all(numbers == found[1] for numbers in everyone) else ["ranks disagree about losses and norms"]


def same_on_every_replica(found, mesh):
    if mesh.peers is None:
        return []
    everyone = [None] * mesh.replicas
    dist.all_gather_object(everyone, found[2], group=mesh.peers)
    equal = all(torch.equal(weights[name], found[2][name]) for weights in everyone for name in found[2])
    return [] if equal else ["replicas hold different weights"]


def missing_gradients(world):
    """A parameter that no replica used keeps no gradient; what one replica used has that one's on all."""
    mesh = make_mesh(world, 2)
    parameters = {name: torch.nn.Parameter(torch.zeros(3)) for name in ("a", "b", "c")}
    parameters["a"].grad = torch.full((3,), 1.0 + mesh.replica)
    if mesh.replica == 1:
        parameters["b"].grad = torch.full((3,), 5.0)
    sum_gradients(parameters, mesh)
    found = {name: None if p.grad is None else p.grad.tolist() for name, p in parameters.items()}
    expected = {"a": [3.0] * 3, "b": [5.0] * 3, "c": None}
    return [] if found == expected else [f"{found} instead of {expected}"]


def dtypes(world):
    """bfloat16 gradients among fp32 ones: each sum has the precision of its own."""
    mesh = make_mesh(world, 1)
    parameters = {
        f"{i}": torch.nn.Parameter(torch.zeros(4, dtype=d)) for i, d in enumerate((torch.float32, torch.bfloat16) * 2)
    }
    for i, parameter in enumerate(parameters.values()):
        parameter.grad = torch.full_like(parameter, 2.0**-i * (mesh.replica + 1))
    sum_gradients(parameters, mesh)
    wrong = [
        i
        for i, p in enumerate(parameters.values())
        if p.grad.dtype != p.dtype or set(p.grad.tolist()) != {10 * 2.0**-i}
    ]
    return [f"gradients {wrong} are wrong"] if wrong else []


class Late:
    """A copy to the host as a slow GPU makes it: not there before it is waited for."""

    def __init__(self, tensor):
        self.source, self.host = tensor.clone(), torch.full_like(tensor, float("nan"))

    def synchronize(self):
        self.host.copy_(self.source)


def late_copy(tensor):
    copy = Late(tensor)
    return HostCopy(copy.host, copy)


def staged(options, schedule, world, expected):
    """Messages through copies that come late: the same bits, in training, evaluation and generation."""
    mesh = make_mesh(world, 2)
    pipeline = build(options, schedule(2, MICROBATCHES // mesh.replicas), mesh.pipeline)
    pipeline.wire.staging = Staging(late_copy)
    found = train(pipeline, world, mesh.replicas, mesh)
    tokens = pipeline.sample(torch.tensor([[3, 1, 4]]), 5, lambda logits: int(logits.argmax()))
    loss = pipeline.forward_only(*batch(), loss_sum, 2)
    wrong = [] if len(tokens) == 5 and (loss is None or math.isfinite(loss)) else [f"tokens {tokens}, loss {loss}"]
    return wrong + ([f"differs: {differences(found, expected)}"] if any(differences(found, expected).values()) else [])


def cases(groups):
    """Names and functions of no arguments that return what is wrong."""
    world = World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"), "gloo")
    alone = World(0, 1, torch.device("cpu"), None)
    for model in MODELLED:
        options = MODELS.get(model, {})
        references = {n: train(build(options, accumulate(MICROBATCHES // n), None), alone, n) for n in (1, 2)}
        for places in (1, 2, 4):
            for name, schedule in SCHEDULES.items() if places == 2 else (("1f1b", one_f_one_b),):
                case = f"{model} {name} {RANKS // places}x{places}"
                yield case, partial(compared, options, schedule, world, places, references)
        for name in ("1f1b", "zb-v"):
            yield f"staged {model} {name}", partial(staged, options, SCHEDULES[name], world, references[2])
    yield "missing gradients", partial(missing_gradients, world)
    yield "dtypes", partial(dtypes, world)


if __name__ == "__main__":
    ranks.cases = cases
    ranks.main(sys.argv[1])
