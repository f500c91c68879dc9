"""Parts of the check about attention: decoding with a cache of keys, and the backends' times and bits."""

from __future__ import annotations

import cProfile
import pstats
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kernels import DEVICE, DTYPE, seconds, trust_cublas
from report import GIB, Report
from torch.nn.functional import scaled_dot_product_attention

from forgather_dsl import Llama
from forgather_dsl.dsl import build
from forgather_dsl.models.cache import KVCache


@torch.inference_mode()
def decode(report: Report) -> None:
    """Tokens per second of one sequence with a KV cache, bfloat16, all 32 layers of 7 B, beside reading the weights once."""
    sizes: dict[str, Any] = {"dim": 4096, "num_layers": 32, "num_heads": 32, "ffn_dim": 11_008, "vocab_size": 32_000}
    if report.small:
        sizes = {"dim": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 300}
    with torch.device("meta"):
        model: Any = build(Llama(**sizes))
    model.to(DTYPE).to_empty(device=DEVICE)
    for parameter in model.parameters():
        parameter.normal_(0, 0.02)
    model.eval()
    ids = torch.randint(sizes["vocab_size"], (1, 16 if report.small else 1024), device=DEVICE)
    count = 4 if report.small else 16
    held = sum(parameter.nbytes for parameter in model.parameters())
    for cudnn in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        cache = KVCache()
        prefill = seconds(lambda: model(ids, None, KVCache()), 2)
        model(ids, None, cache)
        each = seconds(partial(_continue, model, cache, ids[:, -1:], count), 2) / count
        report.row(
            cudnn_attention=cudnn,
            prefill_tokens_per_s=ids.shape[1] / prefill,
            tokens_per_s=1 / each,
            ms_per_token=1e3 * each,
            weights_gib=held / GIB,
            weights_read_gb_per_s=held / each / 1e9,
        )
    report.row(host=_where_time_goes(partial(_continue, model, KVCache(), ids[:, -1:], count)))


def _continue(model: Any, cache: KVCache, token: torch.Tensor, count: int) -> None:
    for _ in range(count):
        token = model(token, None, cache)[:, -1].argmax(-1, keepdim=True)


def _where_time_goes(work: Callable[[], Any], most: int = 8) -> list[str]:
    """What Python spends its own time in, most first."""
    profiler = cProfile.Profile()
    profiler.runcall(work)
    stats: Any = pstats.Stats(profiler)
    found = sorted(stats.stats.items(), key=lambda item: -item[1][2])[:most]
    return [f"{Path(where[0]).name}:{where[2]} {1e3 * told[2]:.1f} ms, {told[0]} calls" for where, told in found]


def attention(report: Report) -> None:
    """Causal attention as wide as 7 B, forward and backward, by each of torch's backends."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    trust_cublas()
    size = (1, 4, 64, 32) if report.small else (1, 32, 4096, 128)
    backends = {"default": None, "cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    for dtype in (DTYPE, torch.float32):
        q, k, v = (torch.randn(size, device=DEVICE, dtype=dtype).requires_grad_() for _ in range(3))
        dy = torch.randn(size, device=DEVICE, dtype=dtype)
        for strict in (False, True):
            torch.use_deterministic_algorithms(strict)
            for name, backend in (backends if dtype == DTYPE else {"default": None}).items():
                with nullcontext() if backend is None else sdpa_kernel(backend):
                    try:
                        forward, backward, same = _attend(q, k, v, dy)
                    except RuntimeError as error:
                        report.row(dtype=str(dtype), backend=name, deterministic=strict, refused=str(error)[:60])
                        continue
                row = {"forward_ms": 1e3 * forward, "backward_ms": 1e3 * backward, "repeats": same}
                report.row(dtype=str(dtype), backend=name, deterministic=strict, **row)
    torch.use_deterministic_algorithms(False)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, dy: torch.Tensor) -> tuple[float, float, bool]:
    y = scaled_dot_product_attention(q, k, v, is_causal=True)
    again = partial(torch.autograd.grad, y, (q, k, v), dy, retain_graph=True)
    same = all(torch.equal(a, b) for a, b in zip(again(), again()))
    return seconds(lambda: scaled_dot_product_attention(q, k, v, is_causal=True)), seconds(again), same
