"""Run directories as training leaves them, written by hand: a second for a hundred of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SETTINGS = {
    "steps": "100",
    "seed": "0",
    "optimizer": "AdamW",
    "optimizer.lr": "0.001",
    "tokenizer": "Bytes",
    "log_every": "10",
}
START = {
    "data_fingerprint": "d",
    "eval_fingerprint": "e",
    "gzip_bits_per_byte": 2.0,
    "eval_bytes": 99,
    "device": "cpu, 1 threads",
}


def made(
    root: Path,
    name: str,
    seed: int = 0,
    loss: float | None = 3.0,
    *,
    settings: dict[str, str] | None = None,
    start: dict[str, Any] | None = None,
    steps: int = 100,
    state: str | None = "finished",
    sample: str = "words",
    records: tuple[dict[str, Any], ...] = (),
    ranks: int = 1,
) -> Path:
    """A run of class `name` that ended, at `steps` of 100, with held-out loss `loss`."""
    folder = root / f"{name}-{seed}"
    folder.mkdir(parents=True)
    told = {**SETTINGS, "seed": str(seed), **(settings or {})}
    (folder / "config.json").write_text("{}")
    (folder / "snapshot.txt").write_text("".join(f"{path} = {value}\n" for path, value in told.items()))
    environment = {"target": f"lab.py:{name}", "processor": "x", "cores": 2, "versions": {"torch": "2.13.0"}}
    (folder / "environment.json").write_text(json.dumps(environment))
    lines: list[dict[str, Any]] = [
        {"step": 0, "num_parameters": 1000, "steps": 100, "progress": 0.0, **START, **(start or {})}
    ]
    for step in range(10, steps + 1, 10):
        lines.append(
            {
                "step": step,
                "loss": 5.0 - step / 100,
                "lr": 1e-3,
                "grad_norm": 1.0,
                "tokens": 64 * step,
                "tokens_per_second": 640.0,
                "step_seconds": 0.1,
                "mfu": None,
                "peak_memory_bytes": [2**30 + rank for rank in range(ranks)],
                "progress": step / 100,
            }
        )
        if ranks > 1:
            lines[-1] |= {"bubble": 0.25, "bubbles": [0.2 + 0.1 * rank for rank in range(ranks)]}
        if loss is not None and step % 50 == 0:
            value = loss + (100 - step) / 50
            lines.append({"step": step, "eval_loss": value, "eval_bits_per_byte": value / 2})
    lines += [*records, {"step": steps, "sample": sample}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if state is not None:
        (folder / "control").mkdir()
        beat = {
            "state": state,
            "pid": 1,
            "host": "h",
            "process_started": None,
            "written": 0.0,
            "moved": 0.0,
            "message": None,
        }
        beat |= {"step": steps, "steps": 100, "loss": None, "tokens": None, "tokens_per_second": None}
        (folder / "control" / "heartbeat.json").write_text(json.dumps(beat))
    return folder


def of_seeds(root: Path, name: str, losses: list[float], settings: dict[str, str] | None = None, **more: Any) -> None:
    """Runs of seeds 0, 1, ... with these losses."""
    for seed, loss in enumerate(losses):
        made(root, name, seed, loss, settings=settings, **more)
