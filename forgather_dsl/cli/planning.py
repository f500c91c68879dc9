"""`plan`: what an experiment would need and do on some hardware, told before anything runs. No torch, no GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from .arguments import Debug, Json, Settings, Target, end
from .output import print_json, print_table

if TYPE_CHECKING:
    from ..plan.planner import Plan

GPUS = "4x24GB, 24GB+12GB, 4xRTX4090, 4x24GB,link=12GB/s,latency=30us; default: the experiment's hardware"


def plan_verb(
    target: Target,
    set_: Settings = None,
    gpus: Annotated[str | None, typer.Option("--gpus", metavar="CARDS", help=GPUS)] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Predict memory, time and bubble per rank, compare schedules, and say what to change where it does not fit."""

    def work() -> None:
        from ..plan.contract import to_dict
        from ..plan.planner import plan
        from .targets import find_experiment

        found = plan(find_experiment(target, set_ or []), gpus)
        if json:
            print_json(to_dict(found, target))
            return
        _print(found, to_dict(found, target))

    end(work, debug)


def _print(found: Plan, data: dict[str, Any]) -> None:
    experiment = found.run.experiment
    for note in data["notes"]:
        print(f"note: {note}")
    batch = f"{data['microbatches']} microbatches of {experiment.microbatch_size} x {experiment.seq_len} tokens"
    print(
        f"{data['target']} on {data['gpus']}: {data['schedule']}, {batch}, {data['parameters'] / 1e9:.2f} B parameters"
    )
    print(_verdict(data))
    print(speed(data))
    print()
    print_table(*ranks_table(data))
    if data["comparison"]:
        print()
        print_table(*comparison_table(data))
    if not data["fits"]:
        print()
        _print_advice(data, found)
    print()
    print("assumed: " + "; ".join(assumed(data)))


def _number(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _verdict(data: dict[str, Any]) -> str:
    over = [r for r in data["ranks"] if not r["fits"]]
    if data["fits"]:
        tightest = min(data["ranks"], key=lambda r: r["device_gib"] - r["peak_gib"])
        return f"fits: rank {tightest['rank']} is the tightest, {tightest['peak_gib']:.1f} of {tightest['device_gib']:.1f} GiB"
    told = ", ".join(f"rank {r['rank']} needs {r['peak_gib']:.1f} of {r['device_gib']:.1f} GiB" for r in over)
    return f"does not fit: {told}" if over else "does not fit: the ranks together need more than this host has"


def speed(data: dict[str, Any]) -> str:
    """Step time, tokens per second, MFU, bubble and the least bubble, in a line."""
    if data["tokens_per_second"] is None:
        return "nothing is known of the layers' arithmetic, so times are left out"
    floor = data["floor"]
    return (
        f"{data['tokens_per_second']:,.0f} tokens/s, {data['step_seconds']:.3g} s a step, MFU {data['mfu']:.1%}, bubble "
        f"{data['bubble']:.1%} (the least that any order of these stages can have: {floor['bubble']:.1%}, "
        f"{floor['step_seconds']:.3g} s)"
    )


def ranks_table(data: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows: what each rank holds, GiB by kind at its peak, busy time and bubble."""
    kinds = list(data["ranks"][0]["memory_gib"])
    headers = ("rank", "stages", "GiB", "of", *kinds, "busy s", "bubble")
    rows = []
    for rank in data["ranks"]:
        memory = [f"{rank['memory_gib'][kind]:.2f}" for kind in kinds]
        peak = f"{rank['peak_gib']:.1f}" + ("" if rank["fits"] else " !")
        stages = "; ".join(map(_stage, rank["stages"]))
        timed = (f"{rank['busy_seconds']:.3g}", f"{rank['bubble']:.1%}")
        rows.append((str(rank["rank"]), stages, peak, f"{rank['device_gib']:.1f}", *memory, *timed))
    return headers, rows


def _stage(stage: dict[str, Any]) -> str:
    first, last = stage["first_layer"], stage["first_layer"] + stage["layers"] - 1
    layers = f"layer {first}" if first == last else f"layers {first}-{last}"
    return f"{'embedding, ' * stage['embedding']}{layers}{', head' * stage['head']}"


def comparison_table(data: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headers and rows of the schedules, the fastest that fits first, impossible ones last."""
    rows = []
    for row in sorted(data["comparison"], key=lambda r: (not r["fits"], r["peak_gib"] is None, r["bubble"] or 0.0)):
        mark = "*" if row["schedule"] == data["schedule"] else ""
        if row["bubble"] is None:
            rows.append((mark + row["schedule"], "", "", "", f"not possible: {row['why']}"))
            continue
        rate = "" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:,.0f}"
        fits = "fits" if row["fits"] else "does not fit"
        rows.append((mark + row["schedule"], f"{row['bubble']:.1%}", f"{row['peak_gib']:.1f}", rate, fits))
    return ("schedule (* this one)", "bubble", "peak GiB", "tokens/s", ""), rows


def _print_advice(data: dict[str, Any], found: Plan) -> None:
    if not data["advice"]:
        print("nothing that is known here makes it fit; a smaller model (dim, num_layers, vocab_size) would take less")
        return
    print("to make it fit, write in the class body:")
    for number, lines in enumerate([data["advice"], *data["alternatives"]]):
        if number:
            print("or:")
        for line in lines:
            print(f"    {line}")


def assumed(data: dict[str, Any]) -> list[str]:
    """What the prediction rests on, as phrases."""
    a = data["assumptions"]
    told = [f"{text}" for text in dict.fromkeys(a["cards"])]
    rates = dict.fromkeys(f"{t:.4g} TFLOP/s" for t in a["tflops"])
    bandwidths = dict.fromkeys(f"{b:,.0f} GB/s" for b in a["bandwidth_gb_per_second"])
    told.append(f"{' and '.join(rates)}, {a['flops_sustained']:.0%} of it sustained by matrix products")
    told.append(f"memory {' and '.join(bandwidths)}, {a['bandwidth_sustained']:.0%} of it sustained")
    if len(data["ranks"]) > 1:
        told.append(f"link {a['link_gb_per_second']:.3g} GB/s each way, {a['latency_microseconds']:.3g} us")
    if "seconds_measured_on" in a:
        told.append(f"seconds measured on {a['seconds_measured_on']}")
    if data["left_out"]:
        told.append(f"not counted: {', '.join(data['left_out'])}")
    return told
