"""What the checks on a GPU train: experiments by name, each in its real size and small enough for a CPU.

All of them learn bytes of Python's own library, so nothing is downloaded and no tokenizer is trained.
"""

from __future__ import annotations

from typing import Any

from forgather_dsl import (
    BF16,
    FP32,
    AdamW,
    BF16Mixed,
    Bytes,
    Experiment,
    FullRecompute,
    Interleaved,
    Llama,
    Muon,
    NoRecompute,
    OneFOneB,
    Pipeline,
    Sampling,
    Stdlib,
    Watchdog,
    ZeroBubble,
    ZeroBubbleH1,
    ZeroBubbleV,
    patch,
)
from forgather_dsl.dsl import replace


class Small(Experiment, abstract=True):
    """A model of four layers whose steps take milliseconds: for comparing bits, not for speed."""

    data = Stdlib()
    tokenizer = Bytes()
    seq_len = 128
    batch_size = 4
    microbatch_size = 1
    steps = 8
    log_every = 1
    loggers = ()
    save_every = 4
    precision = FP32()
    model = patch(Llama, dim=256, num_layers=8, num_heads=4, num_kv_heads=2)
    optimizer = Muon(lr=0.02, adamw_lr=0.005)
    sampling = Sampling(max_new_tokens=24, temperature=0.0)
    eval_data = Stdlib(split="held_out", held_out=0.002)


class InFP32(Small):
    """32 bits."""


class InMixed(Small):
    """bfloat16 products."""

    precision = BF16Mixed()


class InBF16(Small):
    """bfloat16 over exact masters, layers run again in the backward."""

    precision = BF16()
    recompute = FullRecompute()


class WithDropout(InMixed):
    """Random numbers on the device."""

    model = patch(Llama, dropout=0.1)


class WithDocuments(InMixed):
    """Masks: attention does not cross documents."""

    isolate_documents = True


class Tied(InBF16):
    """One matrix for embedding and head."""

    model = patch(Llama, tie_embeddings=True)


class WithAdamW(InFP32):
    """The other optimizer."""

    optimizer = AdamW(lr=1e-3)


REPEATED = (InFP32, WithAdamW, InMixed, WithDropout, WithDocuments, InBF16)


def on_ranks(base: type[Small], stages: int, schedule: Any, steps: int | None = None, **more: Any) -> Small:
    """The same on ranks that share one card; `more` for the pipeline."""
    parallel = Pipeline(stages=stages, schedule=schedule, ranks_per_gpu=4, **more)
    return base(parallel=parallel) if steps is None else base(parallel=parallel, steps=steps, save_every=None)


def spread() -> dict[str, tuple[Small, Small]]:
    """By name: a run on several ranks, and the single process that has to end with the same bits."""
    h1, v = ZeroBubbleH1(), ZeroBubbleV()
    return {
        "fp32 2 ranks 1F1B": (on_ranks(InFP32, 2, OneFOneB()), InFP32()),
        "fp32 4 ranks ZeroBubble": (on_ranks(InFP32, 4, ZeroBubble()), InFP32()),
        "fp32 4 ranks ZB-V": (on_ranks(InFP32, 4, v), InFP32()),
        "mixed 4 ranks Interleaved": (on_ranks(InMixed, 4, Interleaved()), InMixed()),
        "dropout 2 ranks ZB-V": (on_ranks(WithDropout, 2, v), WithDropout()),
        "documents 2 ranks ZB-H1": (on_ranks(WithDocuments, 2, h1), WithDocuments()),
        "bf16 4 ranks 1F1B": (on_ranks(InBF16, 4, OneFOneB()), InBF16()),
        "tied bf16 4 ranks ZB-H1": (on_ranks(Tied, 4, h1), Tied()),
        "fp32 2 replicas of 2": (on_ranks(InFP32, 2, OneFOneB(), replicas=2), InFP32()),
    }


def endless() -> Small:
    """Four ranks that train until they are killed, or found to hang."""
    watchdog = Watchdog(seconds=5, first_step_seconds=60)
    return replace(on_ranks(InMixed, 4, ZeroBubbleV(), steps=1_000_000), watchdog=watchdog)


class Medium(Experiment):
    """536 M parameters: for memory and speed."""

    data = Stdlib()
    tokenizer = Bytes()
    seq_len = 2048
    batch_size = 4
    microbatch_size = 1
    steps = 4
    log_every = 1
    loggers = ()
    sampling = None
    eval_data = None
    watchdog = None
    model = patch(Llama, dim=2048, num_layers=8, num_heads=16, num_kv_heads=16, ffn_dim=5504, vocab_size=32_000)


def memory_cases() -> dict[str, Medium]:
    """By name, in every format, with and without recomputing."""
    formats = {"fp32 AdamW": (FP32(), AdamW()), "mixed Muon": (BF16Mixed(), Muon()), "bf16 Muon": (BF16(), Muon())}
    recomputes = {"": NoRecompute(), " recomputed": FullRecompute()}
    return {
        name + suffix: Medium(precision=precision, optimizer=optimizer, recompute=recompute)
        for name, (precision, optimizer) in formats.items()
        for suffix, recompute in recomputes.items()
    }
