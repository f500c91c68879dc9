"""Bits that do not depend on how many threads a rank has: ranks of a pipeline have fewer than one process alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from forgather_dsl.models.mlp import SwiGLU
from forgather_dsl.models.norms import LayerNorm, RMSNorm


@pytest.mark.parametrize(
    "make",
    [
        lambda: LayerNorm(dim=192, eps=1e-5, bias=True),
        lambda: RMSNorm(dim=192, eps=1e-5),
        lambda: SwiGLU(dim=192, ffn_dim=512, bias=True),
    ],
    ids=["layer norm", "rms norm", "swiglu"],
)
def test_gradients_are_the_same_for_any_number_of_threads(make: Callable[[], nn.Module]) -> None:
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            module, x = make(), torch.randn(8, 128, 192, requires_grad=True)
            module(x).backward(torch.randn(8, 128, 192))
            found.append([x.grad, *(p.grad for p in module.parameters())])
    finally:
        torch.set_num_threads(before)
    assert all(a is not None and b is not None and torch.equal(a, b) for a, b in zip(*found, strict=True))
