"""Four real ranks, forked, run every case of pipeline training and compare with one process; prints JSON.

`python ranks.py FOLDER [--all]` prints {case: [what each rank found wrong]}; an empty list is a pass. Forked, since starting
four interpreters that import torch takes most of a minute: no operator may run before the fork.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch._dynamo  # what optimizers and checkpoint import at their first call: here once, not once per rank

torch.set_num_threads(1)

from standin import batch, fill, loss_sum, meta_model  # noqa: E402

from forgather_dsl.models.attention import GroupedQueryAttention  # noqa: E402
from forgather_dsl.models.init import NormalInit, initialise  # noqa: E402
from forgather_dsl.models.llama import Llama  # noqa: E402
from forgather_dsl.models.mlp import SwiGLU  # noqa: E402
from forgather_dsl.models.norms import RMSNorm  # noqa: E402
from forgather_dsl.models.rope import Rope  # noqa: E402
from forgather_dsl.parallel.group import join, leave, pipeline_group  # noqa: E402
from forgather_dsl.parallel.interpreter import Pipeline  # noqa: E402
from forgather_dsl.parallel.launch import STORE  # noqa: E402
from forgather_dsl.parallel.stage import Stage  # noqa: E402
from forgather_dsl.plan.partition import split  # noqa: E402
from forgather_dsl.plan.schedules import (  # noqa: E402
    Action,
    accumulate,
    forwards,
    from_rows,
    gpipe,
    one_f_one_b,
    zero_bubble,
    zero_bubble_h1,
)

RANKS, LAYERS, MICROBATCHES, SECONDS = 4, 5, 4, 200
V_SHAPE = (0, 1, 1, 0)  # stages 0 and 3 on rank 0: first and last meet, and 1 and 2 hand over directly


def on_v(split_backward):
    """All forwards, then all backwards, on the V placement."""
    kinds = ("I", "W") if split_backward else ("B",)
    rows = [list(row) for row in forwards(V_SHAPE, MICROBATCHES).actions]
    for row, wave in zip(rows, forwards(tuple(reversed(V_SHAPE)), MICROBATCHES).actions):
        row += [Action(3 - action.stage, kind, action.microbatch) for action in wave for kind in kinds]
    return from_rows("V", rows)


SCHEDULES = {
    "gpipe": lambda stages: gpipe(stages, MICROBATCHES),
    "1f1b": lambda stages: one_f_one_b(stages, MICROBATCHES),
    "zb-h1": lambda stages: zero_bubble_h1(stages, MICROBATCHES),
    "zb": lambda stages: zero_bubble(stages, MICROBATCHES, weight_grad=0.67, memory_cap=stages + 1),
}
MODELS = {
    "plain": {},
    "tied": {"tied": True},
    "dropout": {"dropout": 0.2},
    "recompute": {"recompute": "full"},
    "bf16": {"autocast": torch.bfloat16, "tied": True},
    "all": {"tied": True, "dropout": 0.2, "recompute": "full"},
    "frozen": {"frozen": ("embed", "layers.0"), "tied": True},
    "llama": {"llama": True, "tied": True, "dropout": 0.1},
}
THOROUGH = ("plain", "all")  # under every schedule on both rank counts; the others too with --all


def build(options, schedule, group):
    """This rank's part of the model under `schedule`, with its first weights."""
    options = dict(options)
    llama = options.pop("llama", False)
    frozen = options.pop("frozen", ())
    settings = {key: options.pop(key) for key in ("autocast", "recompute") if key in options}
    layers = split([1.0] * LAYERS, schedule.num_stages, head=1.0)
    mine = []
    for index in schedule.stages_of(group.rank if group else 0):
        model = meta_llama(**options) if llama else meta_model(layers=LAYERS, **options)
        stage = Stage(model, index, schedule.num_stages, layers[index], torch.device("cpu"), **settings)
        initialise(stage.model, 7) if llama else fill(stage.model)
        for name, parameter in stage.named_parameters():
            parameter.requires_grad_(not name.startswith(frozen))
        mine.append(stage)
    return Pipeline(mine, schedule, seed=5, group=group)


def meta_llama(tied=False, dropout=0.0):
    def attention(layer_index, **sizes):
        more = {"bias": True, "output_bias": False, "qk_norm": None, "dropout": dropout}
        return GroupedQueryAttention(layer_index=layer_index, **sizes, **more)

    with torch.device("meta"):
        return Llama(
            dim=16, num_layers=LAYERS, num_heads=4, num_kv_heads=2, head_dim=None, ffn_dim=24, vocab_size=23,
            norm=lambda dim, layer_index: RMSNorm(dim=dim, eps=1e-5), attention=attention,
            mlp=lambda dim, ffn_dim, layer_index: SwiGLU(dim=dim, ffn_dim=ffn_dim, bias=False),
            rope=lambda head_dim: Rope(head_dim=head_dim, theta=10000.0), tie_embeddings=tied, dropout=dropout,
            init=NormalInit(std=0.3, depth_scaled=True),
        )  # fmt: skip


def train(pipeline, steps=2):
    """Loss sums of two steps, and gradients and weights after them, on this rank."""
    tokens, targets, documents = batch()
    parameters = dict(pipeline.named_parameters())
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01) if trained else None
    losses = []
    for step in range(steps):
        for parameter in trained:
            parameter.grad = None
        losses.append(pipeline.step(tokens, targets, documents, loss_sum, step, int((targets >= 0).sum())))
        if optimizer:
            optimizer.step()
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()}
    return losses, gradients, {name: p.detach().clone() for name, p in parameters.items()}


def same(found, expected):
    return found is expected if found is None or expected is None else torch.equal(found, expected)


def compare(pipeline, reference):
    """What differs, bit for bit, from the run in one process."""
    (losses, gradients, weights), (their_losses, their_gradients, their_weights) = train(pipeline), reference
    wrong = [f"gradient of {name}" for name in gradients if not same(gradients[name], their_gradients[name])]
    wrong += [f"weight {name}" for name in weights if not same(weights[name], their_weights[name])]
    expected = their_losses if pipeline.wire.rank == pipeline.last_rank else [None] * len(losses)
    if losses != expected:
        wrong.append(f"losses {losses} instead of {expected}")
    if set(pipeline.timing.actions) != set(pipeline.schedule.actions[pipeline.wire.rank]):
        wrong.append("not every action was timed")
    if not 0 < pipeline.timing.busy <= pipeline.timing.span:
        wrong.append(f"busy {pipeline.timing.busy} of {pipeline.timing.span} seconds")
    return wrong


def use(pipeline, reference):
    """Evaluation and generation between training steps: as in one process, and training goes on as if nothing was."""
    wrong = []
    tokens, targets, documents = batch(sequences=7, seed=3)
    for size in (2, 3):
        loss = pipeline.forward_only(tokens, targets, documents, loss_sum, size)
        expected = reference.forward_only(tokens, targets, documents, loss_sum, size)
        if loss != (expected if pipeline.wire.rank == pipeline.last_rank else None):
            wrong.append(f"evaluation by {size} is {loss}, not {expected}")
    prompt = torch.tensor([[3, 1, 4, 1, 5]])
    generated = pipeline.sample(prompt, 12, lambda logits: int(logits.topk(2).indices[1]))
    expected = reference.sample(prompt, 12, lambda logits: int(logits.topk(2).indices[1]))
    if generated != expected or len(generated) != 12:
        wrong.append(f"generated {generated}, not {expected}")
    stop = expected[3]
    stopped = pipeline.sample(prompt, 12, lambda logits: int(logits.topk(2).indices[1]), stop)
    if stopped != expected[: expected.index(stop) + 1]:
        wrong.append(f"generated {stopped} and did not stop at {stop}")
    return wrong


def leftovers(group):
    """Leaving out the last actions is found on the rank that does it, by name."""
    tokens, targets, documents = batch()
    good = zero_bubble_h1(group.size, MICROBATCHES)
    wrong = []
    for kinds, expected in (
        ("W", "weight gradients of 0W3 left over"),
        ("IW", "activations of 0F3, the gradient of microbatch 3 for stage 0 left over"),
    ):
        pipeline = build({}, good, group)
        last = [action for action in good.actions[0] if not (action.kind in kinds and action.microbatch == 3)]
        pipeline.schedule = replace(good, actions=(tuple(last), *good.actions[1:]))
        try:
            pipeline.step(tokens, targets, documents, loss_sum, 0, 10)
            message = "nothing"
        except RuntimeError as error:
            message = str(error)
        if (expected in message) != (group.rank == 0):
            wrong.append(f"without {kinds} of microbatch 3: {message}")
    return wrong


def cases(groups):
    """Names and functions of no arguments that return what is wrong."""
    for model, options in MODELS.items():
        single = build(options, accumulate(MICROBATCHES), None)
        reference = train(single)
        everything = model in THOROUGH or "--all" in sys.argv
        for name, schedule in SCHEDULES.items():
            for ranks, group in groups.items():
                if everything or (name, ranks) in (("1f1b", 2), ("zb", 4)):
                    yield f"{model} {name} {ranks}", partial(pipelined, options, schedule(ranks), group, reference)
        for split_backward in (False, True) if everything else (True,):
            name = f"{model} V {'I+W' if split_backward else 'B'} 2"
            yield name, partial(pipelined, options, on_v(split_backward), groups[2], reference)
        for ranks in groups if everything else (2,):
            yield f"{model} use {ranks}", partial(used, options, ranks, groups[ranks], single)
    yield "leftovers 4", partial(leftovers, groups[4])


def pipelined(options, schedule, group, reference):
    return compare(build(options, schedule, group), reference)


def used(options, ranks, group, single):
    pipeline = build(options, one_f_one_b(ranks, MICROBATCHES), group)
    train(pipeline)  # the same two steps as `single`
    return use(pipeline, single)


def rank_main(rank, folder):
    signal.alarm(SECONDS)  # a deadlock ends the rank
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank), STORE: f"{folder}/store"}
    world = join("cpu", timeout_seconds=SECONDS)
    groups = {ranks: pipeline_group(world, ranks) for ranks in (2, 4)}
    found = {}
    for name, case in cases(groups):
        try:
            found[name] = case()
        except Exception:
            found[name] = [traceback.format_exc()]
            break  # the ranks are no longer in step
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    leave(world)


def main(folder):
    children = []
    for rank in range(RANKS):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                rank_main(rank, folder)
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    found = [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(RANKS)]
    names = dict.fromkeys(name for results in found for name in results)
    wrong = {
        name: [f"rank {r}: {w}" for r, results in enumerate(found) for w in results.get(name, ["did not get here"])]
        for name in names
    }
    print(json.dumps({"codes": codes, "cases": wrong}))


if __name__ == "__main__":
    main(sys.argv[1])
