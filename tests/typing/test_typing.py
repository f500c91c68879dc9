"""Static typing is a feature: pyright accepts the right programs, and rejects every marked line of the wrong ones and no other."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


@pytest.fixture(scope="module")
def diagnostics() -> dict[str, list[dict[str, Any]]]:
    """What pyright reports for the programs of this folder, by file name."""
    beside = Path(sys.executable).parent / "pyright"
    pyright = str(beside) if beside.exists() else shutil.which("pyright")
    if pyright is None:
        pytest.skip("pyright is not installed: pip install 'pyright[nodejs]'")
    command = [
        pyright,
        "--outputjson",
        "--pythonpath",
        sys.executable,
        str(FOLDER / "right.py"),
        str(FOLDER / "wrong.py"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        pytest.skip(f"pyright does not run here: {done.stderr.strip() or done.stdout.strip()}")
    assert report["summary"]["filesAnalyzed"] >= 2
    found: dict[str, list[dict[str, Any]]] = {"right.py": [], "wrong.py": []}
    for item in report["generalDiagnostics"]:
        if item["severity"] == "error":
            found[Path(item["file"]).name].append(item)
    return found


def test_right_programs_are_accepted(diagnostics):
    """Edge 18: frozen_default stays out of dataclass_transform, for with it overrides are mis-typed; we freeze at run time."""
    assert [shown(item) for item in diagnostics["right.py"]] == []
    assert "frozen_default=False" in (ROOT / "forgather_dsl/dsl/lazy.py").read_text()


def test_wrong_programs_are_rejected_at_the_marked_lines_and_only_there(diagnostics):
    """Edge 19: a visible __getattr__ or __setattr__ on Lazy would make a checker accept every attribute."""
    expected = {}
    for number, line in enumerate((FOLDER / "wrong.py").read_text().splitlines(), 1):
        if mark := re.search(r"# error: (.*)", line):
            expected[number] = mark.group(1)
    assert len(expected) > 25
    found: dict[int, str] = {}
    for item in diagnostics["wrong.py"]:
        number = item["range"]["start"]["line"] + 1
        found[number] = found.get(number, "") + item["message"]
    missing = {number: text for number, text in expected.items() if text not in found.get(number, "")}
    assert missing == {}, {number: found.get(number) for number in missing}
    assert sorted(set(found) - set(expected)) == [], {n: found[n] for n in set(found) - set(expected)}


def shown(item: dict[str, Any]) -> str:
    return f"{Path(item['file']).name}:{item['range']['start']['line'] + 1}: {item['message']}"
