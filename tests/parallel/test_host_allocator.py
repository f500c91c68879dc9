"""Memory that is freed and wanted again stays with the process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

CYCLES = """
import ctypes, resource, sys
from forgather_dsl.parallel.host_allocator import keep_freed_memory
kept = keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
size, number = 256 << 10, 200
faults = []
for cycle in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [libc.malloc(size) for _ in range(number)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        libc.free(block)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
pages = size * number // resource.getpagesize()
print(kept, faults[-1] / pages, "torch" in sys.modules)
"""


def cycles(**env: str) -> list[str]:
    """Whether memory is kept, and the share of its pages that are new the fourth time."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUN"))}
    done = subprocess.run(
        [sys.executable, "-c", CYCLES], cwd=ROOT, env=inherited | env, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
def test_pages_that_were_freed_are_not_faulted_in_again():
    kept, share, torch = cycles()
    assert (kept, torch) == ("True", "False")
    assert float(share) < 0.05


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is glibc's")
@pytest.mark.parametrize(
    "env", [{"MALLOC_TRIM_THRESHOLD_": "1000000"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=1000000"}]
)
def test_what_the_user_has_settled_stays(env: dict[str, str]):
    kept, share, _ = cycles(**env)
    assert kept == "False"
    assert float(share) > 0.5
