"""The slow-link benchmark: its formulas, its tables from what is stored, why it is skipped; and, with root, one small cell of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from slow_link import network, page, theory  # noqa: E402
from slow_link.plot import svg  # noqa: E402

STORED = ROOT / "benchmarks" / "slow_link" / "results.json"


def stored() -> list[dict[str, Any]]:
    return json.loads(STORED.read_text())["rows"]


def test_the_rate_makes_the_ratio() -> None:
    setting = theory.Setting()
    assert setting.parameter_bytes == 16_777_216
    ring = theory.Ring.of(setting)
    assert (ring.ddp, ring.fsdp, ring.fsdp_shipped) == (25_165_824, 37_748_736, 50_331_648)
    for rho in theory.RHOS:
        rate = setting.rate(rho)
        assert (rate is None) == (rho == 0)
        if rate is not None:
            assert 8 * ring.fsdp / rate == pytest.approx(rho * setting.seconds)
    assert 3 * setting.share * setting.layers * setting.microbatches / setting.ranks == pytest.approx(setting.seconds)


def test_the_ratio_of_real_cards() -> None:
    """Four 24 GB cards at 80 TFLOP/s, bf16, recomputing, 16,384 tokens: what the table's links are said to be near."""
    for bandwidth, rho in ((12e9, 0.92), (6e9, 1.83), (3e9, 3.66), (1.1e9, 10.0)):
        assert theory.card_rho(4, 80e12, 2, bandwidth, 16_384) == pytest.approx(rho, rel=0.01)


def test_the_bound_and_the_bytes() -> None:
    assert theory.least_seconds(1.0, 1e6, 4e6) == 2.0
    assert theory.least_seconds(3.0, 1e6, 4e6) == 3.0
    assert theory.least_seconds(1.0, 1e9, None) == 1.0
    assert theory.within(101.9, 100)
    assert not theory.within(97.9, 100)


def rows(ours: float, sent: float = 30e6) -> list[dict[str, Any]]:
    made = {"rho": 3.66, "rate": 100e6, "computing": [1.0], "expected": [sent], "payload": [sent], "sent": [sent]}
    return [{**made, "mode": "FSDP2 tuned", "seconds": [3.0]}, {**made, "mode": "ZeroBubble", "seconds": [ours]}]


def test_a_missed_target_and_wrong_bytes_are_told() -> None:
    line = page.lines(rows(0.8))[0]
    assert line.bounds == {"FSDP, perfect overlap": 2.4}  # 30 MB at 100 Mb/s; computing hides behind it
    assert line.over("FSDP, perfect overlap") == pytest.approx(3.0)
    assert page.missed(rows(0.8)) == []
    assert page.missed(rows(0.9)) == ["rho 3.66: 2.67x of FSDP with perfect overlap, the target is 2.9x"]
    bad = rows(0.8)
    bad[1]["payload"] = [31e6]
    assert page.wrong_bytes(rows(0.8)) == []
    assert page.wrong_bytes(bad) == ["rho 3.66, ZeroBubble, rank 0: 31000000 bytes instead of 30000000"]


def test_what_is_stored_meets_the_targets_and_is_what_the_readme_shows() -> None:
    found = stored()
    assert {row["rho"] for row in found} == set(theory.RHOS)
    assert page.missed(found) == []
    assert page.wrong_bytes(found) == []
    assert page.short_table(found) in (ROOT / "README.md").read_text(encoding="utf-8")
    losing = page.lines(found)[0]
    assert losing.rho == 0
    assert losing.over("FSDP, perfect overlap") < 1  # type: ignore[operator]  # the corner where pipelines lose is in it


def test_the_plot_is_what_is_stored() -> None:
    text = svg(stored())
    assert text == (ROOT / "docs" / "slow_link.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    assert "our best pipeline" in text


def test_headers_are_taken_off_what_is_counted() -> None:
    before = network.Counted(1000, 3)
    assert network.Counted(1000 + 9000, 5).since(before) == (9000, 2)
    assert network.Counted(9000, 2).payload == 9000 - 2 * 66


def test_why_it_is_skipped_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network.os, "geteuid", lambda: 1000)
    assert network.missing() in ("making network namespaces needs root", "network namespaces are Linux's")
    monkeypatch.setattr(network.sys, "platform", "darwin")
    assert network.missing() == "network namespaces are Linux's"


def test_a_part_of_it_does_not_replace_what_is_stored() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "slow_link"), "--write", "--rhos", "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--write is for all links and modes" in done.stderr


@pytest.mark.slow
def test_a_small_cell_is_measured() -> None:
    """Steps of a fifth of a second: FSDP is bound by its link, and ours is not; bytes are checked by the command itself."""
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "slow_link"),
        "--rounds",
        "1",
        "--seconds",
        "0.2",
        "--rhos",
        "10",
    ]
    done = subprocess.run(
        [*command, "--modes", "FSDP2 tuned", "DDP", "1F1B", "ZeroBubble"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert "bytes instead of" not in done.stderr, done.stderr
    assert done.returncode in (0, 1), done.stderr  # 1: on a busy machine steps this short miss the target
    assert "| FSDP, perfect overlap | 2.0" in done.stdout, done.stdout + done.stderr
