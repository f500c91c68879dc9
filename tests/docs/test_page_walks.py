"""Every page is walked through from top to bottom: its files are written, its commands run, what it shows has to come."""

from __future__ import annotations

from pathlib import Path

import pytest
from doc_pages import PAGES, page_name, steps
from doc_walk import _compare, walk

WALKED = [page for page in PAGES if any(not s.needs for s in steps(page.read_text(encoding="utf-8")))]

SLOW = (
    "docs/AGENTS.md",
    "docs/codegen.md",
    "docs/explanation/language.md",
    "docs/explanation/schedules.md",
)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokenizers and tokens, shared by all pages."""
    return tmp_path_factory.mktemp("cache-of-pages")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, id=page_name(p), marks=pytest.mark.slow if page_name(p) in SLOW else pytest.mark.exhaustive)
        for p in WALKED
    ],
)
def test_a_page_does_what_it_says(page: Path, tmp_path: Path, cache: Path) -> None:
    ran = walk(page.read_text(encoding="utf-8"), tmp_path, cache)
    assert ran == sum(s.kind in ("command", "piece") and not s.needs for s in steps(page.read_text(encoding="utf-8")))


def test_output_that_did_not_come_is_seen() -> None:
    (step,) = steps("```console\n$ x\nloss 3.2 after 10 steps\n...\nwrote runs/a\n```\n")
    _compare(step, step.shown, "noise\nloss   4.125  after 300 steps\nmore\nwrote runs/a\n")
    for other in ("wrote runs/a\nloss 1 after 2 steps\n", "loss 4 after 3 steps\nwrote runs/b\n", ""):
        with pytest.raises(AssertionError, match="no line like"):
            _compare(step, step.shown, other)
