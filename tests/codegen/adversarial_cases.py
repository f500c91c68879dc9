"""Reads the cases of adversarial/*.txt: a source that a tracer may stumble over, and what must become of it.

A case is a line `=== name`, then `key: value` lines, then files. Keys: `expect` (`ok`, `refused: WORDS`, or
`ok, or refused: WORDS`; words are a pattern, and a line marked `# HERE` must be where), `build`, `after` (done to the
model `m`), `inputs` (sets divided by `;`), `calls`, `has` and `lacks` (texts divided by `|`), `options` of the tracer,
`lint` (rules that the output breaks though the source does not), `write` (how the file is stored). `files`: it is a package.
"""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).parent / "adversarial"
_HEAD = "import torch\nfrom torch import nn\n"  # what every file begins with


@dataclass
class Case:
    """One source, how its model is built and tried, and what must become of it."""

    name: str
    topic: str
    keys: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def identifier(self) -> str:
        """As a module may be called."""
        return "case_" + re.sub(r"\W+", "_", f"{self.topic}_{self.name}")

    @property
    def may_pass(self) -> bool:
        return self.keys.get("expect", "ok").startswith("ok")

    @property
    def refusal(self) -> str | None:
        """A pattern for the words of a refusal; None when there must be none."""
        match = re.search(r"refused: (.*)", self.keys.get("expect", "ok"))
        return match and match[1]

    def texts(self, key: str) -> list[str]:
        return [text.strip() for text in self.keys.get(key, "").split("|") if text.strip()]

    def inputs(self) -> list[list[str]]:
        return [part.split() for part in self.keys.get("inputs", "float[3,4]").split(";")]

    def options(self) -> dict[str, Any]:
        return eval(f"dict({self.keys.get('options', '')})")

    def marked(self) -> int:
        """The line of the main file that is marked, 0 when none is."""
        lines = self.files["main.py"].split("\n")
        return next((number for number, line in enumerate(lines, 1) if "# HERE" in line), 0)

    def imported(self, root: Path) -> ModuleType:
        """Writes the files and imports the main one; `root` is on the path."""
        if "files" in self.keys:
            folder = root / self.identifier
            folder.mkdir()
            (folder / "__init__.py").touch()
            for name, text in self.files.items():
                (folder / name).write_bytes(_stored(text, ""))
            return importlib.import_module(f"{self.identifier}.main")
        (root / f"{self.identifier}.py").write_bytes(_stored(self.files["main.py"], self.keys.get("write", "")))
        return importlib.import_module(self.identifier)

    def build(self, module: ModuleType) -> Any:
        """A new model, as `build` says."""
        return eval(self.keys.get("build", "M()"), module.__dict__ | _extra())


def _extra() -> dict[str, Any]:
    return {name: importlib.import_module(name) for name in ("functools", "dataclasses", "types")}


def _stored(text: str, how: str) -> bytes:
    if how == "tabs":
        text = re.sub(r"(?m)^(    )+", lambda match: "\t" * (len(match[0]) // 4), text)
    elif how == "crlf":
        text = text.replace("\n", "\r\n")
    elif how == "feed":
        text = text.replace("\nclass ", "\n\f\nclass ").replace("\n    def forward", "\n\f\n    def forward")
    elif how == "bare":
        text = text.rstrip("\n")
    elif how == "latin-1":
        return f"# -*- coding: latin-1 -*-\n{text}".encode("latin-1")
    return text.encode("utf-8-sig" if how == "bom" else "utf-8")


def read() -> list[Case]:
    """All cases, in the order of the files."""
    return [case for path in sorted(FOLDER.glob("*.txt")) for case in _of_file(path)]


def _of_file(path: Path) -> list[Case]:
    cases = []
    for block in re.split(r"^=== ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        head, *parts = re.split(r"^--- (\S+)\n", block, flags=re.MULTILINE)
        name, *lines = head.strip().split("\n")
        keys = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines if line.strip()}
        files = {file: _HEAD + text.rstrip("\n") + "\n" for file, text in zip(parts[::2], parts[1::2])}
        files = {
            file: text if "import torch as T" not in text else text.removeprefix(_HEAD) for file, text in files.items()
        }
        for file, text in files.items():
            if "\nfrom __future__" in text:  # which must come first
                future = re.search(r"^from __future__.*\n", text, re.MULTILINE)
                assert future is not None
                files[file] = future[0] + text.replace(future[0], "", 1)
        cases.append(Case(name, path.stem, keys, files))
    return cases


def forget(case: Case) -> None:
    """Takes the modules of a case out of this process."""
    for name in [name for name in sys.modules if name.partition(".")[0] == case.identifier]:
        del sys.modules[name]
