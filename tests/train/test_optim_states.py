"""What optimizers keep and make: 8-bit blocks beside fp32 and torchao, bytes that a step makes, what rounding loses, backups."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_optim import KINDS, PRECISIONS, Trained, held, run, same, starts
from torch._subclasses.fake_tensor import FakeTensorMode

from forgather_dsl import BF16, FP32, AdamW, Llama, Muon, Trainer, WarmupCosine, patch
from forgather_dsl.dsl import build, replace
from forgather_dsl.plan.memory import State
from forgather_dsl.plan.sizes import model_size
from forgather_dsl.train.assembly import make_model, make_optimizer
from forgather_dsl.train.exact import _as_on_gpu
from forgather_dsl.train.live import CUDA_BLOCK, LiveBytes
from forgather_dsl.train.optim import blocks
from forgather_dsl.train.post_validation import Backup

CPU = torch.device("cpu")


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("columns", [1, 255, 256, 300, 1024])
def test_eight_bits_are_the_nearest_of_the_table(columns, signed):
    generator = torch.Generator().manual_seed(columns)
    value = torch.randn(16, columns, generator=generator) * torch.logspace(-6, 2, 16)[:, None]
    value[3] = 0.0
    value = value if signed else value.square()
    codes = torch.empty(16, columns, dtype=torch.uint8)
    scales = torch.empty(16, blocks.blocks_in(columns))
    blocks.quantise(value.clone(), signed, codes, scales)
    back = blocks.dequantise(codes, scales, signed)
    wide = scales.repeat_interleave(blocks.BLOCK, 1)[:, :columns]
    table = blocks.table(signed, CPU)
    distance = (value[..., None] - table * wide[..., None]).abs().amin(-1)
    kept = torch.ones_like(value, dtype=torch.bool) if signed else (value == 0) | (back > table[1] * wide)
    assert torch.allclose((value - back).abs()[kept], distance[kept], atol=1e-7 * float(value.abs().max()))
    gaps = (table[1:] - table[:-1]).max() / 2
    assert ((value - back).abs() <= 1.0001 * gaps * wide).all()
    assert bool((back[3] == 0).all())
    assert signed or bool(((back > 0) == (value > 0)).all())  # a second moment is 0 only where it was


def test_the_table_and_the_codes_are_those_of_torchao():
    torchao = pytest.importorskip("torchao.optim.quant_utils")
    for signed in (True, False):
        theirs = torch.tensor(torchao.create_dynamic_map(signed))
        assert torch.allclose(blocks.table(signed, CPU), theirs, rtol=0, atol=1e-7)
        value = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
        value = value if signed else value.square()
        scaled, scale = torchao.scale_tensor(value, 256)
        expected = torchao.quantize_8bit_with_qmap(scaled, theirs).view(64, 256)
        codes, scales = torch.empty(64, 256, dtype=torch.uint8), torch.empty(64, 1)
        blocks.quantise(value.clone(), signed, codes, scales)
        assert torch.equal(scales.flatten(), scale.flatten())
        assert (codes.int() - expected.int()).abs().max() <= 1
        assert (codes == expected).float().mean() > 0.998  # what lies near halfway may go either way; measured 0.9988


def test_adamw_in_eight_bits_stays_near_torchaos():
    adam = pytest.importorskip("torchao.optim.adam")
    shape = {"model.layers.0.mlp.up_proj.weight": (64, 256)}
    ours, theirs, plain = (starts(torch.float32, shape) for _ in range(3))
    run(make_optimizer(Trained(optimizer=AdamW(lr=1e-3, states="8bit"), precision=FP32()), ours), ours, 30)
    run(make_optimizer(Trained(optimizer=AdamW(lr=1e-3), precision=FP32()), plain), plain, 30)
    their = adam._AdamW8bit if hasattr(adam, "_AdamW8bit") else adam.AdamW8bit
    run(their([*theirs.values()], lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1), theirs, 30)
    (a,), (b,), (c,) = (list(each.values()) for each in (ours, theirs, plain))
    moved = (c - starts(torch.float32, shape)["model.layers.0.mlp.up_proj.weight"]).norm()
    assert (a - b).norm() < 0.02 * moved
    assert (a - c).norm() < 0.03 * moved


@pytest.mark.parametrize("states", ["bf16", "8bit"])
@pytest.mark.parametrize("optimizer", [kind for kind in KINDS if getattr(kind, "states", "") == "fp32"], ids=repr)
def test_narrow_states_stay_near_fp32(optimizer, states):
    """Of the movement in thirty steps of noise, the hardest case: directions change at every step."""
    bounds = {"AdamW": 0.03, "Lion": 0.35, "SGD": 0.02, "Muon": 0.05}  # Lion takes the sign of what may be near 0
    narrow, plain = starts(torch.float32), starts(torch.float32)
    run(make_optimizer(Trained(optimizer=replace(optimizer, states=states), precision=FP32()), narrow), narrow, 30)
    run(make_optimizer(Trained(optimizer=optimizer, precision=FP32()), plain), plain, 30)
    for name, start in starts(torch.float32).items():
        moved = (plain[name] - start).norm()
        assert (narrow[name] - plain[name]).norm() < bounds[type(optimizer).__name__] * moved, name


class Wide(Trained):
    """One layer, and an embedding of several chunks."""

    seq_len, batch_size, microbatch_size = 64, 1, 1
    model = patch(Llama, vocab_size=32_000, dim=512, num_layers=1, num_heads=4, ffn_dim=2048)


SIZED = [*KINDS, Muon(nesterov=False), replace(KINDS[6], nesterov=False)]


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=[pytest.mark.slow] if n % 3 else []) for n in range(len(SIZED))],
    ids=lambda number: repr(SIZED[number]),
)
def test_a_step_makes_what_the_plan_says_and_a_chunk_bounds_it(number):
    """On fake tensors, as on a GPU: state and what a step makes for itself, within 3 %; one rounding each, all in turn."""
    optimizer = SIZED[number]
    for precision in (PRECISIONS[number % 5], PRECISIONS[(number + 2) % 5]):
        experiment = Wide(optimizer=optimizer, precision=precision)
        shapes = {name: p.shape for name, p in make_model(experiment).named_parameters()}
        live = LiveBytes(CUDA_BLOCK)
        with FakeTensorMode():
            dtype = build(precision).parameters
            parameters = {n: torch.nn.Parameter(torch.empty(s, dtype=dtype)) for n, s in shapes.items()}
            with live:
                one = make_optimizer(experiment, parameters)
                _as_on_gpu(one)
                for parameter in parameters.values():
                    parameter.grad = torch.zeros_like(parameter)
                one.step()
                before = live.total
                live.restart()
                one.step()
            state = sum(t.nbytes for *_, s in one.named_states() for t in s.values() if t.ndim) + one.extra_bytes
        size, plan = model_size(experiment.model, 64), State(experiment, on_gpu=True)
        parts = [(size.embedding, False), (size.final_norm, False), (size.head, False), (size.layers[0], True)]
        made, planned = live.peak - before, plan.update(parts)
        assert abs(planned - made) <= 0.03 * made + 50_000, (precision, made, planned)
        assert planned <= 5 * (1 << 25)  # fp32 copies of a chunk
        assert abs(sum(plan.bytes_of(*part)[2] for part in parts) - state) <= 0.003 * state + 15_000, precision


def test_what_rounding_to_nearest_loses_is_measured():
    parameters = starts(torch.bfloat16)
    one: Any = make_optimizer(Trained(optimizer=AdamW(lr=4e-6), precision=BF16(rounding="nearest")), parameters)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    one.watch()
    run(one, parameters, 1)
    total, moved, wanted, applied = one.moved()
    assert total == sum(p.numel() for p in parameters.values())
    assert moved == sum(int((p != before[name]).sum()) for name, p in parameters.items())
    assert 0 < moved < 0.5 * total
    assert applied == pytest.approx(
        sum(float((p.detach().float() - before[name].float()).abs().sum()) for name, p in parameters.items()), rel=1e-5
    )
    assert wanted == pytest.approx(total * 4e-6, rel=0.05)  # the first step of Adam is the learning rate everywhere
    assert one.moved() is None  # measured once
    fp32: Any = make_optimizer(Trained(precision=FP32()), starts(torch.float32))
    fp32.watch()
    assert fp32.moved() is None


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda one: getattr(one, "rounding", "fp32"))
def test_an_update_can_be_taken_back(precision):
    for optimizer in KINDS:
        parameters = starts(build(precision).parameters)
        one = make_optimizer(Trained(optimizer=optimizer, precision=precision), parameters)
        run(one, parameters, 2)
        before = {key: value.clone() for key, value in (held(one) | parameters).items()}
        backup = Backup(SimpleNamespace(optimizer=one, parameters=parameters))  # type: ignore[arg-type]
        run(one, parameters, 1, seed=3)
        after = {key: value.clone() for key, value in (held(one) | parameters).items()}
        assert same(before, after)
        backup.restore()
        assert same(before, held(one) | parameters) == [], optimizer
        run(one, parameters, 1, seed=3)
        assert same(after, held(one) | parameters) == [], optimizer


def test_every_state_and_rounding_has_other_bits():
    """Else one of them does nothing."""
    found = []
    for states, precision in itertools.product(("fp32", "bf16", "8bit"), PRECISIONS):
        parameters = starts(build(precision).parameters)
        run(make_optimizer(Trained(optimizer=AdamW(states=states), precision=precision), parameters), parameters, 3)
        found.append(torch.cat([p.detach().float().flatten() for p in parameters.values()]))
    for a, b in itertools.combinations(range(len(found)), 2):
        assert not torch.equal(found[a], found[b]), (a, b)


def test_a_run_that_rounds_to_nearest_says_what_it_loses(small: Any, tmp_path: Path, capfd: Any) -> None:
    """In the first update, which is in the warm-up, and in the first at the full rate."""
    optimizer = AdamW(lr=1e-4)
    experiment = small.Small(
        optimizer=optimizer, precision=BF16(rounding="nearest"), lr_schedule=WarmupCosine(warmup=0.5), steps=4
    )
    Trainer(experiment, out=str(tmp_path / "nearest"), model=False).fit()
    said = [line for line in capfd.readouterr().err.splitlines() if "rounded to nearest" in line]
    pattern = r"update of step (\d), at a learning rate of (\S+), moved (\S+)% of them, and (\S+)% of the movement was applied"
    found = [[float(x) for x in re.search(pattern, line).groups()] for line in said]  # type: ignore[union-attr]
    assert [(step, lr) for step, lr, *_ in found] == [(1, 5e-5), (2, 1e-4)]
    for _, _, moved, applied in found:
        assert 1 < moved < 90
        assert 1 < applied < 100
    Trainer(replace(experiment, precision=BF16(rounding="stochastic")), out=str(tmp_path / "chance"), model=False).fit()
    assert "nearest" not in capfd.readouterr().err
