"""First weights depend on the seed and each parameter's name alone: not on the stage split, the device, or the dtype."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
import torch.nn as nn
from torch.utils._python_dispatch import TorchDispatchMode

from forgather_dsl.models import init
from forgather_dsl.models.init import NormalInit, initialise, tie_weights
from forgather_dsl.models.norms import LayerNorm
from forgather_dsl.models.parts import drop_part, part_of


class Scaled(nn.Module):
    """A user's module: a parameter, a buffer and a child of its own."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.empty(1001))  # torch draws the tail beyond a multiple of 16 by dtype
        self.inner = nn.Linear(dim, dim)
        self.steps = nn.Buffer(torch.empty(dim), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.mix)
        nn.init.zeros_(self.inner.weight)
        with torch.no_grad():
            self.steps.copy_(torch.arange(len(self.steps)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) * self.mix.mean()


def whole(build: Any, seed: int = 0, **changes: Any) -> dict[str, torch.Tensor]:
    model = build(**changes)
    initialise(model, seed)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def stage(build: Any, layers: set[int], keep: set[str], **changes: Any) -> Any:
    """What a pipeline stage makes of a model: built on meta, the parts of other stages dropped, then materialised."""
    with torch.device("meta"):
        model = build(**changes)
    for i in range(len(model.layers)):
        if i not in layers:
            model.layers[i] = None
    for part in {"embed", "norm", "head"} - keep:
        drop_part(model, part)
    return model.to_empty(device="cpu")


SPLITS = {
    "first": ({0}, {"embed"}),
    "middle": ({1}, set()),
    "last": ({2}, {"norm", "head"}),
    "both ends": ({0, 2}, {"embed", "norm", "head"}),
    "everything": ({0, 1, 2}, {"embed", "norm", "head"}),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("split", SPLITS)
def test_a_stage_starts_with_the_values_of_the_whole_model(split: str, tied: bool, build: Any, parts: Any) -> None:
    changes = {
        "tie_embeddings": tied,
        "attention": parts.attention(bias=True, qk_norm=parts.qk_norm),
        "norm": parts.factory(LayerNorm, eps=1e-5, bias=True),
    }
    expected = whole(build, **changes)
    layers, keep = SPLITS[split]
    model = stage(build, layers, keep, **changes)
    for tensor in model.parameters():  # to_empty may happen to give zeros, or old values
        tensor.data.fill_(float("nan"))
    initialise(model, seed=0)
    owned = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert owned.keys() <= expected.keys() | {"lm_head.weight"}
    assert sum(".self_attn.q_proj.weight" in name for name in owned) == len(layers)
    for name, value in owned.items():
        source = "model.embed_tokens.weight" if tied and name == "lm_head.weight" else name
        assert torch.equal(value, expected[source]), name


def test_stages_run_one_after_the_other_equal_the_whole_model(build: Any) -> None:
    model = build(tie_embeddings=True)
    initialise(model, seed=0)
    first = stage(build, {0}, {"embed"}, tie_embeddings=True)
    last = stage(build, {1, 2}, {"norm", "head"}, tie_embeddings=True)
    tokens = torch.arange(12)[None]
    documents = torch.tensor([[0] * 5 + [1] * 7])
    for part in (first, last):
        initialise(part, seed=0)
    x = part_of(first, "embed")(tokens)
    for part in (first, last):
        context = part.context(12, 0, documents, "cpu")
        for layer in part.layers:
            x = x if layer is None else layer(x, context, None)
    assert torch.equal(part_of(last, "head")(part_of(last, "norm")(x)), model(tokens, documents))


def test_a_value_is_drawn_in_fp32_by_a_generator_seeded_by_seed_and_name(build: Any) -> None:
    values = whole(build, seed=3)
    name = "model.layers.1.self_attn.q_proj.weight"
    seed = int(hashlib.sha256(f"3/{name}".encode()).hexdigest()[:16], 16)
    expected = torch.empty(48, 48).normal_(0, 0.02, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(values[name], expected)


def test_the_dtype_only_rounds_the_values(build: Any) -> None:
    exact = whole(build)
    half = build().to(torch.bfloat16)
    initialise(half, seed=0)
    for name, parameter in half.named_parameters():
        assert torch.equal(parameter, exact[name].to(torch.bfloat16)), name


@pytest.mark.parametrize("count", [1, 15, 16, 17, 47, 48, 63, 64, 65, 97])
def test_chunks_change_no_bit_and_are_all_the_memory_it_takes(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shape, largest = torch.Size((count, 3)), 0

    class Watched(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            made = func(*args, **kwargs or {})
            if func.overloadpacket is torch.ops.aten.empty:
                largest = max(largest, made.numel())
            return made

    name = "model.embed_tokens.weight"
    seed = int(hashlib.sha256(f"3/{name}".encode()).hexdigest()[:16], 16)
    expected = torch.empty(shape).normal_(0.0, 0.02, generator=torch.Generator().manual_seed(seed))
    monkeypatch.setattr(init, "CHUNK", 48)
    weight = torch.full(shape, 7.0, dtype=torch.bfloat16)
    with Watched():
        NormalInit(std=0.02, depth_scaled=False).fill(name, weight.view(-1), 1, torch.Generator().manual_seed(seed))
    assert torch.equal(weight, expected.to(torch.bfloat16))
    assert 0 < largest < 48 + 16


@pytest.mark.parametrize("depth_scaled", [False, True])
def test_standard_deviations_are_as_asked_and_outputs_shrink_with_depth(depth_scaled: bool, build: Any) -> None:
    changes = {"num_layers": 8, "dim": 96, "ffn_dim": 160, "init": NormalInit(std=0.05, depth_scaled=depth_scaled)}
    shrunk = 0.05 / 4 if depth_scaled else 0.05  # sqrt(2 * 8 layers) = 4
    for name, value in whole(build, **changes).items():
        if "norm" in name:
            assert torch.equal(value, torch.ones_like(value)), name
        else:
            expected = shrunk if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.05
            assert value.std().item() == pytest.approx(expected, rel=0.06), name
            assert abs(value.mean().item()) < 0.05 * expected, name


def test_biases_start_at_zero(build: Any, parts: Any) -> None:
    values = whole(build, attention=parts.attention(bias=True), norm=parts.factory(LayerNorm, eps=1e-5, bias=True))
    biases = [value for name, value in values.items() if name.endswith("bias")]
    assert len(biases) == 3 * 3 + 2 * 3 + 1
    assert not any(bias.any() for bias in biases)


def test_seeds_and_names_give_different_values_and_the_global_generator_is_untouched(build: Any) -> None:
    model = build()
    before = torch.get_rng_state()
    initialise(model, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    values, others = {name: p.detach() for name, p in model.named_parameters()}, whole(build, seed=1)
    matrices = [name for name in values if "norm" not in name]
    assert not any(torch.equal(values[name], others[name]) for name in matrices)
    q = "model.layers.{}.self_attn.q_proj.weight"
    assert not torch.equal(values[q.format(0)], values[q.format(1)])


def test_tied_weights_survive_to_empty_and_are_drawn_once(build: Any) -> None:
    with torch.device("meta"):
        model = build(tie_embeddings=True)
    assert model.tied
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in dict(model.named_parameters())
    initialise(model, seed=0, device="cpu")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, whole(build)["model.embed_tokens.weight"])
    model.lm_head.weight = nn.Parameter(torch.zeros(61, 48))
    tie_weights(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_untied_heads_have_their_own_values(build: Any) -> None:
    model = build()
    assert not model.tied
    assert model.tied_weights == {}
    initialise(model, seed=0)
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_a_users_module_fills_itself_the_same_on_every_stage(build: Any, parts: Any) -> None:
    mlp = lambda dim, ffn_dim, layer_index: Scaled(dim)  # noqa: E731
    expected = whole(build, mlp=mlp)
    model = stage(build, {2}, {"norm", "head"}, mlp=mlp).to(torch.bfloat16)
    initialise(model, seed=0)
    mix = "model.layers.2.mlp.mix"
    owned = dict(model.named_parameters())
    assert torch.equal(owned[mix], expected[mix].to(torch.bfloat16))
    assert expected[mix].std() > 0.9
    assert not torch.equal(expected[mix], expected["model.layers.1.mlp.mix"])
    assert not owned["model.layers.2.mlp.inner.weight"].any(), "the module's own choice for its child is kept"
    assert model.layers[2].mlp.steps.tolist() == list(range(48))
    assert not torch.equal(whole(build, seed=1, mlp=mlp)[mix], expected[mix])


def test_a_model_without_init_uses_torchs_own_values_seeded_by_name(build: Any) -> None:
    expected = whole(build, init=None)
    model = stage(build, {1}, set(), init=None)
    initialise(model, seed=0)
    for name, value in model.named_parameters():
        assert torch.equal(value, expected[name]), name
    weight = expected["model.layers.1.mlp.up_proj.weight"]  # torch's default is uniform(-1/sqrt(48), 1/sqrt(48))
    assert weight.abs().max() < 48**-0.5
    assert weight.std().item() == pytest.approx(48**-0.5 / 3**0.5, rel=0.05)


def test_meta_parameters_without_a_device_are_refused(build: Any) -> None:
    with torch.device("meta"):
        model = build()
    with pytest.raises(ValueError, match=r"is on the meta device .* initialise\(model, seed, device=\.\.\.\)"):
        initialise(model, seed=0)


def test_a_parameter_that_nothing_fills_is_refused(build: Any) -> None:
    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))

    model = build(mlp=lambda dim, ffn_dim, layer_index: Gain())
    with pytest.raises(ValueError, match=r"nothing fills model\.layers\.0\.mlp\.gain: give Gain a method reset_param"):
        initialise(model, seed=0)


def test_a_buffer_lost_on_the_meta_device_is_refused(build: Any) -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.ones(1), persistent=False)

    with torch.device("meta"):
        model = build(mlp=lambda dim, ffn_dim, layer_index: Table())
    with pytest.raises(ValueError, match=r"nothing fills model\.layers\.0\.mlp\.table: give Table"):
        initialise(model, seed=0, device="cpu")


def test_a_reset_that_spans_the_layers_is_refused(build: Any) -> None:
    model = build()
    model.model.reset_parameters = lambda: None
    with pytest.raises(ValueError, match=r"Decoder\.reset_parameters would fill all layers at once"):
        initialise(model, seed=0)


def test_a_tied_model_without_names_is_refused(build: Any) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tied, self.layers, self.init = True, nn.ModuleList(), NormalInit(std=0.02, depth_scaled=False)
            self.embed = None
            self.head = nn.Linear(4, 8, bias=False)

    with pytest.raises(ValueError, match="Tied is tied but does not name its tied weights"):
        initialise(Tied(), seed=0)
