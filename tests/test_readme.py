"""The README is executed: its files are written and its commands run, in order, as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"```(python|console)\n(.*?)```", re.DOTALL)


def steps() -> list[tuple[str, str]]:
    """(file name, text) for python blocks, ("$", command) for each console line, in the order of the page."""
    out = []
    for kind, text in BLOCK.findall(README.read_text(encoding="utf-8")):
        if kind == "python":
            name = re.match(r"# file: (\S+)\n", text)
            assert name, f"a python block of the README does not say its file:\n{text}"
            out.append((name[1], text))
        else:
            out += [("$", line.removeprefix("$ ")) for line in text.splitlines()]
    return out


def test_every_command_of_the_readme_does_what_it_says(tmp_path: Path) -> None:
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    env |= {"FORGATHER_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(README.parent)}
    ran = 0
    for name, text in steps():
        if name != "$":
            (tmp_path / name).write_text(text)
            continue
        expected = re.search(r"# exits (\d+)", text)
        wanted = "" if text.endswith("--out local") else "1"  # a model for the run whose model the reader looks at
        settings = env | {"FORGATHER_NO_MODEL": wanted}
        done = subprocess.run(text, shell=True, cwd=tmp_path, env=settings, capture_output=True, text=True, timeout=900)
        assert done.returncode == int(expected[1] if expected else 0), f"$ {text}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr
        ran += 1
    assert ran > 10
    assert _losses(tmp_path / "local") == _losses(tmp_path / "local-pp2")


def _losses(run: Path) -> list[str]:
    found = re.findall(r'"loss": ([^,]+)', (run / "metrics.jsonl").read_text())
    assert found
    return found


def test_the_readme_names_every_make_target_it_uses() -> None:
    makefile = (README.parent / "Makefile").read_text()
    for target in re.findall(r"^make ([a-z-]+)", README.read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_tests_that_a_page_names_are_there() -> None:
    page = (README.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    tests = "".join(file.read_text(encoding="utf-8") for file in (README.parent / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", page))
    assert len(named) >= 20
    assert {name for name in named if f"def {name}(" not in tests} == set()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (README.parent / page).read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (README.parent / link).exists(), link
