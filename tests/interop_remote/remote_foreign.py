"""Models that the package does not have: what their files for transformers can and cannot do."""

from __future__ import annotations

from codegen import Source

# Learned positions, buffers that no file holds, a head with a bias, no cache, no documents.
OLD_SCHOOL = '''
import torch
from torch import nn


class Smooth(nn.Module):
    """A moving average over the last three tokens."""

    def __init__(self, dim, seq):
        super().__init__()
        weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float32)
        self.register_buffer("kernel", weights.view(1, 1, 3).repeat(dim, 1, 1), persistent=False)
        self.register_buffer("gain", torch.full((dim,), 1.25))
        self.mix = nn.Linear(dim, dim)

    def forward(self, x):
        y = nn.functional.conv1d(nn.functional.pad(x.transpose(1, 2), (2, 0)), self.kernel.to(x.dtype), groups=x.shape[2])
        return x + torch.tanh(self.mix(y.transpose(1, 2) * self.gain))


class OldSchoolLM(nn.Module):
    def __init__(self, vocab, dim, seq, depth):
        super().__init__()
        self.words = nn.Embedding(vocab, dim)
        self.places = nn.Embedding(seq, dim)
        self.register_buffer("numbers", torch.arange(seq), persistent=False)
        self.blocks = nn.ModuleList(Smooth(dim, seq) for _ in range(depth))
        self.out = nn.Linear(dim, vocab)

    def forward(self, tokens):
        x = self.words(tokens) + self.places(self.numbers[: tokens.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.out(x)


def build_model():
    return OldSchoolLM(vocab=53, dim=24, seq=64, depth=2)
'''

NOT_CAUSAL = OLD_SCHOOL.replace("(2, 0))", "(1, 1))")
CAPPED = OLD_SCHOOL.replace("return self.out(x)", "return 30.0 * torch.tanh(self.out(x) / 30.0)")
NEEDS_MORE = OLD_SCHOOL.replace("def forward(self, tokens):", "def forward(self, tokens, images, sizes):")
HIDDEN_ONLY = OLD_SCHOOL.replace("return self.out(x)", "return {'logits': self.out(x)}")
SHARED = OLD_SCHOOL.replace("self.out = ", "self.blocks[1].mix.weight = self.blocks[0].mix.weight\n        self.out = ")
NO_TOKENS = OLD_SCHOOL.replace("self.words(tokens) + ", "self.words.weight[tokens] + ")

# Its sizes in a dataclass, a tied head with a bias, keyword arguments that have defaults.
DATA = """
from __future__ import annotations

import dataclasses

import torch
from torch import nn


@dataclasses.dataclass
class Config:
    vocab: int = 53
    dim: int = 24


class DataLM(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.embed = nn.Embedding(config.vocab, config.dim)
        self.head = nn.Linear(config.dim, config.vocab)
        self.head.weight = self.embed.weight

    def forward(self, tokens, *, scale: float = 1.0):
        return self.head(torch.tanh(self.embed(tokens).cumsum(1)) * scale)


def build_model():
    return DataLM(Config())
"""

# A cache that does not do what its name says: it forgets what was before.
FORGETS = """
import torch
from torch import nn


class ForgetfulLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(53, 24)
        self.layers = nn.ModuleList([nn.Linear(24, 24)])
        self.out = nn.Linear(24, 53)

    def forward(self, tokens, documents=None, cache=None):
        x = self.words(tokens)
        if cache is not None:
            cache.update(0, x[:, None], x[:, None])
        x = x + torch.tanh(self.layers[0](x.cumsum(1)))
        return self.out(x)


def build_model():
    return ForgetfulLM()
"""


def foreign(text: str) -> Source:
    """A model that someone else wrote."""
    root = next(name for name in ("ForgetfulLM", "OldSchoolLM", "DataLM") if f"class {name}(" in text)
    return Source(text, root=root)
