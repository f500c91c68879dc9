"""A stage is its part of the model under the full names, and its dropout depends on nothing but the key."""

from __future__ import annotations

import pytest
import torch
import torch.nn as nn
from standin import StandIn, batch, fill, loss_sum, meta_model

from forgather_dsl.parallel.interpreter import Pipeline
from forgather_dsl.parallel.stage import Stage
from forgather_dsl.parallel.weight_gradients import WeightGradients
from forgather_dsl.plan.partition import split
from forgather_dsl.plan.schedules import accumulate, from_csv, from_rows, gpipe, one_f_one_b

CPU = torch.device("cpu")


def stages(num_stages, recompute="none", **options):
    cuts = split([1.0] * 4, num_stages)
    made = [Stage(meta_model(**options), i, num_stages, layers, CPU, None, recompute) for i, layers in enumerate(cuts)]
    for stage in made:
        fill(stage.model)
    return made


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_stages_hold_every_parameter_once_under_its_full_name(num_stages, tied):
    whole = {name: tuple(p.shape) for name, p in StandIn(tied=tied).named_parameters()}
    cut = [(name, tuple(p.shape)) for stage in stages(num_stages, tied=tied) for name, p in stage.named_parameters()]
    assert len(cut) == len(whole)
    assert dict(cut) == whole


def test_a_stage_has_memory_for_its_own_part_only():
    first, last = stages(2)
    assert first.model.norm is None
    assert first.model.head is None
    assert last.model.embed is None
    assert [layer is None for layer in last.model.layers] == [True, True, False, False]
    assert not any(parameter.is_meta for stage in (first, last) for _, parameter in stage.named_parameters())


class Outside(StandIn):
    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(4))


class Buffered(StandIn):
    def __init__(self):
        super().__init__()
        self.layers[0].register_buffer("table", torch.zeros(4))


class Shared(StandIn):
    def __init__(self):
        super().__init__()
        self.layers[3].up = self.layers[0].up


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Outside, "positions is in none of embed, layers, norm and head"),
        (Buffered, "the buffer layers.0.table has no values on the meta device"),
        (Shared, r"layers.0.up.\w+ is shared with another stage"),
    ],
)
def test_what_a_stage_would_get_wrong_is_refused(model, message):
    with torch.device("meta"):
        made = model()
    with pytest.raises(ValueError, match=message):
        Stage(made, 0, 2, range(2), CPU)


def test_unknown_options_are_refused():
    with pytest.raises(ValueError, match="recompute='some' is not known"):
        Stage(meta_model(), 0, 1, range(4), CPU, recompute="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"stage 1 would hold range\(3, 5\) of a model with 4 layers"):
        Stage(meta_model(), 1, 2, range(3, 5), CPU)


def test_full_recompute_keeps_only_the_inputs_of_layers():
    tokens, _, documents = batch()
    kept = {}
    for recompute in ("none", "full"):
        (stage,) = stages(1, recompute)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            stage.forward(tokens, documents, (0, 0, 0))
        kept[recompute] = sum(sizes)
    assert kept["full"] < kept["none"] / 4


def test_dropout_depends_on_seed_step_microbatch_and_layer_alone():
    (stage,) = stages(1, dropout=0.3)
    tokens, _, _ = batch()
    one = stage.forward(tokens, None, (1, 2, 3))
    torch.rand(7)  # whatever happens to the generator in between
    assert torch.equal(stage.forward(tokens, None, (1, 2, 3)), one)
    for key in ((0, 2, 3), (1, 0, 3), (1, 2, 0)):
        assert not torch.equal(stage.forward(tokens, None, key), one)


def test_under_autocast_the_residual_stream_has_its_dtype_everywhere():
    first = Stage(fill(StandIn()), 0, 2, range(2), CPU, torch.bfloat16)
    seen = []
    for number in (0, 1):
        first.model.layers[number].register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    assert first.forward(batch()[0], None, (0, 0, 0)).dtype == torch.bfloat16
    assert seen == [torch.bfloat16] * 2


def test_every_layer_draws_from_its_own_seed():
    (stage,) = stages(1, dropout=0.3)
    seeds = []
    for layer in stage.model.layers:
        layer.register_forward_pre_hook(lambda *_: seeds.append(torch.default_generator.initial_seed()))
    stage.forward(batch()[0], None, (0, 0, 0))
    assert len(set(seeds)) == 4


def test_i_leaves_the_weight_gradients_to_w(monkeypatch):
    owed, settle = [], WeightGradients.settle
    monkeypatch.setattr(WeightGradients, "settle", staticmethod(lambda one: (owed.append(len(one)), settle(one))))
    row = from_csv("0F0,0I0,0F1,0I1,0W0,0W1")
    Pipeline(stages(1), row, seed=0).step(*batch(), loss_sum, 0, 10)
    assert owed == [4 * 4 + 2] * 2  # four weights a layer, embedding and head; biases do not wait


def test_replicas_draw_their_own_dropout_and_the_global_generator_is_kept():
    tokens, targets, documents = batch()
    losses = []
    for replica in (0, 1):
        pipeline = Pipeline(stages(1, dropout=0.3), accumulate(4), seed=0, replica=replica)
        before = torch.get_rng_state()
        losses.append(pipeline.step(tokens, targets, documents, loss_sum, 0, 10))
        assert torch.equal(torch.get_rng_state(), before)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("recompute", ["none", "full"])
def test_gradients_are_those_of_the_unmodified_model(tied, recompute):
    tokens, targets, documents = batch()
    num_valid = int((targets >= 0).sum())
    plain = fill(StandIn(tied=tied))
    expected = loss_sum(plain(tokens, documents), targets)
    (expected / num_valid).backward()
    pipeline = Pipeline(stages(1, recompute, tied=tied), accumulate(4), seed=0)
    assert pipeline.step(tokens, targets, documents, loss_sum, 0, num_valid) == pytest.approx(expected.item(), rel=1e-6)
    found = dict(pipeline.named_parameters())
    for name, parameter in plain.named_parameters():
        assert (found[name].grad - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


def test_after_a_tied_step_the_head_is_a_mirror_without_gradient():
    tokens, targets, documents = batch()
    (stage,) = stages(1, tied=True)
    pipeline = Pipeline([stage], accumulate(4), seed=0)
    pipeline.step(tokens, targets, documents, loss_sum, 0, 10)
    assert stage.model.head.weight.data_ptr() == stage.model.embed.weight.data_ptr()
    assert stage.model.head.weight.grad is None
    assert "head.weight" not in dict(pipeline.named_parameters())


def test_several_stages_in_one_process_pass_tensors_directly():
    tokens, targets, documents = batch()
    whole = Pipeline(stages(1, tied=True), accumulate(4), seed=0)
    row = [
        action for k in range(4) for rank in (0, 1) for action in gpipe(2, 4).actions[rank] if action.microbatch == k
    ]
    row.sort(
        key=lambda action: (action.microbatch, action.kind != "F", action.stage * (1 if action.kind == "F" else -1))
    )
    local = Pipeline(stages(2, tied=True), from_rows("local", [row]), seed=0)
    assert local.step(tokens, targets, documents, loss_sum, 0, 10) == whole.step(
        tokens, targets, documents, loss_sum, 0, 10
    )
    expected = dict(whole.named_parameters())
    for name, parameter in local.named_parameters():
        assert torch.equal(parameter.grad, expected[name].grad), name


def test_misuse_is_explained():
    tokens, targets, documents = batch(sequences=6)
    pipeline = Pipeline(stages(1), accumulate(4), seed=0)
    with pytest.raises(ValueError, match="a batch of 6 sequences does not divide into 4 microbatches"):
        pipeline.step(tokens, targets, documents, loss_sum, 0, 10)
    with pytest.raises(ValueError, match="num_valid=0"):
        pipeline.step(*batch(), loss_sum, 0, 0)
    with pytest.raises(ValueError, match=r"not \[3\]"):
        pipeline.sample(torch.tensor([1, 2, 3]), 4, lambda logits: 0)
    with pytest.raises(ValueError, match=r"rank 0 of 1 holds stages \[0, 1\]; schedule 1F1B has 2 ranks"):
        Pipeline(stages(2), one_f_one_b(2, 4), seed=0)
    with pytest.raises(ValueError, match="0B0 of rank 0 occurs 0 times"):
        Pipeline(stages(1), from_rows("half", [accumulate(1).actions[0][:1]]), seed=0)


@pytest.mark.parametrize("documents", [False, True])
def test_a_batch_goes_to_the_device_as_a_whole(monkeypatch, documents):
    """Not in microbatches: each copy from ordinary memory would have the host wait until the GPU has done all before it."""
    moved, to = [], torch.Tensor.to

    def watched(tensor, *arguments, **options):
        if not tensor.is_floating_point():
            moved.append(len(tensor))
        return to(tensor, *arguments, **options)

    pipeline, (tokens, targets, ids) = Pipeline(stages(1), accumulate(4), 0), batch(8)
    monkeypatch.setattr(torch.Tensor, "to", watched)
    pipeline.step(tokens, targets, ids if documents else None, loss_sum, 0, targets.numel())
    pipeline.forward_only(tokens, targets, ids if documents else None, loss_sum, 2)
    assert moved == [len(tokens)] * 2 * (2 + documents)


def test_generation_leaves_cudnn_attention_out():
    """It would make a plan for every length; training may use it."""
    seen, pipeline = [], Pipeline(stages(1), accumulate(4), 0)

    def pick(logits):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return 1

    before = torch.backends.cuda.cudnn_sdp_enabled()
    pipeline.sample(batch(1)[0], 2, pick)
    assert (seen, torch.backends.cuda.cudnn_sdp_enabled()) == ([False, False], before)
    assert before
