"""Four real ranks, forked, run cases of pipeline training and compare with one process; prints JSON.

`python ranks.py FOLDER` prints {case: [what each rank found wrong]}; an empty list is a pass. Forked, since starting four
interpreters that import torch takes most of a minute: no operator may run before the fork. Here: kinds of models, torch's
engine, what is left over and what is alive. matrix.py runs every schedule, in the same way.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
import weakref
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
from forgather_dsl.parallel import messages  # noqa: E402
from forgather_dsl.parallel.group import World, join, leave, pipeline_group  # noqa: E402
from forgather_dsl.parallel.interpreter import Pipeline  # noqa: E402
from forgather_dsl.parallel.launch import STORE  # noqa: E402
from forgather_dsl.parallel.messages import Messages  # noqa: E402
from forgather_dsl.parallel.stage import Stage  # noqa: E402
from forgather_dsl.parallel.torch_engine import TorchPipeline  # noqa: E402
from forgather_dsl.plan.costs import uniform  # noqa: E402
from forgather_dsl.plan.occupancy import LOOKAHEAD, lookahead  # noqa: E402
from forgather_dsl.plan.partition import split  # noqa: E402
from forgather_dsl.plan.schedules import (  # noqa: E402
    Action,
    accumulate,
    forwards,
    from_rows,
    one_f_one_b,
    zero_bubble,
    zero_bubble_h1,
    zero_bubble_v,
)
from forgather_dsl.train.agreement import Ranks, Said  # noqa: E402

RANKS, LAYERS, MICROBATCHES, SECONDS = 4, 8, 4, 900
ROUNDING = 1e-5  # relative to the largest gradient of a tensor, in fp32


def on_v(split_backward):
    """All forwards, then all backwards, on the V placement."""
    kinds = ("I", "W") if split_backward else ("B",)
    rows = [list(row) for row in forwards(V_SHAPE, MICROBATCHES).actions]
    for row, wave in zip(rows, forwards(tuple(reversed(V_SHAPE)), MICROBATCHES).actions):
        row += [Action(3 - action.stage, kind, action.microbatch) for action in wave for kind in kinds]
    return from_rows("V", rows)


MODELS = {
    "bf16": {"autocast": torch.bfloat16, "tied": True},
    "all": {"tied": True, "dropout": 0.2, "recompute": "full"},
    "frozen": {"frozen": ("embed", "layers.0"), "tied": True},
    "llama": {"llama": True, "tied": True, "dropout": 0.1},
    "cheap": {"llama": True, "dropout": 0.1, "recompute": "norms_and_activation"},
    "attention": {"dropout": 0.2, "recompute": "keep_attention"},
}
V_SHAPE = (0, 1, 1, 0)  # stages 0 and 3 on rank 0: first and last meet, and 1 and 2 hand over directly


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
            dim=16, num_layers=LAYERS, num_heads=4, num_kv_heads=2, head_dim=4, ffn_dim=24, vocab_size=23,
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


def torchs_engine(options, schedule, group, reference, split="deferred"):
    """A step on torch's runtime: the same bits with our deferred layers, the same up to rounding with torch's own split."""
    stages = list(build(options, schedule, group).stages.values())
    pipeline = TorchPipeline(stages, schedule, seed=5, group=group, split=split)
    if split == "deferred":
        return compare(pipeline, reference)
    losses, gradients, _ = train(pipeline, steps=1)
    expected, their_gradients, _ = reference
    wrong = [f"loss {losses} instead of {expected}"] * (losses[0] not in (None, expected[0]))
    for name, gradient in gradients.items():
        off = float((gradient - their_gradients[name]).abs().max() / their_gradients[name].abs().max())
        if off > ROUNDING and their_gradients[name].abs().max() > ROUNDING:  # a key's bias has no gradient but rounding
            wrong.append(f"gradient of {name} is off by {off}")
    return wrong


def alive(group):
    """What is received and sent is alive as long as it is in flight or in use: no more of it with more microbatches."""
    most = {}
    for microbatches in (8, 16):
        pipeline = build({}, one_f_one_b(group.size, microbatches), group)
        received, peaks = [], [0, 0]
        post, send = pipeline.wire.receive, Messages.send

        def count_receives(into, source, tag, post=post, received=received, peaks=peaks):
            received[:] = [tensor for tensor in received if tensor() is not None] + [weakref.ref(into)]
            peaks[0] = max(peaks[0], len(received))
            return post(into, source, tag)

        def count_sends(own, *what, send=send, peaks=peaks):
            send(own, *what)
            peaks[1] = max(peaks[1], sum(map(len, own.sends.values())))

        pipeline.wire.receive, Messages.send = count_receives, count_sends
        messages.lookahead = lambda _: LOOKAHEAD  # as for large messages
        try:
            tokens, targets, documents = batch(sequences=16)
            pipeline.step(tokens, targets, documents, loss_sum, 0, 10)
        finally:
            Messages.send, messages.lookahead = send, lookahead
        most[microbatches] = peaks
    # activations from F to B, and per neighbour those on their way and the one that its action has just taken
    neighbours = 2 - (group.rank in (0, group.size - 1))
    allowed = group.size - group.rank + neighbours * (LOOKAHEAD + 1)
    sent = 2 * group.size
    return [f"{most}"] * (most[8] != most[16] or most[16][0] > allowed or most[16][1] > sent)


def measured_bubble(group):
    """The share of all ranks' time until the last has finished, not the mean of each rank's own share."""
    ranks = Ranks(World(group.rank, group.size, torch.device("cpu"), "gloo"), [])
    agreed = ranks.agree({}, Said(busy=float(group.rank), span=10.0 - group.rank))
    right = agreed.bubbles == tuple(1 - rank / 10 for rank in range(4))
    return [] if right and abs(agreed.bubble - (1 - (0 + 1 + 2 + 3) / 40)) < 1e-12 else [f"{agreed}"]


def cases(groups):
    """Names and functions of no arguments that return what is wrong."""
    for model, options in MODELS.items():
        single = build(options, accumulate(MICROBATCHES), None)
        reference = train(single)
        for schedule in (
            one_f_one_b(2, MICROBATCHES),
            zero_bubble(4, MICROBATCHES, uniform(4, 4, weight_grad=0.67), 1, 4, None),
            on_v(True),
        ):
            group = groups[schedule.num_ranks]
            yield (
                f"{model} {schedule.name} {schedule.num_ranks}",
                partial(pipelined, options, schedule, group, reference),
            )
        if model not in ("cheap", "attention"):
            yield f"{model} use 2", partial(used, options, 2, groups[2], single)
        if model in ("all", "bf16"):
            for schedule in (
                one_f_one_b(4, MICROBATCHES),
                zero_bubble_h1(2, MICROBATCHES),
                zero_bubble_v(4, MICROBATCHES),
            ):
                about = (options, schedule, groups[schedule.num_ranks], reference)
                yield f"torch {model} {schedule.name} {schedule.num_ranks}", partial(torchs_engine, *about)
    reference = train(build({"tied": True}, accumulate(MICROBATCHES), None), steps=1)
    for schedule in (one_f_one_b(4, MICROBATCHES), zero_bubble_h1(2, MICROBATCHES), zero_bubble_v(4, MICROBATCHES)):
        about = ({"tied": True}, schedule, groups[schedule.num_ranks], reference, "torch")
        yield f"torch split {schedule.name} {schedule.num_ranks}", partial(torchs_engine, *about)
    yield "alive 4", partial(alive, groups[4])
    yield "bubble 4", partial(measured_bubble, groups[4])
    yield "leftovers 4", partial(leftovers, groups[4])  # at the end: a message that nobody took is left under way


def pipelined(options, schedule, group, reference):
    return compare(build(options, schedule, group), reference)


def used(options, ranks, group, single):
    pipeline = build(options, one_f_one_b(ranks, MICROBATCHES), group)
    train(pipeline)  # the same two steps as `single`
    return use(pipeline, single)


def rank_main(rank, folder):
    signal.alarm(SECONDS * (4 if "--all" in sys.argv else 1))  # a deadlock ends the rank
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
