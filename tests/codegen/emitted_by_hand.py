"""A small model, the file that a person would have written for it, and ways to break that file."""

from __future__ import annotations

from codegen.source import Source

ORIGINAL = """
import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    def __init__(self, dim, dropout):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, 2 * dim)
        self.down = nn.Linear(2 * dim, dim, bias=False)
        self.dropout = dropout

    def forward(self, x):
        y = self.down(F.gelu(self.up(self.norm(x))))
        return x + F.dropout(y, self.dropout, self.training)


class Small(nn.Module):
    def __init__(self, vocab=23, dim=8, layers=2, dropout=0.1):
        super().__init__()
        self.embedding = nn.Embedding(vocab, dim)
        self.layers = nn.ModuleList(Block(dim, dropout) for _ in range(layers))
        self.register_buffer("scale", torch.full((dim,), 0.5), persistent=False)
        self.head = nn.Linear(dim, vocab, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x * self.scale)


def initialise(model, std):
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
"""

FOOTER = """

def build_model() -> Small:
    return Small(vocab=23, dim=8, layers=2, dropout=0.1)


def load_model(path: str = "model.safetensors", device: str = "cpu") -> Small:
    import json
    import struct

    kinds = {"F32": torch.float32}
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        blob = bytearray(file.read())
    state = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = entry["data_offsets"]
            state[name] = torch.frombuffer(blob[begin:end], dtype=kinds[entry["dtype"]]).reshape(entry["shape"])
    state["head.weight"] = state["embedding.weight"]
    model = build_model()
    model.load_state_dict(state)
    return model.to(device).eval()
"""

EMITTED = ORIGINAL + FOOTER


def source(*changes: tuple[str, str], requirements: tuple[str, ...] = ()) -> Source:
    """The file by hand, with texts in it replaced. Each must occur."""
    text = EMITTED
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return Source(text, "Small", also={"initialise": "initialise"}, requirements=requirements)
