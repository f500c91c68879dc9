"""Experiments of these tests are files of their own; other tests of the same process may have loaded some by the same names."""

from __future__ import annotations

import sys

import pytest


@pytest.fixture(autouse=True)
def not_of_other_tests() -> None:
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("mine", "own_parts") and "pytest-of-" in str(getattr(module, "__file__", "")):
            del sys.modules[name]
