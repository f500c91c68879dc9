"""What verification accepts and what it refuses, on a file by hand that is broken in one place at a time."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from emitted_by_hand import ORIGINAL, source

from codegen import Check, CodegenError, Report, verify, verify_many
from codegen.source import Source

CALL = {"after an initialiser": "initialise(model, std=0.3)\nresult = {'logits': model(inputs[0][0]), 'std': 0.3}"}
TOKENS = (torch.arange(32).reshape(2, 16) % 23,)


@pytest.fixture(scope="module")
def original():
    module = types.ModuleType("original_small")
    sys.modules[module.__name__] = module
    exec(compile(ORIGINAL, "original_small.py", "exec"), module.__dict__)
    yield module
    del sys.modules[module.__name__]


def crash(with_: str) -> tuple[str, str]:
    return ("x = self.embedding(tokens)", f"x = self.embedding(tokens)\n        {with_}")


BROKEN = {  # how, and what the refusal says
    "a constant": ((("F.gelu(", "F.relu("),), "eval output"),
    "only in training": ((("self.training)", "False)"),), "train output"),
    "another draw": ((("F.dropout(y, self.dropout", "F.dropout(y, 0.2"),), "train output"),
    "only the gradient": ((("self.head(x * self.scale)", "self.head((x * self.scale).detach())"),), "train gradient of layers"),
    "less drawn": ((("self.up = nn.Linear(dim, 2 * dim)", "self.up = nn.Linear(dim, 2 * dim, device='meta').to_empty(device='cpu')"),), "initial value of layers.0.up"),
    "order of construction": (
        (("        self.norm = nn.LayerNorm(dim)\n", ""), ("bias=False)\n        self.dropout", "bias=False)\n        self.norm = nn.LayerNorm(dim)\n        self.dropout")),
        "modules: the same in another order",
    ),
    "a default": ((("bias=False)\n        self.dropout", "bias=True)\n        self.dropout"),), "only emitted: layers.0.down.bias"),
    "untied": ((("self.head.weight = self.embedding.weight", "pass"),), "parameters: missing: head.weight float32 [23, 8] memory of embedding.weight"),
    "a frozen weight": ((("self.head.weight = self.embedding.weight", "self.head.weight = self.embedding.weight.requires_grad_(False)"),), "frozen"),
    "a buffer's value": ((("(dim,), 0.5)", "(dim,), 0.25)"),), "value of scale: 8 of 8 values, by at most 0.25; first at [0]: 0.5, emitted 0.25"),
    "a buffer's format": ((("(dim,), 0.5)", "(dim,), 0.5, dtype=torch.float64)"),), "buffers: scale float32 [8] not persistent, emitted scale float64"),
    "a buffer that is kept": ((("persistent=False", "persistent=True"),), "buffers: scale float32 [8] not persistent, emitted scale float32 [8]\n"),
    "another number of layers": ((("layers=2, dropout=0.1)\n\n\ndef load", "layers=3, dropout=0.1)\n\n\ndef load"),), "modules: only emitted: layers.2"),
    "a weight that is not loaded": ((("model.load_state_dict(state)", 'model.load_state_dict({**state, "layers.0.up.bias": torch.ones(16)})'),), "loaded value of layers.0.up.bias"),
    "another output": ((("return self.head(x * self.scale)", "return (self.head(x * self.scale),)"),), "eval output: a tensor of shape [2, 16, 23], emitted <1 parts>"),
    "an undefined name": ((crash("missing()"),), "NameError: name 'missing' is not defined"),
    "a foreign import": ((crash("import numpy"),), "imports numpy, which is neither torch nor the standard library"),
    "a hidden import": ((crash("__import__('numpy')"),), "No module named 'numpy'"),
    "another hidden import": ((crash("import importlib; importlib.import_module('forgather_dsl')"),), "No module named 'forgather_dsl'"),
    "torch's own extras": ((crash("import torch.utils.tensorboard"),), "No module named 'tensorboard'"),
    "a text that is none": ((crash("return return"),), "invalid syntax"),
    "a crash": ((crash("import ctypes; ctypes.string_at(0)"),), "was ended by SIGSEGV"),
    "an exit": ((crash("import os; os._exit(7)"),), "ended by itself with code 7"),
    "a polite exit": ((crash("raise SystemExit(0)"),), "ended by itself with code"),
    "a hang": ((crash("import time; time.sleep(60)"),), "did not end within 6 s"),
    "an initialiser": ((("std=std)", "std=2 * std)"),), "call 'after an initialiser' result['logits']"),
}  # fmt: skip


@pytest.fixture(scope="module")
def results(original):
    torch.manual_seed(3)
    model = original.Small()

    def check(source: Source) -> Check:
        return Check(source, model, original.Small, TOKENS, CALL, also=(original.initialise,))

    good = [check(source()), check(source(("import torch\n", "import torch\nimport sympy\n"), requirements=("sympy",)))]
    return verify_many([*good, *(check(source(*changes)) for changes, _ in BROKEN.values())], timeout=6)


def test_the_same_is_the_same(results):
    for result in results[:2]:
        assert isinstance(result, Report), result
    assert results[0].compared["train gradient"] == 11
    assert str(results[0]).startswith("8 structure, 13 initial values")


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_refused(name, results):
    result = results[2 + list(BROKEN).index(name)]
    assert isinstance(result, CodegenError), f"{name} was accepted: {result}"
    assert len(result.problems) == 1
    assert BROKEN[name][1] in str(result)


def test_failures_have_a_line(results):
    problem = results[2 + list(BROKEN).index("an undefined name")].problems[0]
    assert (problem.file, problem.text.strip()) == ("model.py", "missing()")


def test_the_model_is_left_as_it_was(original):
    model = original.Small()
    model.layers[0].eval()
    model(TOKENS[0]).sum().backward()
    before = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    numbers = torch.get_rng_state()
    verify(source(), model, original.Small)  # inputs are guessed
    assert torch.equal(numbers, torch.get_rng_state())
    assert [module.training for module in model.layers] == [False, True]
    assert all(torch.equal(parameter.grad, before[name]) for name, parameter in model.named_parameters())


def test_models_that_cannot_be_compared(original):
    model = original.Small()
    for change, words in (
        (lambda: verify(source(), torch.nn.LSTM(3, 4)), "what LSTM, which begins with LSTM, takes cannot be guessed"),
        (
            lambda: verify(source(), model, inputs=(torch.zeros(2, 3),)),
            "the model itself fails in forward in eval mode",
        ),
        (lambda: verify(source(), torch.nn.LazyLinear(3)), "has no shape yet"),
        (lambda: verify(source(), model, inputs=3), "inputs are int"),
        (lambda: verify(source(), model.to("meta"), inputs=TOKENS), "13 such tensors, is on the meta device"),
    ):
        with pytest.raises(CodegenError, match=words):
            change()


def test_a_model_that_is_not_repeatable_is_told_apart(original):
    class Restless(original.Small):
        def forward(self, tokens):
            return super().forward(tokens) + next(counter)

    counter = iter(range(1000))
    with pytest.raises(CodegenError, match="the model itself is not repeatable: eval output"):
        verify(source(), Restless(), inputs=TOKENS)
