"""A page walked through as a reader would: files written, commands run in order in one folder, output compared with what is shown.

What is shown has to be among what came, line after line; numbers and the width of gaps may differ, `...` stands for anything.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from doc_pages import ROOT, Step, steps

SECONDS = 900  # for one command, on a machine that does much else
CHECKOUT = ("benchmarks", "tests", "docs", "Makefile", "pyproject.toml")  # what commands at the root of a checkout find
PRELUDE = "from forgather_dsl import *\n"


def walk(text: str, folder: Path, cache: Path) -> int:
    """Do what a page says, in an empty folder. Returns the number of commands and pieces run; raises AssertionError."""
    shutil.copytree(ROOT / "experiments", folder / "experiments", ignore=shutil.ignore_patterns("__pycache__"))
    for name in CHECKOUT:
        (folder / name).symlink_to(ROOT / name)
    env = _environment(cache)
    ran, pieces = 0, PRELUDE
    for step in steps(text):
        if step.kind == "file":
            (folder / step.name).parent.mkdir(parents=True, exist_ok=True)
            (folder / step.name).write_text(step.text, encoding="utf-8")
        elif step.kind == "shows":
            _compare(step, step.text.partition("\n")[2], (folder / step.name).read_text(encoding="utf-8"))
        elif step.needs:
            continue
        elif step.kind == "piece":
            pieces += step.text
            ran += 1
        else:
            _run(step, folder, env | {"FORGATHER_NO_MODEL": "" if _looks_at_model(step.text, text) else "1"})
            ran += 1
    if pieces != PRELUDE:
        (folder / "pieces_of_the_page.py").write_text(pieces, encoding="utf-8")
        _run(Step("command", "python pieces_of_the_page.py", 0), folder, env | {"FORGATHER_NO_MODEL": "1"})
    return ran


def _environment(cache: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    more = {"PATH": path, "PYTHONPATH": str(ROOT), "FORGATHER_CACHE": str(cache), "COLUMNS": "200", "NO_COLOR": "1"}
    return {**os.environ, **more, "PYTHONDONTWRITEBYTECODE": "1"}


def _looks_at_model(command: str, page: str) -> bool:
    """Whether the page opens the `model/` of the run that this command makes; to write it takes seconds."""
    out = re.search(r"--out (\S+)", command)
    return out is not None and f"{out[1]}/model" in page


def _run(step: Step, folder: Path, env: dict[str, str]) -> None:
    shell = ["bash", "-c", step.text]
    done = subprocess.run(shell, cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS, check=False)
    said = f"line {step.line}: $ {step.text}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    assert done.returncode == step.exits, f"exit code {done.returncode}, not {step.exits}; {said}"
    assert "Traceback" not in done.stderr, said
    _compare(step, step.shown, done.stdout + done.stderr)


def _compare(step: Step, shown: str, real: str) -> None:
    lines = iter([_plain(line) for line in real.splitlines()])
    for line in _patterns(shown):
        assert any(re.fullmatch(line, other) for other in lines), (
            f"line {step.line}: after what is shown before it, no line like\n  {line}\ncame from {step.name or step.text}:\n{real[-4000:]}"
        )


def _patterns(shown: str) -> Iterator[str]:
    for line in shown.splitlines():
        plain = _plain(line)
        if plain and plain != "...":
            yield ".*".join(re.escape(part.strip()) for part in plain.split("..."))


def _plain(line: str) -> str:
    """Without numbers and gaps: `1,805 in 0.3 s` becomes `# in # s`."""
    words = re.sub(r"[│─┃━┏┓┗┛┡┩└┘┌┐├┤┬┴┼]", " ", line)
    return re.sub(r"\s+", " ", re.sub(r"(?<![A-Za-z_])[-+]?\d[\d.,]*(e[-+]?\d+)?", "#", words)).strip()
