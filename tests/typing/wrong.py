"""Programs that a type checker must reject, each wrong line with what it must say. Never run: pyright reads them."""

# fmt: off
# ruff: noqa: B018
from __future__ import annotations

from typing import Any, TypeVar

from right import AdamW, Attention, Experiment, Model, Muon, Norm, Optimizer, RMSNorm, Small, Swapped, Tokenizer

from forgather_dsl.dsl import REQUIRED, Cycle, Factory, Lazy, build, derived, patch, replace, swap

T = TypeVar("T")


class WrongType(Experiment):
    seq_len = "4k"  # error: is not assignable to declared type "int"


class UnknownName(Experiment):
    model = patch(Model, dimm=4)  # error: No parameter named "dimm"


class WrongKind(Experiment):
    optimizer = Model(dim=1)  # error: "Model" is not assignable to "Optimizer[Any]"


class WrongPatch(Experiment):
    optimizer = patch(Model, dim=1)  # error: "Model" is not assignable to "Optimizer[Any]"


class NestedType(Experiment):
    model = patch(Model, attention=patch(Attention, heads="32"))  # error: cannot be assigned to parameter "heads" of type "int"


class NestedName(Experiment):
    model = patch(Model, attention=patch(Attention, head=32))  # error: No parameter named "head"


class NotOnTheInterface(Small):
    optimizer = patch(Optimizer, betas=(0.9, 0.99))  # error: No parameter named "betas"


class WrongSwap(Experiment):
    optimizer = swap(RMSNorm)  # error: "RMSNorm" is not assignable to "Optimizer[Any]"


class TwoLevelsDown(Small):
    optimizer = swap(
        RMSNorm
    )  # no complaint: Small assigns it unannotated, and only the nearest base is compared (edge 16)


class WrongSwapName(Small):
    optimizer = swap(Muon, momentun=1.0)  # error: No parameter named "momentun"


class WrongDefault(Lazy[Any]):
    norm: Factory[Norm[Any]] = Attention(heads=1)  # error: "Attention" is not assignable to "Norm[Any]"
    heads: int = "3"  # error: is not assignable to declared type "int"


class WrongOption(Lazy[Any]):
    norm: Factory[Norm[Any]] = Cycle(RMSNorm(), Attention(heads=1))  # error: "Attention" is not assignable to "Norm[Any]"


class WrongLiteral(Attention):
    kind = "flax"  # error: is not assignable to declared type "Literal['sdpa', 'flex']"


class WrongReturn(Small):
    @derived
    def model(self) -> Model:
        return Tokenizer()  # error: "Tokenizer" is not assignable to "Model"


class WrongDerived(Small):
    @derived
    def tokenizer(self) -> Model:  # error: overrides symbol of same name in class "Experiment"
        return Model(dim=super().model.dimm)  # error: Cannot access attribute "dimm"


small = Small()
small.modle  # error: Cannot access attribute "modle"
small.model.attention.head  # error: Cannot access attribute "head"
small.seq_len.upper()  # error: Cannot access attribute "upper"
Small(seqlen=1)  # error: No parameter named "seqlen"
Small(seq_len="1")  # error: cannot be assigned to parameter "seq_len" of type "int"
AdamW(1e-3)  # error: Expected 0 positional arguments
Model(dim=None)  # error: "None" is not assignable to "int"
patch(Attention, 3)  # error: Expected 0 positional arguments
patch(3, x=1)  # error: cannot be assigned to parameter "cls"
build(Muon()).nothing  # error: Cannot access attribute "nothing" for class "Decimal"
build(3)  # error: cannot be assigned to parameter "lazy"
build(Tokenizer()).numerator.nothing  # error: Cannot access attribute "nothing"
wrong: AdamW = Swapped().optimizer  # error: is not assignable to declared type "AdamW"
other: Swapped = replace(small, seq_len=1)  # error: "Small" is not assignable to "Swapped"
count: int = Attention(heads=REQUIRED).kind  # error: is not assignable to declared type "int"
