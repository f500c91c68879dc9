"""A plan for people: headline, verdict, tables of ranks and schedules, and what is assumed, from its JSON."""

from __future__ import annotations

from typing import Any

__all__ = ["assumed", "break_even", "comparison_table", "exact_table", "headline", "ranks_table", "speed"]
__all__ += ["strategies_table", "verdict"]

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def headline(data: dict[str, Any]) -> str:
    """What is planned, where, and how it is cut into microbatches."""
    batch = f"{data['microbatches']} microbatches of {data['microbatch_size']} x {data['seq_len']} tokens"
    return f"{data['target']} on {data['gpus']}: {data['schedule']}, {batch}, {_number(data['parameters'])} parameters"


def _number(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def verdict(data: dict[str, Any]) -> str:
    """Whether it fits, with the numbers of the ranks that decide."""
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


def ranks_table(data: dict[str, Any]) -> Table:
    """Headers and rows: what each rank holds, GiB by kind at its peak, busy time and bubble."""
    kinds = list(data["ranks"][0]["memory_gib"])
    on_host = any(rank["host_gib"] for rank in data["ranks"])
    headers = ("rank", "stages", "GiB", "of", *kinds, *["on the host"] * on_host, "busy s", "bubble")
    rows = []
    for rank in data["ranks"]:
        memory = [f"{rank['memory_gib'][kind]:.2f}" for kind in kinds]
        peak = f"{rank['peak_gib']:.1f}" + ("" if rank["fits"] else " !")
        stages = "; ".join(map(_stage, rank["stages"])) + ", a shard of the head" * rank["head_shard"]
        timed = (f"{rank['busy_seconds']:.3g}", f"{rank['bubble']:.1%}")
        memory += [f"{rank['host_gib']:.2f}"] * on_host
        rows.append((str(rank["rank"]), stages, peak, f"{rank['device_gib']:.1f}", *memory, *timed))
    return headers, rows


def _stage(stage: dict[str, Any]) -> str:
    first, last = stage["first_layer"], stage["first_layer"] + stage["layers"] - 1
    layers = f"layer {first}" if first == last else f"layers {first}-{last}"
    again = "" if stage["recompute"] == "none" else f" ({stage['recompute'].replace('_', ' ')})"
    return f"{'embedding, ' * stage['embedding']}{layers}{again}{', head' * stage['head']}"


def comparison_table(data: dict[str, Any]) -> Table:
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


def strategies_table(data: dict[str, Any]) -> Table:
    """Headers and rows of the strategies, the fastest that fits first; `none .. perfect` is how its sending overlaps."""
    rows = []
    for row in data["strategies"]:
        name = f"{'*' if row['this'] else ''}{', '.join(line.removeprefix('parallel = ') for line in row['lines'])}"
        if row["peak_gib"] is None:
            rows.append((name, "", "", "", "", "", "", row["verdict"]))
            continue
        low, high = row["tokens_per_second_none"], row["tokens_per_second_perfect"]
        span = "" if low is None or high - low < 0.005 * high else f"{low:,.0f} .. {high:,.0f}"
        rate = "" if row["tokens_per_second"] is None else f"{row['tokens_per_second']:,.0f}"
        compute = "" if row["compute_seconds"] is None else f"{row['compute_seconds']:.3g}"
        sent = f"{row['bytes'] / 1e9:.3g}", f"{row['communication_seconds']:.3g}"
        rows.append((name, f"{row['peak_gib']:.1f}", rate, span, compute, *sent, row["verdict"]))
    headers = (
        "strategy (* this one)",
        "peak GiB",
        "tokens/s",
        "none .. perfect",
        "compute s",
        "GB sent",
        "sending s",
        "",
    )
    return headers, rows


def break_even(data: dict[str, Any]) -> list[str]:
    """Where the best pipeline and the best `FSDP2` are as fast, in sentences; none where they were not both planned."""
    even = data["break_even"]
    if even is None:
        return []
    sharded, piped = (
        f"{even[name]}{'' if even[f'{name}_fits'] else ' (which does not fit)'}" for name in ("sharded", "pipeline")
    )
    rho, factor = f"{even['rho']:.2f}", f"{even['bubble_factor']:.2f}"
    told = f"{sharded} sends for {rho} of the time that it computes; {piped} takes {factor} of that time"
    link, tokens = even["link_gb_per_second"], even["tokens_per_pass"]
    if even["link_gb_per_second_perfect"] is None:
        return [f"{told}: no link makes the first as fast"]
    perfect, none = even["link_gb_per_second_perfect"], even["link_gb_per_second_none"]
    if even["pipeline_wins"]:
        wins = "the pipeline wins, however well that is hidden"
    elif link >= none:
        wins = "the pipeline loses, even if none of that were hidden"
    else:
        ahead = "the pipeline loses" if even["sharded_faster_by_plan"] else "the pipeline wins"
        wins = f"with {even['hidden']:.0%} of that hidden, as planned, {ahead}"
    at = "this link" if even["link_said"] else "the assumed link (doctor --links measures it)"
    return [
        f"{told}: {wins}",
        f"with {tokens:,} tokens a pass the first is as fast from {perfect:.3g} GB/s on if all that it sends is hidden, from "
        f"{none:.3g} GB/s if nothing is; at {link:.3g} GB/s, {at}, from {even['tokens_per_pass_perfect']:,.0f} tokens a pass on",
    ]


def assumed(data: dict[str, Any]) -> list[str]:
    """What the prediction rests on, as phrases."""
    a = data["assumptions"]
    told = [f"{text}" for text in dict.fromkeys(a["cards"])]
    told.append(_rates(a, "tflops", "products_tflops_measured", "TFLOP/s", "", "products"))
    told.append(_rates(a, "bandwidth_gb_per_second", "copies_gb_per_second_measured", "GB/s", "memory ", "copies"))
    if len(data["ranks"]) > 1:
        told.append(f"link {a['link_gb_per_second']:.3g} GB/s each way, {a['latency_microseconds']:.3g} us")
    if "gather_gb_per_second_measured" in a:
        told.append(f"collectives over all ranks {a['gather_gb_per_second_measured']:.3g} GB/s each way, as measured")
    if "host_memory_gb_per_second" in a:
        rates = f"{a['card_to_host_gb_per_second']:.3g} GB/s each way", f"{a['host_memory_gb_per_second']:.3g} GB/s"
        told.append(f"between a card and the host {rates[0]}, of the host's memory {rates[1]} for all ranks")
    if "seconds_measured_on" in a:
        told.append(f"seconds measured on {a['seconds_measured_on']}")
    if data["strategies"]:
        told.append(
            "collectives are rings at the speed of the link while all ranks send, without peer-to-peer what the host passes on; "
            "FSDP2 gathers its layers for every microbatch, one ahead of what is computed"
        )
    if data["left_out"]:
        told.append(f"not counted: {', '.join(data['left_out'])}")
    return told


def _rates(a: dict[str, Any], peak: str, measured: str, unit: str, of: str, what: str) -> str:
    """A peak and the share of it that counts, or what was measured in its place."""

    def told(values: list[float]) -> str:
        return " and ".join(dict.fromkeys(f"{value:,.4g} {unit}" for value in values))

    if measured in a:
        return f"{what} reach {told(a[measured])}, as measured"
    if what == "products":
        return f"{told(a[peak])}, {a['flops_sustained']:.0%} of it sustained by matrix products"
    return f"{of}{told(a[peak])}, {a['bandwidth_sustained']:.0%} of it sustained"


def exact_table(data: dict[str, Any]) -> Table:
    """What each rank's real code holds on fake tensors, beside the formulas; both without what a process takes."""
    rows = []
    for rank in data["ranks"]:
        planned = rank["peak_gib"] - rank["memory_gib"]["overhead"]
        ratio = planned / rank["exact_peak_gib"]
        rows.append((str(rank["rank"]), f"{planned:.2f}", f"{rank['exact_peak_gib']:.2f}", f"{ratio - 1:+.1%}"))
    return ("rank", "planned GiB", "exact GiB", "off by"), rows
