"""The first estimate against models that are really built, backward passes that really keep, optimizers that really step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from forgather_dsl import (
    BF16,
    FP32,
    GELUMLP,
    AdamW,
    Attention,
    Cycle,
    Experiment,
    FullRecompute,
    GroupedQueryAttention,
    LayerNorm,
    Llama,
    Model,
    Muon,
    OneFOneB,
    Optimizer,
    Pipeline,
    ReLUSquaredMLP,
    RMSNorm,
    SlidingWindow,
    SwiGLU,
    UserError,
    ZeroBubble,
    ZeroBubbleH1,
    patch,
)
from forgather_dsl.dsl import ConfigError, build, load, override, replace
from forgather_dsl.plan import hardware
from forgather_dsl.plan.estimate import estimate
from forgather_dsl.plan.fit import require_fit
from forgather_dsl.plan.hardware import GIB, Device
from forgather_dsl.plan.layout import lay_out
from forgather_dsl.plan.sizes import model_size

GALLERY = Path(__file__).parents[2] / "experiments"


class Small(Experiment):
    """Large enough that activations count, small enough to build."""

    steps = 1
    seq_len = 64
    microbatch_size = 2
    model = patch(Llama, vocab_size=5000, dim=96, num_layers=4, num_heads=6, num_kv_heads=2, ffn_dim=160)


class Mine(Attention["nowhere.Attention"]):
    """Somebody's own attention, not to be imported."""


class Strange(Model["nowhere.Model"]):
    """Somebody's own model."""


class Unheard(Optimizer["nowhere.Optimizer"]):
    """Somebody's own optimizer."""


def built(model):
    with torch.device("meta"):
        return build(model)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Llama7B", 6_738_415_616),
        ("Llama31_8B", 8_030_261_248),
        ("Mistral7B", 7_241_732_096),
        ("Qwen3_8B", 8_190_735_360),
    ],
)
def test_published_models_have_their_published_number_of_parameters(name, parameters):
    model = load(f"{GALLERY / 'llama7b.py'}:{name}")().model
    assert model_size(model, 4096).parameters == parameters
    assert sum(p.numel() for p in built(model).parameters()) == parameters


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": True},
        {"norm": LayerNorm(bias=True)},
        {"norm": LayerNorm()},
        {"mlp": GELUMLP(bias=True)},
        {"mlp": ReLUSquaredMLP()},
        {"mlp": SwiGLU(bias=True)},
        {"head_dim": 24},
        {"attention": GroupedQueryAttention(bias=True, output_bias=True)},
        {"attention": GroupedQueryAttention(qk_norm=LayerNorm(bias=True))},
        {"attention": Cycle(SlidingWindow(window=8, qk_norm=RMSNorm()), GroupedQueryAttention(bias=True))},
        {"mlp": Cycle(SwiGLU(), GELUMLP(), ReLUSquaredMLP(bias=True))},
    ],
)
def test_parameters_are_exact_for_every_option(changes):
    model = replace(Small().model, **changes)
    assert model_size(model, 64).parameters == sum(p.numel() for p in built(model).parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_kv_heads": 6},
        {"attention": GroupedQueryAttention(qk_norm=RMSNorm())},
        {"mlp": GELUMLP()},
        {"mlp": ReLUSquaredMLP()},
        {"norm": LayerNorm()},
    ],
)
def test_a_layer_keeps_what_the_formula_says(changes):
    """Storages that autograd saves in one real layer; an eager norm on a CPU also keeps its output before the weight."""
    model = replace(Small().model, **changes)
    real = build(model)
    x = torch.randn(2, 64, 96, requires_grad=True)
    own = {p.untyped_storage().data_ptr() for p in real.parameters()}
    context = real.context(64, 0, None, "cpu")
    tables = {t.untyped_storage().data_ptr() for t in context.rope}
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own | tables:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = real.layers[0](x, context, None)
    size = model_size(model, 64).layers[0]
    expected = 2 * 64 * 4 * (size.kept + size.kept_fp32)
    assert y.shape == x.shape
    assert expected * 0.97 <= sum(kept.values()) <= expected * 1.25


@pytest.mark.parametrize(("optimizer", "tied"), [(AdamW(), False), (Muon(), False), (Muon(), True)])
def test_stored_bytes_are_those_of_a_real_step(optimizer, tied):
    from forgather_dsl.train.optim import parameter_groups

    experiment = Small(optimizer=optimizer, model=replace(Small().model, tie_embeddings=tied))
    model = build(experiment.model)
    real = build(optimizer, params=parameter_groups(model.named_parameters()))
    model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
    real.step()
    state = sum(
        t.numel() * t.element_size() for *_, s in real.named_states() for t in s.values() if getattr(t, "ndim", 0)
    )
    (rank,) = estimate(experiment, on_gpu=False).ranks
    assert rank.weights == 4 * sum(p.numel() for p in model.parameters())
    assert rank.gradients == rank.weights + 4 * 5000 * 96 * tied  # the gradient of a tied head is summed apart
    assert rank.optimizer == state


@pytest.mark.parametrize("precision", [FP32(), BF16()])
def test_post_validation_holds_what_its_backup_takes(precision):
    """Beside the same pipeline without it: bytes of a real backup after a real step."""
    from types import SimpleNamespace

    from forgather_dsl.train.assembly import make_optimizer
    from forgather_dsl.train.post_validation import Backup

    experiment = Small(batch_size=4, precision=precision, parallel=Pipeline(stages=2))
    validated = replace(experiment, parallel=Pipeline(stages=2, post_validation=True))
    before, after = (sum(rank.optimizer for rank in estimate(e, on_gpu=False).ranks) for e in (experiment, validated))
    model = build(experiment.model).to(build(precision).parameters)
    parameters = dict(model.named_parameters())
    optimizer = make_optimizer(experiment, parameters)
    model(torch.zeros(1, 8, dtype=torch.long)).sum().backward()
    optimizer.step()
    backup = Backup(SimpleNamespace(optimizer=optimizer, parameters=parameters))
    tensors = [*backup.masters.values(), *(weight for _, weight in backup.weights)]
    tensors += [value for _, state in backup.states for value in state.values() if getattr(value, "ndim", 0)]
    taken = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert taken > 4 * sum(p.numel() for p in parameters.values())
    assert taken <= after - before <= 1.2 * taken


def test_mixed_precision_halves_activations_on_a_gpu_and_not_on_a_cpu():
    experiment = Small(seq_len=1024)
    (cpu,), (gpu,) = (estimate(experiment, on_gpu=on_gpu).ranks for on_gpu in (False, True))
    assert 0.5 <= gpu.activations / cpu.activations < 0.52  # log-sum-exp and rms stay fp32
    assert gpu.weights > cpu.weights  # a bf16 copy of the linear layers


def test_full_recompute_keeps_layer_inputs_alone():
    """At the peak, which is the loss here."""
    plain, full = Small(seq_len=512), Small(seq_len=512, recompute=FullRecompute())
    layer = model_size(full.model, 512).layers[0]
    (a,), (b,) = (estimate(x, on_gpu=False).ranks for x in (plain, full))
    assert a.activations - b.activations == 2 * 512 * 4 * 4 * (layer.kept + layer.kept_fp32 - 96)


def test_weight_gradients_put_off_are_memory():
    later, now = (
        estimate(Small(batch_size=16, recompute=FullRecompute(), parallel=Pipeline(stages=2, schedule=s)), on_gpu=False)
        for s in (ZeroBubbleH1(), OneFOneB())
    )
    assert later.ranks[1].activations > 1.5 * now.ranks[1].activations


def test_a_tighter_cap_needs_less():
    needs = [
        max(
            r.activations
            for r in estimate(Small(batch_size=32, parallel=Pipeline(stages=4, schedule=s)), on_gpu=False).ranks
        )
        for s in (ZeroBubble(memory_cap=1), ZeroBubble(memory_cap=4))
    ]
    assert needs[0] < needs[1]


def test_ranks_add_up_to_one_process():
    whole = estimate(Small(seq_len=512), on_gpu=False).ranks[0]
    cut = estimate(Small(seq_len=512, parallel=Pipeline(stages=3)), on_gpu=False).ranks
    for kind in ("weights", "gradients", "optimizer"):
        assert sum(getattr(rank, kind) for rank in cut) == getattr(whole, kind)


def test_a_tied_head_is_a_copy_without_optimizer_state_of_its_own():
    model = replace(Small().model, tie_embeddings=True)
    whole = estimate(Small(model=model), on_gpu=False).ranks[0]
    cut = estimate(Small(model=model, parallel=Pipeline(stages=2)), on_gpu=False).ranks
    assert sum(rank.weights for rank in cut) == whole.weights + 4 * 5000 * 96
    assert sum(rank.optimizer for rank in cut) == whole.optimizer


def test_stages_are_cut_where_they_are_told_to():
    assert lay_out(Small(parallel=Pipeline(stages=2, cuts=(1, 3)))).layers == (range(1), range(1, 4))
    assert lay_out(Small()).layers == (range(4),)


def test_a_heavy_head_gets_fewer_layers():
    layers = lay_out(override(Small(parallel=Pipeline(stages=2)), {"model.num_layers": "12"})).layers
    assert len(layers[0]) > len(layers[1])
    assert [i for stage in layers for i in stage] == list(range(12))


def test_what_is_unknown_is_named_and_the_rest_is_counted():
    model = replace(Small().model, attention=Mine())
    found = estimate(Small(model=model, optimizer=Unheard()), on_gpu=False)
    assert found.left_out[0] == "Mine"
    assert "Unheard" in found.left_out[1]
    assert 0 < found.parameters < model_size(Small().model, 64).parameters
    strange = Small(model=Strange(vocab_size=5000, dim=96, num_layers=4), parallel=Pipeline(stages=2))
    assert estimate(strange, on_gpu=False).left_out == ("the layers of Strange",)
    assert estimate(strange, on_gpu=False).parameters == 2 * 5000 * 96
    assert [len(layers) for layers in lay_out(strange).layers] == [2, 2]


def card(gib: float) -> Device:
    return Device(f"{gib:g}GB card", int(gib * GIB), "gpu")


@pytest.fixture
def machine(monkeypatch):
    """`machine(host_gib, card, card, ...)`: what this machine is said to have."""

    def have(host: float, *cards: float) -> None:
        monkeypatch.setattr(hardware, "gpus", lambda: tuple(map(card, cards)))
        monkeypatch.setattr(hardware, "host_memory", lambda: int(host * GIB))

    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    have(16)
    return have


def test_without_gpus_any_number_of_ranks_shares_the_host(machine):
    require_fit(Small(parallel=Pipeline(stages=4)))
    machine(1)  # four processes of Python alone take more
    with pytest.raises(UserError, match=r"needs 1\.\d GiB of memory, this machine has 1\.0 GiB and no GPU") as caught:
        require_fit(Small(parallel=Pipeline(stages=4)))
    assert caught.value.exit_code == 3
    assert [line[:9] for line in str(caught.value).splitlines()[1:5]] == [f"  rank {rank}:"[:9] for rank in range(4)]


def test_named_cards_do_not_matter_where_there_are_none(machine):
    machine(1000)
    require_fit(load(f"{GALLERY / 'llama7b.py'}:PP4ZeroBubble")())
    machine(24)
    with pytest.raises(UserError, match="no GPU"):
        require_fit(load(f"{GALLERY / 'llama7b.py'}:PP4ZeroBubble")())


def test_on_gpus_each_rank_has_a_card(machine):
    machine(64, 24, 24)
    require_fit(Small(parallel=Pipeline(stages=2)))
    with pytest.raises(UserError, match="needs 4 GPUs, one for each rank, this machine has 2") as caught:
        require_fit(Small(parallel=Pipeline(stages=4)))
    assert caught.value.exit_code == 3
    assert "parallel = Pipeline(stages=2)" in str(caught.value)


def test_each_card_is_compared_with_its_own_rank(machine):
    machine(64, 24, 0.5)
    with pytest.raises(UserError, match="rank 1 of 2 need more than there is"):
        require_fit(Small(parallel=Pipeline(stages=2)))


def test_under_torchrun_the_ranks_of_this_machine_count(machine, monkeypatch):
    machine(64, 24, 24)
    for name, value in {"RANK": "3", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    require_fit(Small(parallel=Pipeline(stages=4)))


def test_a_wrong_hardware_is_an_error_on_any_machine(machine):
    with pytest.raises(ConfigError, match="hardware = 'lots'"):
        require_fit(Small(hardware="lots"))


class TooLarge(Experiment):
    """Does not fit the machines of the next test as it stands."""

    steps = 1
    seq_len = 2048
    batch_size = 64
    microbatch_size = 16
    parallel = Pipeline(stages=2)
    model = patch(Llama, vocab_size=32_000, dim=1024, num_layers=16, num_heads=16)


@pytest.mark.parametrize("has", [(12,), (64, 8, 8), (64, 8), (64, 6, 6)])
def test_the_advice_can_be_pasted_and_then_it_fits(machine, has):
    """The lines are executed as a class body; the last one says that it fits, and it does."""
    machine(*has)
    with pytest.raises(UserError) as caught:
        require_fit(TooLarge())
    _, _, advice = str(caught.value).partition("try, in the class body:\n")
    lines = [line.strip() for line in advice.splitlines()]
    assert lines[-1].endswith("fits"), caught.value
    assert all(re.search(r"# \d+\.\d GiB", line) for line in lines)
    import forgather_dsl

    names = {name: getattr(forgather_dsl, name) for name in ("patch", *forgather_dsl.specs.__all__)}
    body = "\n".join(f"    {line}" for line in lines)
    exec(f"class Better(Base):\n{body}", {**names, "Base": TooLarge}, names)
    require_fit(names["Better"]())


def test_gallery_recipes_fit_the_hardware_they_name():
    from forgather_dsl.dsl.load import experiments_in, load_file

    checked = 0
    for cls in experiments_in(load_file(str(GALLERY / "llama7b.py"))):
        if cls.__abstract__:
            continue
        experiment = cls()
        cards = hardware.parse(experiment.hardware).devices
        ranks = estimate(experiment, on_gpu=True).ranks
        assert len(ranks) == len(cards)
        assert all(rank.total <= device.memory_bytes for rank, device in zip(ranks, cards)), cls.__name__
        checked += 1
    assert checked >= 4
