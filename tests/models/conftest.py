"""One small model for all tests of `models/`, every size different so that a transposed shape cannot pass.

`build(**changes)` gives a Llama with random weights; `parts` are the factories to change it with.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from forgather_dsl.models.attention import GroupedQueryAttention, SlidingWindow
from forgather_dsl.models.init import NormalInit
from forgather_dsl.models.llama import Llama
from forgather_dsl.models.mlp import SwiGLU
from forgather_dsl.models.norms import RMSNorm
from forgather_dsl.models.rope import Llama3Rope, Rope


def factory(cls: type, **fixed: Any) -> Callable[..., Any]:
    """What a `Factory` field becomes: a callable that drops the context the class does not ask for."""
    declared = inspect.signature(cls).parameters
    return lambda **runtime: cls(**fixed, **{name: value for name, value in runtime.items() if name in declared})


def attention(**changes: Any) -> Callable[..., Any]:
    """Llama's attention, or a sliding window when `window` is given."""
    options = {"bias": False, "output_bias": False, "qk_norm": None, "dropout": 0.0, **changes}
    return factory(SlidingWindow if "window" in changes else GroupedQueryAttention, **options)


def make(**changes: Any) -> Llama:
    """A Llama of 3 layers with torch's own random weights, the same for the same arguments."""
    options: dict[str, Any] = {
        "dim": 48,
        "num_layers": 3,
        "num_heads": 6,
        "num_kv_heads": 2,
        "head_dim": 8,
        "ffn_dim": 80,
        "vocab_size": 61,
        "norm": factory(RMSNorm, eps=1e-6),
        "attention": attention(),
        "mlp": factory(SwiGLU, bias=False),
        "rope": factory(Rope, theta=10000.0),
        "tie_embeddings": False,
        "dropout": 0.0,
        "init": NormalInit(std=0.02, depth_scaled=True),
    }
    torch.manual_seed(0)
    return Llama(**{**options, **changes}).eval()


def randomise(model: torch.nn.Module) -> None:
    """Large weights, and norms and biases that are not ones and zeros: small differences in the model then show."""
    torch.manual_seed(1)
    for parameter in model.parameters():
        with torch.no_grad():
            parameter.normal_(0.0, 0.1).add_(1.0 if parameter.dim() == 1 else 0.0)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Matrices this small are slower on two threads, several times so on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def build() -> Callable[..., Llama]:
    return make


@pytest.fixture
def parts() -> SimpleNamespace:
    return SimpleNamespace(
        factory=factory,
        attention=attention,
        randomise=randomise,
        qk_norm=factory(RMSNorm, eps=1e-6),
        # Wavelengths of an 8-feature head span 6 to 6283 positions: these factors keep, blend and stretch some each.
        llama3_rope=factory(
            Llama3Rope,
            theta=10000.0,
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position=160,
        ),
    )
