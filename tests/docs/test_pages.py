"""The README and every page of docs/: blocks in a form that is run, marks counted, links that lead somewhere, commands that exist.

Walking through the pages is in test_page_walks.py.
"""

from __future__ import annotations

import ast
import collections
import re
import shlex

import pytest
import typer
from doc_pages import DATA, PAGES, ROOT, anchors, blocks, indented_commands, inline_commands, links, page_name, steps

from forgather_dsl.cli.app import app

MARKS: dict[str, dict[str, int]] = {  # what is shown and not run: every kind, how often; a new one is for the review
    "README.md": {"the package index": 2},
    "CONTRIBUTING.md": {"the package index": 8, "a GPU": 1, ".venv": 2},
    "docs/evaluation.md": {"lm-eval and its data sets": 1},
    "docs/AGENTS.md": {"the package index": 4},
    "docs/tutorial.md": {"the package index": 1, "four GPUs and the Hugging Face hub": 1},
    "docs/howto/from_axolotl.md": {"four GPUs and the Hugging Face hub": 1},
    "docs/howto/from_forgather.md": {"the Hugging Face hub": 1},
    "docs/remote_code.md": {"the package index": 1, "the folder DIR": 1},
}
INDEXES = [ROOT / "README.md", ROOT / "docs" / "README.md", ROOT / "docs" / "reference" / "README.md"]
VERBS = typer.main.get_command(app)
RUNNER = re.compile(r"^(?:\w+=\S+ )*(?:python -m forgather_dsl|forgather_dsl)(?: |$)")


@pytest.fixture(params=PAGES, ids=page_name)
def page(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Name and text."""
    return page_name(request.param), request.param.read_text(encoding="utf-8")


def test_blocks_are_in_a_form_that_is_run(page):
    steps(page[1])  # raises
    for block in blocks(page[1]):
        if block.language == "json":
            import json

            for line in block.text.splitlines() if not block.text.startswith("[") else [block.text]:
                json.loads(line)


def test_python_compiles(page):
    for step in steps(page[1]):
        if step.kind in ("file", "piece") and not step.needs:
            ast.parse(step.text, page[0])


def test_what_is_not_run_is_marked_and_counted(page):
    found = collections.Counter(step.needs for step in steps(page[1]) if step.needs)
    assert dict(found) == MARKS.get(page[0], {}), f"{page[0]}: write the marks into MARKS of tests/docs/test_pages.py"


def test_no_marks_are_counted_for_pages_that_are_gone():
    assert set(MARKS) <= {page_name(page) for page in PAGES}


def test_links_lead_somewhere(page):
    name, text = page
    here = (ROOT / name).parent
    for link in links(text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (here / path).resolve() if path else ROOT / name
        assert target.exists(), f"{name}: {link}"
        assert ROOT.resolve() in target.parents, f"{name}: {link} leads out of the repository"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{name}: {link}"


def test_every_page_is_reached_from_the_index():
    """Directly; pages of the reference from its own index."""
    linked = {(index.parent / link).resolve() for index in INDEXES for link in links(index.read_text(encoding="utf-8"))}
    assert [page_name(page) for page in PAGES if (ROOT / "docs") in page.parents and page.resolve() not in linked] == []


def test_commands_are_known_with_all_their_options(page):
    for step in steps(page[1]):
        if step.kind == "command" and step.exits != 2:
            for command in re.split(r"&&|;|\|", step.text.partition(" # ")[0]):
                _parse(f"line {step.line}", command.strip())
    for command in inline_commands(page[1]):
        if "[" not in command:  # how a verb is called, not a call
            _parse("in a sentence", re.sub(r"\.\.\.| VERB", "", command))


def test_no_command_hides_in_an_indented_block(page):
    assert indented_commands(page[1]) == []


def _parse(where: str, command: str) -> None:
    found = RUNNER.match(command)
    words = shlex.split(command[found.end() :]) if found else []
    if words and words[0] != "--help" and "--help" not in words:
        assert words[0] in VERBS.commands, f"{where}: no verb {words[0]!r}"  # type: ignore[attr-defined]
        verb = VERBS.commands[words[0]]  # type: ignore[attr-defined]
        words = [word for word in words[1:] if not re.match(r"\d?>|&$", word)]
        try:
            verb.make_context(verb.name, words)
        except Exception as error:  # of click, or of the click that recent versions of typer hold
            told = getattr(error, "format_message", None)
            if told is None:
                raise
            pytest.fail(f"{where}: {command}: {told()}")


def test_make_targets_are_there(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^\$ make ([a-z-]+)|`make ([a-z-]+)`", page[1], re.MULTILINE):
        assert re.search(rf"^{target[0] or target[1]}:", makefile, re.MULTILINE), target


def test_tests_that_are_named_are_there(page):
    named = set(re.findall(r"`(test_\w+)`", page[1]))
    if named:
        tests = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
        assert {name for name in named if f"def {name}(" not in tests} == set()


def test_files_that_are_named_are_there(page):
    for file in re.findall(r"`((?:tests|benchmarks|experiments|forgather_dsl|docs|codegen)/[\w/.-]+\.\w+)`", page[1]):
        assert (ROOT / file).exists(), f"{page[0]}: {file}"


def test_the_forms_that_are_told_apart():
    text = (
        "```console\n$ a  # needs: a GPU\n$ b \\\n> c\nout\n```\n```python\n# file: x.py\n```\n```python\nx = 1\n```\n"
    )
    assert [(s.kind, s.needs, s.shown) for s in steps(text)] == [
        ("command", "a GPU", ""),
        ("command", "", "out\n"),
        ("file", "", ""),
        ("piece", "", ""),
    ]
    for bad in ("```sh\nls\n```\n", "```\n$ ls\n```\n", "```\npython x.py\n```\n", "```console\nls\n```\n"):
        with pytest.raises(ValueError, match="line"):
            steps(bad)
    assert "json" in DATA
