"""Programs that a type checker must accept, with the types it must see. Never run: pyright reads them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, TypeVar, assert_type

import attrs

from forgather_dsl.dsl import (
    REQUIRED,
    Cycle,
    Factory,
    Graph,
    Lazy,
    Said,
    build,
    call,
    derived,
    diff,
    digest,
    explain,
    from_dict,
    graph,
    load,
    override,
    patch,
    replace,
    snapshot,
    swap,
    to_dict,
)

if TYPE_CHECKING:
    import decimal  # noqa: F401  the strings below name it

T = TypeVar("T")


class Optimizer(Lazy[T], abstract=True, runtime=("params",)):
    lr: float = attrs.field(default=1e-3, validator=attrs.validators.gt(0))


class AdamW(Optimizer["OrderedDict[str, float]"]):
    betas: tuple[float, float] = (0.9, 0.95)


class Muon(Optimizer["decimal.Decimal"]):
    momentum: float = 0.95


class Norm(Lazy[T], abstract=True):
    eps: float = 1e-5


class RMSNorm(Norm["decimal.Decimal"]):
    pass


class Attention(Lazy[Any]):
    heads: int = REQUIRED
    kind: Literal["sdpa", "flex"] = "sdpa"


class Window(Attention):
    window: int = 16


class Model(Lazy["decimal.Decimal"]):
    dim: int = REQUIRED
    max_seq_len: int = 1
    norm: Factory[Norm[Any]] = RMSNorm()
    maybe: Factory[Norm[Any]] | None = None
    attention: Factory[Attention] = Attention()

    @derived
    def ffn_dim(self) -> int:
        return 4 * self.dim


class Tokenizer(Lazy["Fraction"]):
    numerator: int = 1


class Experiment(Lazy[Any], abstract=True):
    seq_len: int = 128
    optimizer: Optimizer[Any] = AdamW()
    table: Mapping[str, float] = attrs.field(factory=dict)
    layers: tuple[Attention, ...] = (Attention(heads=1), Window(heads=2))

    @derived
    def tokenizer(self) -> Tokenizer:
        return Tokenizer()

    @derived
    def model(self) -> Model:
        return Model(max_seq_len=self.seq_len)


class Small(Experiment):
    seq_len = 256  # edge 15: a required field filled without annotation, and others, need no annotation
    model = patch(Model, dim=64, attention=patch(Attention, heads=2))
    optimizer = patch(Optimizer, lr=1e-4)


class Swapped(Small):
    optimizer = swap(Muon, momentum=0.5)


class Widest(Swapped):
    optimizer = patch(Optimizer, lr=1e-5)


class Alternating(Small):
    model = patch(Model, attention=Cycle(Window(heads=2), Attention(heads=2)), norm=call("pkg.mod:norm", x=1))


class Computed(Small):
    @derived
    def model(self) -> Model:
        base = super().model
        assert_type(base, Model)
        return replace(base, dim=self.seq_len)


small = Small(seq_len=3, optimizer=patch(AdamW, lr=1.0))
assert_type(small.seq_len, int)
assert_type(small.model, Model)
assert_type(small.model.attention.heads, int)
assert_type(small.model.attention.kind, Literal["sdpa", "flex"])
assert_type(small.model.ffn_dim, int)
assert_type(small.model.norm.eps, float)
assert_type(small.tokenizer.numerator, int)
assert_type(Small().optimizer.lr, float)
assert_type(Experiment.seq_len, int)

# what is built is what the string names, although nothing is imported at run time
assert_type(build(Muon()), "decimal.Decimal")
assert_type(build(AdamW(), params=[]), OrderedDict[str, float])
assert_type(build(small.tokenizer), Fraction)

assert_type(replace(small, seq_len=4), Small)
assert_type(override(small, {"seq_len": "4"}), Small)
assert_type(attrs.evolve(small, seq_len=4), Small)
assert_type(patch(Attention, heads=3), Attention)
assert_type(swap(Muon), Muon)
assert_type(Cycle(Window(heads=1), Window(heads=2)), Window)
assert_type(digest(small), str)
assert_type(snapshot(small), str)
assert_type(graph(small), Graph)
assert_type(explain(small, "seq_len"), list[Said])
assert_type(diff(small, Swapped())[0].path, str)
assert_type(to_dict(small), dict[str, Any])
read: Small = from_dict(to_dict(small))
loaded: type[Experiment] = load("file.py:Small")
sweep = [Small(optimizer=patch(Optimizer, lr=lr)) for lr in (1e-4, 1e-3)]
assert_type(sweep, list[Small])
