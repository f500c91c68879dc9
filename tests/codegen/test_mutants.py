"""A tracer that is broken on purpose is refused by verification, however it is broken; and every folded fact matters."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable

import pytest
from mutation_model import Mutated

import codegen.decorators
import codegen.evaluate
import codegen.facts
import codegen.footer
import codegen.layout
import codegen.record
import codegen.reify
import codegen.stores
import codegen.tracer
from codegen import Check, CodegenError, Report, Source, trace, verify_many

Break = Callable[[pytest.MonkeyPatch], None]


def text(old: str, new: str) -> Break:
    """A tracer whose edits turn one text into another."""

    def broken(patch: pytest.MonkeyPatch) -> None:
        tidy = codegen.layout.tidy
        patch.setattr(codegen.layout, "tidy", lambda given: tidy(given).replace(old, new))

    return broken


def wrong_numbers(patch: pytest.MonkeyPatch) -> None:
    owner = codegen.reify.Reifier
    reified = owner.reified
    patch.setattr(owner, "reified", lambda self, value: reified(self, value + 1 if value == 2.5 else value))


def wrong_names(patch: pytest.MonkeyPatch) -> None:
    named = codegen.layout.named

    def confused(*args):
        names = named(*args)
        return {key: "shifted" if name == "scaled" else name for key, name in names.items()}

    patch.setattr(codegen.layout, "named", confused)


def a_method_less(patch: pytest.MonkeyPatch) -> None:
    owner = codegen.decorators.Decorators
    keeps = owner.keeps
    patch.setattr(owner, "keeps", lambda self, cls, node: node.name != "_mixed" and keeps(self, cls, node))


def an_attribute_less(patch: pytest.MonkeyPatch) -> None:
    owner = codegen.stores.Stores
    dead = owner._dead_store
    patch.setattr(owner, "_dead_store", lambda self, to, value: ast.unparse(to) == "self.eps" or dead(self, to, value))


def another_observation(patch: pytest.MonkeyPatch) -> None:
    observed = codegen.record.arguments_of
    patch.setattr(codegen.record, "arguments_of", lambda frame: {**observed(frame), "act": "relu"})


def training_for_ever(patch: pytest.MonkeyPatch) -> None:
    options = codegen.facts.Options
    patch.setattr(codegen.tracer, "Options", lambda keep, dynamic, opaque: options(keep, (), opaque))


def ties_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(codegen.tracer, "_tied", lambda model: {})


def another_format(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(codegen.footer._DTYPES, "F32", "int32")


MUTANTS: dict[str, Break] = {
    "wrong numbers": wrong_numbers,
    "one name for two functions": wrong_names,
    "a method dropped": a_method_less,
    "an attribute dropped": an_attribute_less,
    "another observation of an argument": another_observation,
    "training taken for a constant": training_for_ever,
    "ties forgotten": ties_forgotten,
    "weights read in another format": another_format,
    "a cast dropped": text("x.double()", "x"),
    "a default swapped": text("1e-5", "1e-6"),
    "two constructions swapped": text(
        "        self.up = nn.Linear(dim, 2 * dim, bias=bias)\n        self.down = nn.Linear(2 * dim, dim, bias=bias)\n",
        "        self.down = nn.Linear(2 * dim, dim, bias=bias)\n        self.up = nn.Linear(dim, 2 * dim, bias=bias)\n",
    ),
    "a tie dropped": text("self.head.weight = self.embedding.weight", "pass"),
    "a statement dropped": text("        x = scaled(x, 0.5)\n", ""),
    "a parameter's default for the argument": text("dropout=0.2)", "dropout=0.1)"),
    "an operator": text("x + y if", "x - y if"),
    "a key of a name": text("self.blocks", "self.layers"),
    "rounding": text("logits / self.cap", "logits * (1 / self.cap)"),
}


def build() -> Mutated:
    """With an argument that is no default."""
    return Mutated(cap=2.5)


@pytest.fixture(scope="module")
def right() -> Source:
    return trace(build(), build)


def attempt(broken: Break) -> Source | CodegenError:
    with pytest.MonkeyPatch.context() as patch:
        broken(patch)
        try:
            return trace(build(), build)
        except CodegenError as error:
            return error


def flip(expression: str) -> Break:
    """A tracer that takes one of its decisions the other way round, in all rounds."""

    def broken(patch: pytest.MonkeyPatch) -> None:
        decide = codegen.evaluate.Evaluator.decide

        def flipped(self, test):
            found = decide(self, test)
            if found and found[1] and ast.unparse(test) == expression:
                return not found[0], found[1]
            return found

        patch.setattr(codegen.evaluate.Evaluator, "decide", flipped)

    return broken


FLIPS = ["self.centred", "double", "self.post == 'scale'", "cap is None", "tied", "self.cap is not None"]


@pytest.fixture(scope="module")
def results(right):
    """Of all mutants: what was traced, and what verification says."""
    names = [*MUTANTS, *FLIPS]
    found = dict(zip(names, map(attempt, itertools.chain(MUTANTS.values(), map(flip, FLIPS)))))
    traced = {name: source for name, source in found.items() if isinstance(source, Source)}
    model = build()
    proofs = verify_many((Check(source, model, build) for source in [right, *traced.values()]), timeout=120)
    assert isinstance(proofs[0], Report)  # what is not broken passes
    return found, dict(zip(traced, proofs[1:]))


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_refused(name, right, results):
    found, proofs = results
    assert isinstance(found[name], CodegenError) or found[name].text != right.text, "the mutation had no effect"
    if name in proofs:
        assert isinstance(proofs[name], CodegenError), found[name].text


@pytest.mark.parametrize("name", FLIPS)
def test_every_folded_fact_matters(name, right, results):
    """Taken the other way round, the text is another one, and verification refuses it."""
    assert name in [decision.expression for decision in right.decisions]
    found, proofs = results
    assert isinstance(found[name], CodegenError) or found[name].text != right.text
    if name in proofs:
        assert isinstance(proofs[name], CodegenError), found[name].text


def test_all_choices_are_flipped(right):
    """But for a look-up in a table, which `another observation` covers."""
    assert {decision.expression for decision in right.decisions} - set(FLIPS) == {"ACTS[act]"}


def test_most_mutants_reach_verification(results):
    assert len(results[1]) >= 15
