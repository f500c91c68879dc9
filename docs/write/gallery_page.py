"""The gallery: every experiment, what it shows, its size; of recipes what the plan says, of small ones what was measured.

In: experiments/*.py, the planner, docs/results.json (`python docs/write record RUN...` adds to it). Out: docs/gallery.md.
"""

from __future__ import annotations

import inspect
import json
import statistics
from pathlib import Path
from typing import Any

from reference_of_code import ROOT, first_sentence

from forgather_dsl.dsl.load import experiments_in, load_file
from forgather_dsl.plan.hardware import GIB, parse
from forgather_dsl.plan.planner import predict
from forgather_dsl.plan.sizes import model_size

RESULTS = ROOT / "docs" / "results.json"
FILES = sorted(
    (file.stem for file in (ROOT / "experiments").glob("*.py")), key=lambda name: (name != "first", "7b" in name, name)
)
HEAD = """<!-- Written by `python docs/write gallery`; do not edit. -->
# Gallery

For whoever looks for something to start from. Every experiment of [experiments/](../experiments), which `python -m forgather_dsl init DIR`
copies. `make gallery` writes this page anew.

**Planned** figures are the planner's: GiB at the peak of each rank and tokens per second for RTX 4090s, as [memory](memory.md) says; none of
them has been run on such cards. **Measured** ones are of finished runs on this package's own corpus (Python's standard library), which
`python docs/write record RUN...` reads off the run's directory; what has no figure has not been measured.
"""


def pages() -> dict[str, str]:
    """The page by its path below docs/."""
    parts = [HEAD]
    for name in FILES:
        file = ROOT / "experiments" / f"{name}.py"
        classes = [cls for cls in experiments_in(load_file(str(file))) if not cls.__abstract__]
        about = first_sentence(file.read_text(encoding="utf-8").split('"""')[1])
        parts.append(f"\n## {name}.py\n\n{about}\n")
        recipes = [cls for cls in classes if cls().hardware != "auto"]
        parts.append(_small([cls for cls in classes if cls not in recipes], name) + _large(recipes))
    return {"gallery.md": "".join(parts) + _machines()}


def results() -> list[dict[str, Any]]:
    """What was recorded, oldest first."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []


def _small(classes: list[Any], file: str) -> str:
    if not classes:
        return ""
    lines = ["", "| experiment | what it shows | parameters | steps | bits per byte | seeds | gzip -9 | minutes |"]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for cls in classes:
        found = [r for r in results() if r["target"] == f"experiments/{file}.py:{cls.__name__}"]
        cells = [f"`{cls.__name__}`", _shows(cls), _parameters(cls()), *_measured(found)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _measured(found: list[dict[str, Any]]) -> list[str]:
    """Steps, mean and spread, seeds, gzip, minutes; of several runs of a seed the last counts."""
    last = list({run["seed"]: run for run in found}.values())
    if not last:
        return [""] * 5
    bits = [run["bits_per_byte"] for run in last]
    spread = f" ± {statistics.stdev(bits):.3f}" if len(bits) > 1 else ""
    gzip = last[-1]["gzip_bits_per_byte"]
    seeds = ", ".join(str(run["seed"]) for run in last)
    seconds = [run["seconds"] for run in last if run["seconds"] is not None]
    minutes = f"{statistics.mean(seconds) / 60:.1f}" if seconds else "not recorded"
    return [
        f"{last[-1]['steps']:,}",
        f"{statistics.mean(bits):.3f}{spread}",
        seeds,
        f"{gzip:.3f}" if gzip else "",
        f"{minutes} ({last[-1]['machine']})",
    ]


def _large(classes: list[Any]) -> str:
    if not classes:
        return ""
    lines = [
        "",
        "| recipe | what it is | parameters | hardware | GiB a rank | host GiB | tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for cls in classes:
        experiment = cls()
        run = predict(experiment, parse(experiment.hardware))
        ranks = ", ".join(f"{rank.total / GIB:.1f}" for rank in run.memory.ranks)
        host = sum(rank.host for rank in run.memory.ranks) / GIB
        rate = f"{round(run.tokens_per_second or 0, -1):,.0f}"
        cells = [f"`{cls.__name__}`", _shows(cls), _parameters(experiment), experiment.hardware, ranks]
        lines.append("| " + " | ".join([*cells, f"{host:.0f}" if host >= 0.5 else "", rate]) + " |")
    return "\n".join(lines) + "\n"


def _shows(cls: Any) -> str:
    text = " ".join(inspect.cleandoc(cls.__doc__ or "").partition("Plan:")[0].split())
    return text.rstrip(". ").replace("|", "\\|")


def _parameters(experiment: Any) -> str:
    count = model_size(experiment.model, experiment.seq_len).parameters
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _machines() -> str:
    rows = {run["machine"]: run for run in results()}
    if not rows:
        return ""
    lines = [f"- {name}: {run['platform']}, Python {run['python']}, torch {run['torch']}" for name, run in rows.items()]
    return "\n## Machines\n\n" + "\n".join(lines) + "\n"


def record(paths: list[str]) -> None:
    """Add what finished runs measured to docs/results.json. Raises ValueError for a run that has not been evaluated at its end."""
    kept = results()
    for path in paths:
        kept.append(_read(Path(path)))
    kept.sort(key=lambda run: (run["target"], run["seed"]))
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    from forgather_dsl import Run

    run = Run(str(path))
    scored = [record for record in run.metrics if record.get("eval_bits_per_byte") is not None]
    trained = [record for record in run.metrics if "loss" in record]
    steps = run.metrics[0]["steps"]
    if not scored or not trained or trained[-1]["step"] != steps or scored[-1]["step"] != steps:
        raise ValueError(f"{path}: not finished, or not evaluated after its last step")
    around = run.environment
    changed = [word for word in around["command"] if "=" in word and not word.startswith("seed=")]
    if changed:
        raise ValueError(f"{path}: another experiment than the gallery's: {', '.join(changed)}")
    return {
        "target": run.target,
        "seed": run.experiment.seed,
        "steps": steps,
        "eval_loss": scored[-1]["eval_loss"],
        "bits_per_byte": scored[-1]["eval_bits_per_byte"],
        "gzip_bits_per_byte": run.metrics[0].get("gzip_bits_per_byte"),
        "data_fingerprint": run.metrics[0].get("data_fingerprint"),
        "seconds": round(sum(_seconds(run.metrics)), 1),
        "machine": f"{around['cores']} CPU cores",
        "platform": around["platform"].partition("-")[0],
        "python": around["python"],
        "torch": around["versions"]["torch"],
        "git": around.get("git"),
    }


def _seconds(metrics: list[dict[str, Any]]) -> list[float]:
    """Of the steps alone: each record has the mean since the one before."""
    steps, last = [], 0
    for record in metrics:
        if "step_seconds" in record:
            steps.append(record["step_seconds"] * (record["step"] - last))
            last = record["step"]
    return steps
