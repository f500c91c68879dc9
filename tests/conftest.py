"""For all tests: no colours, a fixed width, and a cache and home of the session, so that nobody's own files are touched."""

from __future__ import annotations

import os

import pytest

from forgather_dsl.parallel.launch import ENVIRONMENT

# two processes of tests share the cores, so threads that wait had better sleep
for name, value in {
    **ENVIRONMENT,
    "GOMP_SPINCOUNT": "0",
}.items():  # before torch is imported: this process has to compute as the ranks do
    os.environ.setdefault(name, value)


@pytest.fixture(autouse=True, scope="session")
def quiet_and_alone(tmp_path_factory: pytest.TempPathFactory):
    """The environment, which child processes inherit. A cache chosen by the caller stays, so that it can be reused."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_COLOR", "1")
        patch.setenv("COLUMNS", "200")
        patch.setenv("FORGATHER_NO_MODEL", "1")  # a run of a second would take five; tests that want one say so
        patch.setenv("FORGATHER_CACHE", os.environ.get("FORGATHER_CACHE") or str(tmp_path_factory.mktemp("cache")))
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "FORGATHER_RUN"):
            patch.delenv(name, raising=False)
        yield
