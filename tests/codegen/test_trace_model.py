"""What the tracer makes of a model: what goes, what stays, what is refused, and that the text does not depend on chance."""

from __future__ import annotations

import itertools
import linecache
import sys
import types

import pytest
import torch

import codegen

_NUMBERS = itertools.count()
_HEAD = "import torch\nimport torch.nn as nn\n\n\n"


@pytest.fixture
def loaded():
    """Loads a text as a module that is found in linecache alone."""
    names: list[str] = []

    def load(text: str) -> types.ModuleType:
        name = f"traced_{next(_NUMBERS)}"
        names.append(name)
        module = types.ModuleType(name)
        module.__file__ = f"<{name}>"
        sys.modules[name] = module
        linecache.cache[module.__file__] = (len(text), None, text.splitlines(keepends=True), module.__file__)
        exec(compile(text, module.__file__, "exec", dont_inherit=True), module.__dict__)
        return module

    yield load
    for name in names:
        del sys.modules[name]
        linecache.cache.pop(f"<{name}>")


def traced(module: types.ModuleType, **options: object) -> str:
    """The text of `M()` or `build()`, without its footer."""
    build = getattr(module, "build", None) or module.M
    return codegen.trace(build(), build, **options).text.split("def build_model")[0]


MODEL = (
    _HEAD
    + '''
def checked(dim, heads):
    if dim % heads:
        raise ValueError("no")


def narrow(dim, index):
    """Forwards."""
    return Norm(size=dim, eps=1e-5)


class Norm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return x * self.weight + self.eps


class Part(nn.Module):
    UNREAD = 3

    def __init__(self, dim: int, heads: int, norm, kind: str = "a", scale: float = 2.0) -> None:
        super().__init__()
        checked(dim, heads)
        self.norm = norm(dim, 0)
        # only for b
        self.extra = nn.Linear(dim, dim) if kind == "b" else None
        self.kind = kind
        self.scale = scale
        self.gradient_checkpointing = False
        self.loud = False

    def enable(self):
        """A toggle."""
        self.loud = True

    def never(self):
        return self.extra

    def forward(self, x):
        if self.kind == "b":
            x = self.extra(x)
        if self.gradient_checkpointing or self.loud:
            x = x + 1
        return self.norm(x) * self.scale


class M(nn.Module):
    def __init__(self, dim=4, heads=2, kind="a"):
        super().__init__()
        self.parts = nn.ModuleList(Part(dim, heads, narrow, kind=kind) for _ in range(2))

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x
'''
)


def test_what_this_configuration_does_not_need_goes(loaded):
    text = traced(loaded(MODEL))
    code = text.split('"""', 2)[2]
    for gone in ("checked", "narrow", "never", "extra", "kind", "UNREAD", "heads", "only for b"):
        assert gone not in code
    assert "self.norm = Norm(size=dim, eps=1e-5)" in code
    assert "def __init__(self, dim: int, scale: float = 2.0) -> None:" in code
    assert "Part(dim) for _ in range(2)" in code
    assert "One check of arguments" in text


def test_what_can_change_later_stays(loaded):
    text = traced(loaded(MODEL))
    assert "def enable(self):" in text
    assert "if self.gradient_checkpointing or self.loud:" in text
    assert "def never" in traced(loaded(MODEL), keep=("never",))
    assert 'self.kind == "b"' in traced(loaded(MODEL), dynamic=("kind",)).split('"""', 2)[2]


def test_an_opaque_class_is_copied_as_it_is(loaded):
    module = loaded(MODEL)
    text = traced(module, opaque=(module.Part,))
    assert (
        MODEL[MODEL.index("    def forward(self, x):\n        if self.kind") : MODEL.index("class M(")].strip() in text
    )
    assert "def checked" in text
    assert "def narrow" in text


def test_decisions_name_line_and_value(loaded):
    module = loaded(MODEL)
    decisions = codegen.trace(module.M(), module.M).decisions
    assert {(d.expression, d.value) for d in decisions} >= {("self.kind == 'b'", "False")}
    lines = MODEL.split("\n")
    for decision in decisions:
        assert decision.expression.split(" ")[0].split("(")[0] in lines[decision.line - 1]


def test_the_text_is_the_same_again_and_for_the_emitted_model(loaded):
    module = loaded(MODEL)
    source = codegen.trace(module.M(), module.M)
    assert codegen.trace(module.M(), module.M) == source
    again = loaded(source.text)
    assert codegen.trace(again.build_model(), again.build_model).text == source.text
    torch.manual_seed(0)
    x = torch.randn(3, 4)
    assert torch.equal(module.M()(x), again.build_model()(x))


def test_without_build_arguments_are_read_off_the_instance(loaded):
    text = (
        _HEAD
        + """
class M(nn.Module):
    def __init__(self, size, bias=True):
        super().__init__()
        self.size = size
        self.bias = bias
        self.linear = nn.Linear(size, size, bias=bias)

    def forward(self, x):
        return self.linear(x)
"""
    )
    module = loaded(text)
    assert "return M(size=3, bias=False)" in codegen.trace(module.M(3, False)).text
    hidden = loaded(text.replace("        self.size = size\n", ""))
    with pytest.raises(codegen.CodegenError, match=r"'size'.*\n.*pass build="):
        codegen.trace(hidden.M(3, False))


def test_one_argument_that_differs_keeps_its_branch(loaded):
    text = traced(loaded(MODEL.replace("kind=kind) for _ in", 'kind="ab"[i]) for i in')))
    assert 'if self.kind == "b":' in text
    assert "# only for b" in text


def test_sizes_that_decide_stay_parameters(loaded):
    module = loaded(
        _HEAD
        + """
class M(nn.Module):
    def __init__(self, heads=4, groups=2):
        super().__init__()
        self.linear = nn.Linear(heads, heads)
        self.heads = heads
        self.groups = groups

    def forward(self, x):
        if self.heads != self.groups:
            return self.linear(x)
        return x
"""
    )
    text = traced(module)
    assert "if self.heads != self.groups:" in text
    assert "heads=4, groups=2" in text


def test_all_problems_are_told_at_once_with_line_and_chain(loaded):
    module = loaded(
        _HEAD
        + """
import os


class Part(nn.Module):
    def forward(self, x):
        return eval("x")


class M(nn.Module):
    def __init__(self):
        super().__init__()
        self.part = Part()
        self.size = int(os.environ.get("SIZE", "4"))

    def forward(self, x):
        return self.part(x) * self.size
"""
    )
    with pytest.raises(codegen.CodegenError) as raised:
        codegen.trace(module.M(), module.M)
    first, second = sorted(raised.value.problems, key=lambda p: p.line)
    assert (first.line, first.text.strip()) == (11, 'return eval("x")')
    assert first.chain == (f"{module.__name__}.M", f"{module.__name__}.Part")
    assert "os.environ" in second.reason
    assert second.line == 18
    assert first.hint
    assert second.hint
