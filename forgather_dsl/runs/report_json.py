"""A report as JSON: settings that differ, results of groups and runs, verdicts, warnings. Numbers in full; null where there is none."""

from __future__ import annotations

from typing import Any

from .record import Record, step_of
from .report import Report, finite, value_at_end
from .results import bubbles, memory, metric
from .student import LEVEL, Mean
from .verdicts import Outcome, Verdict

__all__ = ["to_dict"]


def to_dict(found: Report) -> dict[str, Any]:
    """The report. `metric` is what verdicts are about; intervals are of `level` and not corrected, `p_corrected` is."""
    about = found.metric
    return {
        "metric": {
            "name": about.name,
            "title": about.title,
            "unit": about.unit,
            "lower_is_better": about.lower_is_better,
        },
        "step": found.step,
        "level": LEVEL,
        "base": found.groups[found.base].name,
        "differing": {path: {g.name: g.settings.get(path) for g in found.groups} for path in found.differing},
        "groups": [_group(found, index) for index in found.order],
        "runs": [_run(found, group.name, record) for group in found.groups for record in group.records],
        "warnings": found.warnings,
    }


def _group(found: Report, index: int) -> dict[str, Any]:
    group, verdict = found.groups[index], found.verdicts[index]
    outcomes = {name: found.outcomes_of(metric(name))[index] for name in found.names}
    return {
        "name": group.name,
        "target": group.records[0].target,
        "runs": [record.path for record in group.records],
        "changes": [{"path": c.path, "base": c.base, "value": c.value} for c in found.changes[index]],
        "results": {name: _outcome(out) for name, out in outcomes.items() if out.mean or out.diverged},
        "difference": None if verdict is None else _verdict(verdict),
    }


def _outcome(out: Outcome) -> dict[str, Any]:
    mean = out.mean or Mean(float("nan"), None, None, 0)
    return {
        "mean": finite(mean.value),
        "deviation": mean.deviation,
        "half_interval": mean.half,
        "seeds": out.by_seed,
        "diverged": out.diverged,
    }


def _verdict(verdict: Verdict) -> dict[str, Any]:
    change = verdict.difference
    told = {
        "verdict": verdict.kind,
        "text": verdict.text,
        "value": None,
        "low": None,
        "high": None,
        "p": None,
        "test": None,
    }
    if change is not None:
        told |= {"value": change.value, "low": change.low, "high": change.high, "p": change.p, "test": change.test}
    return told | {"p_corrected": verdict.corrected}


def _run(found: Report, group: str, record: Record) -> dict[str, Any]:
    results = {name: value_at_end(record, name, found.step) for name in found.names}
    return {
        "path": record.path,
        "group": group,
        "seed": record.seed,
        "state": record.state,
        "step": step_of(record.records[-1]) if record.records else None,
        "tokens": record.clock[-1][1] if record.clock else None,
        "device": record.start.get("device"),
        "data_fingerprint": record.start.get("data_fingerprint"),
        "results": results,
        "peak_memory_bytes": memory(record),
        "bubbles": bubbles(record),
    }
