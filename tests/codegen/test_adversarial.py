"""Sources that a tracer may stumble over: each comes out right or is refused with words that help, and none crashes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from adversarial_cases import Case, forget, read
from torch import nn

from codegen import Check, CodegenError, Report, Source, trace, verify_many
from codegen.inputs import described

pytestmark = pytest.mark.slow

CASES = read()


@dataclass
class Outcome:
    """What became of a case."""

    source: Source | None = None
    refusal: CodegenError | None = None
    crash: str = ""
    proof: Report | None = None


def traced(case: Case, root: Path) -> tuple[Outcome, Check | None]:
    """Imports, builds and traces; and what there is to verify."""
    module = case.imported(root)

    def build() -> Any:
        return case.build(module)

    torch.manual_seed(0)
    scope = {**module.__dict__, "m": build()}
    exec(case.keys.get("after", ""), scope)
    try:
        source = trace(scope["m"], build, **case.options())
    except CodegenError as error:
        return Outcome(refusal=error), None
    except Exception as error:  # what this test is about
        return Outcome(crash=f"{type(error).__name__}: {error}"), None
    calls = {"call": case.keys["calls"]} if "calls" in case.keys else {}
    inputs = [described(words) for words in case.inputs()]
    return Outcome(source), Check(source, scope["m"], build, inputs, calls)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("adversarial")
    found: dict[str, Outcome] = {}
    checks: dict[str, Check] = {}
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.syspath_prepend(root)
        tf32 = torch.backends.cuda.matmul.allow_tf32
        for case in CASES:
            outcome, check = traced(case, root)
            found[case.identifier] = outcome
            if check is not None:
                checks[case.identifier] = check
        for name, result in zip(checks, verify_many(checks.values(), timeout=900)):
            if isinstance(result, Report):
                found[name].proof = result
            else:
                found[name].refusal = result
        torch.backends.cuda.matmul.allow_tf32 = tf32
        yield found
        for case in CASES:
            forget(case)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.identifier)
def test_right_or_refused(case: Case, outcomes: dict[str, Outcome]):
    outcome = outcomes[case.identifier]
    assert not outcome.crash
    if outcome.refusal is not None:
        assert case.refusal is not None, f"must come out right: {outcome.refusal}"
        assert re.search(case.refusal, str(outcome.refusal), re.IGNORECASE), str(outcome.refusal)
        assert "bug in codegen" not in str(outcome.refusal)
        if case.marked():
            assert case.marked() in [problem.line for problem in outcome.refusal.problems], str(outcome.refusal)
        return
    assert outcome.source is not None
    assert outcome.proof is not None
    assert case.may_pass, outcome.source.text
    body = outcome.source.text.split('"""', 2)[-1].split("def load_model")[0]
    assert [text for text in case.texts("has") if text not in body] == []
    assert [text for text in case.texts("lacks") if text in body] == []


def test_there_are_enough_cases(outcomes: dict[str, Outcome]):
    assert len({case.identifier for case in CASES}) == len(CASES) >= 200
    assert sum(outcome.proof is not None for outcome in outcomes.values()) >= 130
    assert sum(case.refusal is not None and not case.may_pass for case in CASES) >= 30


def test_what_comes_out_is_clean(outcomes: dict[str, Outcome], tmp_path: Path):
    """Ruff finds nothing in the output that it does not find in the source."""
    for case in CASES:
        outcome = outcomes[case.identifier]
        if outcome.source is not None and outcome.proof is not None:
            (tmp_path / case.identifier).mkdir()
            (tmp_path / case.identifier / "emitted.py").write_text(outcome.source.text, encoding="utf-8")
            (tmp_path / case.identifier / "source.py").write_text("".join(case.files.values()), encoding="utf-8")
    select = ["--isolated", "--no-cache", "--select", "E,F,I,B,UP", "--ignore", "E501,B905", "--line-length", "120"]
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "json", *select, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    excused = {(case.identifier, case.keys["lint"]) for case in CASES if "lint" in case.keys}
    findings = [(Path(one["filename"]), one["code"], one["message"]) for one in json.loads(done.stdout)]
    excused |= {(path.parent.name, code) for path, code, _ in findings if path.name == "source.py"}
    new = {
        f"{path.parent.name}: {code} {text}" for path, code, text in findings if (path.parent.name, code) not in excused
    }
    assert new == set()
    assert findings  # of the sources: it did run


@pytest.mark.exhaustive
def test_the_output_is_its_own_output(outcomes: dict[str, Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Traced again from the emitted file, the text is the same."""
    monkeypatch.syspath_prepend(tmp_path)
    changed = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in CASES:
            outcome = outcomes[case.identifier]
            if outcome.source is None or outcome.proof is None or "library" in outcome.source.text:
                continue
            name = f"again_{case.identifier}"
            (tmp_path / f"{name}.py").write_text(outcome.source.text, newline="")
            module = __import__(name)
            again = _again(module, outcome.source, case)
            if again != outcome.source.text:
                changed[case.identifier] = again
            del sys.modules[name]
    assert changed == {}


def _again(module: Any, source: Source, case: Case) -> str:
    build = getattr(module, source.build)
    model: nn.Module = build()
    try:
        return trace(model, build, **case.options()).text
    except CodegenError as error:
        return f"refused: {error}"
