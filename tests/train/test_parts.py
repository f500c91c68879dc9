"""The parts of training one by one: schedules, gradients, optimizers, metrics, sampling."""

from __future__ import annotations

import math
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from forgather_dsl import FSDP2, Experiment, Llama, Pipeline, Single, patch
from forgather_dsl.dsl import replace as replaced
from forgather_dsl.errors import UserError
from forgather_dsl.parallel.failures import raised
from forgather_dsl.parallel.group import World
from forgather_dsl.plan.layout import lay_out
from forgather_dsl.train import repeatable as repeat
from forgather_dsl.train.agreement import Ranks, Said
from forgather_dsl.train.console import Console, duration
from forgather_dsl.train.flops import peak, per_token
from forgather_dsl.train.gradients import clip, sum_of_squares
from forgather_dsl.train.lr import Constant, WarmupCosine, WarmupStableDecay
from forgather_dsl.train.metrics import MetricsFile, read
from forgather_dsl.train.optim import parameter_groups
from forgather_dsl.train.optim.muon import MuonAdamW
from forgather_dsl.train.sampling import picker
from forgather_dsl.train.strategy import make_pipeline


class Short(Experiment):
    """A step."""

    steps = 1


def test_cosine_warms_up_peaks_and_ends_at_its_final_share() -> None:
    schedule = WarmupCosine(warmup=0.1, final=0.1)
    assert schedule(0.05) == pytest.approx(0.5)
    assert schedule(0.1) == pytest.approx(1.0)
    assert schedule(0.55) == pytest.approx(0.1 + 0.9 * 0.5)
    assert schedule(1.0) == pytest.approx(0.1)


def test_stable_decay_is_flat_and_then_a_line() -> None:
    schedule = WarmupStableDecay(warmup=0.1, decay=0.2, final=0.0)
    assert [schedule(x) for x in (0.05, 0.1, 0.5, 0.8)] == pytest.approx([0.5, 1, 1, 1])
    assert schedule(0.9) == pytest.approx(0.5)
    assert schedule(1.0) == pytest.approx(0.0)


def test_constant_stays_after_its_warmup() -> None:
    assert [Constant(warmup=0.0)(x) for x in (0.0, 0.5, 1.0)] == [1, 1, 1]
    assert Constant(warmup=0.2)(0.1) == pytest.approx(0.5)


@pytest.mark.parametrize("shape", [(7,), (3, 5), (4096, 33), (70_000, 2)])
def test_sum_of_squares_is_exact_and_the_same_for_any_number_of_threads(shape: tuple[int, ...]) -> None:
    gradient = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    expected = float(gradient.double().square().sum())
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(float(sum_of_squares(gradient)))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]
    assert found[0] == pytest.approx(expected, rel=1e-6)


def test_clipping_scales_to_the_limit_and_leaves_small_gradients() -> None:
    parameter = torch.nn.Parameter(torch.zeros(4))
    parameter.grad = torch.full((4,), 2.0)  # norm 4
    clip([parameter], 4.0, 5.0)
    assert parameter.grad.norm() == pytest.approx(4.0)
    clip([parameter], 4.0, 1.0)
    assert parameter.grad.norm() == pytest.approx(1.0)


def test_the_global_norm_adds_every_parameter_once_and_sees_what_is_not_finite() -> None:
    ranks = Ranks(World(0, 1, torch.device("cpu"), None), ["b", "a"])
    gradients = {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])}
    squares = {name: sum_of_squares(gradient) for name, gradient in gradients.items()}
    agreed = ranks.agree(squares, Said(2.5, 1.5, memory=7, busy=3.0, span=4.0))
    assert agreed[:8] == (2.5, 5.0, 1.5, False, False, [7], 0, (0.25,))
    assert agreed.finite
    assert (agreed.bad_gradients, agreed.bad_losses) == ((), ())
    wrong = ranks.agree({"a": sum_of_squares(torch.tensor([math.nan]))}, Said(1.0))
    assert (wrong.finite, wrong.bad_gradients, wrong.bad_losses) == (False, ("a",), ())
    wrong = ranks.agree(squares, Said(math.inf))
    assert (wrong.finite, wrong.bad_gradients, wrong.bad_losses) == (False, (), (0,))


NAMED = {
    "model.embed_tokens.weight": (11, 4),
    "model.layers.0.self_attn.q_proj.weight": (8, 4),
    "model.layers.0.mlp.down_proj.weight": (4, 8),
    "model.layers.0.self_attn.q_proj.bias": (8,),
    "model.norm.weight": (4,),
    "lm_head.weight": (11, 4),
}


def named() -> dict[str, torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    out = {name: torch.nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in NAMED.items()}
    for parameter in out.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return out


MUON = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True, "ns_steps": 5}
ADAMW = {"adamw_lr": 3e-3, "betas": (0.9, 0.95), "eps": 1e-8}


def test_parameters_have_roles_and_vectors_do_not_decay() -> None:
    groups = {group["role"]: group for group in parameter_groups(named().items())}
    assert [name for name, _ in groups["matrix"]["params"]] == [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
    ]
    assert {name for name, _ in groups["embedding"]["params"]} == {"model.embed_tokens.weight", "lm_head.weight"}
    assert groups["vector"]["weight_decay"] == 0.0
    assert "weight_decay" not in groups["matrix"]


@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_in_32_bits_is_torchs_muon_but_for_rounding(nesterov: bool) -> None:
    ours, theirs = named(), named()
    keys = [name for name in NAMED if "proj.weight" in name]
    settings = {**MUON, "nesterov": nesterov}
    a = MuonAdamW(parameter_groups((k, ours[k]) for k in keys), **settings, **ADAMW, states="fp32")
    b = torch.optim.Muon([theirs[k] for k in keys], **settings)
    before = {k: ours[k].detach().clone() for k in keys}
    for _ in range(3):
        a.step()
        b.step()
    for k in keys:
        moved = (theirs[k] - before[k]).norm()
        assert (ours[k] - theirs[k]).norm() < 0.02 * moved  # bfloat16 keeps 8 bits
        assert (ours[k] - before[k]).norm() > 0.5 * moved


def test_muon_takes_the_matrices_and_adamw_the_rest_and_states_have_names() -> None:
    parameters = named()
    reference = named()
    optimizer = MuonAdamW(parameter_groups(parameters.items()), **MUON, **ADAMW, states="fp32")
    optimizer.step()
    states = {name: set(state) for name, _, state in optimizer.named_states()}
    assert states["model.layers.0.mlp.down_proj.weight"] == {"step", "momentum_buffer"}
    assert states["model.embed_tokens.weight"] == {"step", "exp_avg", "exp_avg_sq"}
    assert states.keys() == NAMED.keys()
    plain = torch.optim.AdamW([reference["lm_head.weight"]], lr=3e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    plain.step()
    assert torch.equal(parameters["lm_head.weight"], reference["lm_head.weight"])


def test_metrics_drop_what_comes_after_the_restored_step_and_a_line_cut_off(tmp_path: Path) -> None:
    path = str(tmp_path / "metrics.jsonl")
    first = MetricsFile(path)
    for step in range(5):
        first.log({"step": step, "loss": 0.1 * step})
    first.close()
    with open(path, "a") as file:
        file.write('{"step": 5, "lo')
    assert [r["step"] for r in read(path)] == [0, 1, 2, 3, 4]
    again = MetricsFile(path, after_step=2)
    again.log({"step": 3, "loss": 0.1 + 0.2})
    again.close()
    assert [r["step"] for r in read(path)] == [0, 1, 2, 3]
    assert list(read(path))[-1]["loss"] == 0.30000000000000004


def test_sampling_is_greedy_at_zero_stays_in_the_top_k_and_repeats_for_a_seed() -> None:
    logits = torch.tensor([0.0, 3.0, 2.9, -1.0])
    assert picker(0.0, None, 0)(logits) == 1
    pick = picker(1.0, 2, 0)
    assert {pick(logits) for _ in range(50)} == {1, 2}
    assert [picker(1.0, None, 5)(logits) for _ in range(3)] == [picker(1.0, None, 5)(logits) for _ in range(3)]


def test_flops_per_token_are_six_per_weight_and_the_attention() -> None:
    model = Llama(vocab_size=100, dim=8, num_layers=2, num_heads=2)
    assert per_token(10_000, model, 16) == 6 * (10_000 - 800) + 6 * 2 * 8 * 16
    assert peak("NVIDIA GeForce RTX 4090") == 165.2e12
    assert peak("Some new card") is None


def test_durations_read_as_clocks() -> None:
    assert duration(63) == "1:03"
    assert duration(3723) == "1:02:03"


def test_single_is_the_default() -> None:
    assert Short().parallel == Single()


def test_a_sample_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.log({"step": 3, "sample": "def\x1b[2J\x00 f():\n\tpass"})
    console.close()
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\x00" not in shown
    assert "  | \tpass" in shown


def test_kernels_are_repeatable_while_a_run_on_a_gpu_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switches are torch's and global, so they can be seen without a card; `put_` is an operator without a repeatable form."""
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    numbers, at = torch.zeros(3), torch.tensor([0])
    monkeypatch.setenv(repeat.CONFIG, repeat.FIXED)
    with repeat.repeatable(True, torch.device("cuda", 0)):
        assert not settings.fill_uninitialized_memory
        with pytest.raises(RuntimeError) as refused:
            numbers.put_(at, torch.ones(1))
    assert raised(refused.value).endswith("no two runs will then have the same bits")
    assert (torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory) == before
    for wanted, device in ((True, "cpu"), (False, "cuda")):
        with repeat.repeatable(wanted, torch.device(device)):
            numbers.put_(at, torch.ones(1))


@pytest.mark.parametrize(("asks", "stays"), [("once", None), ("always", repeat.FIXED), ("too late", None)])
def test_torch_is_shown_the_variable_of_cublas_as_long_as_it_asks(
    monkeypatch: pytest.MonkeyPatch, asks: str, stays: str | None
) -> None:
    seen: list[str | None] = []

    def product(device: torch.device) -> None:
        seen.append(os.environ.get(repeat.CONFIG))
        if asks == "too late" or (asks == "always" and seen[-1] is None):
            raise RuntimeError("this operation is not deterministic because it uses CuBLAS")

    monkeypatch.delenv(repeat.CONFIG, raising=False)
    monkeypatch.setattr(repeat, "_multiply", product)
    refused = pytest.raises(UserError, match="deterministic = False") if asks == "too late" else nullcontext()
    with refused, repeat.repeatable(True, torch.device("cuda", 0)):
        assert os.environ.get(repeat.CONFIG) == stays
    assert seen == ([repeat.FIXED] if asks == "too late" else [repeat.FIXED, None])
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ.pop(repeat.CONFIG, None) == stays


def test_torchs_runtime_is_refused_where_ranks_share_a_card() -> None:
    """It would hand memory of the GPU to gloo, which ends the process."""
    shared = World(0, 2, torch.device("cuda", 0), "gloo")
    plain = Short(model=patch(Llama, dim=8, num_layers=2, num_heads=1))
    one = replaced(plain, parallel=Pipeline(stages=2, engine="torch"))
    mesh: Any = None  # refused before it is looked at
    with pytest.raises(UserError, match=r"parallel\.engine"):
        make_pipeline(one, lay_out(one), shared, mesh)
    with pytest.raises(UserError, match="FSDP2 gathers on the GPU"):
        make_pipeline(replaced(plain, parallel=FSDP2(shards=2)), lay_out(plain), shared, mesh)
