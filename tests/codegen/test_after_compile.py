"""A process that has compiled a model still traces it: what torch.compile leaves in a module is not of its source."""

from __future__ import annotations

import broken_graph
import pytest
import torch

import codegen


def test_a_model_that_was_compiled_before_is_traced_to_the_same_text():
    before = codegen.trace(broken_graph.Broken(4))
    torch._dynamo.reset()
    compiled = torch.compile(broken_graph.Broken(4), backend="eager")
    compiled(torch.ones(2, 4))
    assert any(name.startswith("__resume_at_") for name in vars(broken_graph)) or any(
        name.startswith("torch_dynamo_resume_in_") for name in vars(broken_graph)
    )
    assert codegen.trace(broken_graph.Broken(4)).text == before.text


def test_a_function_around_compiled_code_is_passed_over(monkeypatch: pytest.MonkeyPatch):
    """inductor leaves functions whose `__wrapped__` is an object of its own that has no code."""
    before = codegen.trace(broken_graph.Broken(4))

    def around() -> None:
        raise AssertionError("nobody calls it")

    around.__wrapped__ = object()  # type: ignore[attr-defined]
    monkeypatch.setattr(broken_graph, "around", around, raising=False)
    assert codegen.trace(broken_graph.Broken(4)).text == before.text
