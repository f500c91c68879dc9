"""`doctor --links`: ranks that measure their device and one another, on this machine or as torchrun started them.

In: how many ranks, a file. Out: the numbers of `parallel.measuring` and the line of `hardware` that plans with them. torch
runs in the ranks only, unless this process is one.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from typing import Any

from ..errors import UserError
from ..parallel.cluster import adopt_slurm
from ..parallel.launch import launch
from ..plan.hardware import gpus
from ..plan.measured import Links
from .output import print_table, say

MOST_RANKS = 256
GB = 1e9


def measured(ranks: int | None, out: str | None) -> dict[str, Any] | None:
    """What was measured, with `hardware`, written to `out`; None on all ranks of torchrun but the first.

    Raises:
        UserError: fewer than two ranks, another number than torchrun started, a rank failed, `out` cannot be written.
    """
    joined = adopt_slurm() or "RANK" in os.environ
    if out is not None and not os.path.isdir(os.path.dirname(os.path.abspath(out))):
        raise UserError(f"--out {out}: its folder does not exist; write a file in a folder that does")
    world = int(os.environ["WORLD_SIZE"]) if joined else max(2, len(gpus())) if ranks is None else ranks
    if joined and ranks not in (None, world):
        raise UserError(f"--ranks {ranks}: {world} ranks were started already; leave --ranks out")
    if not 2 <= world <= MOST_RANKS:
        raise UserError(f"--ranks {world}: a link has two ends; write 2 to {MOST_RANKS}")
    found = _as_rank() if joined else _launched(world)
    if found is None:
        return None
    links = Links.of(found)
    found["hardware"] = ",".join(
        ["auto", *(f"{name}={value}" for name, value in links.options(links.on_cards).items())]
    )
    if out is not None:
        try:
            with open(out, "w", encoding="utf-8") as file:
                file.write(json.dumps(found, indent=1) + "\n")
        except OSError as error:
            raise UserError(f"--out {out}: {error.strerror}; write a file in a folder that can be written") from error
    return found


def _as_rank() -> dict[str, Any] | None:
    from ..parallel.measuring import measure

    return measure()


def _launched(world: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="forgather-links-") as folder:
        file = os.path.join(folder, "links.json")
        command = [sys.executable, "-m", "forgather_dsl.parallel.measuring", file]
        paths = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONSAFEPATH": "1"}
        if code := launch(command, world, paths):
            raise UserError(f"the ranks ended with exit code {code}; what they said stands above", exit_code=4)
        with open(file, encoding="utf-8") as opened:
            return json.load(opened)


def print_links(found: dict[str, Any], out: str | None) -> None:
    """Tables of devices and links, what a pipeline and what FSDP2 gets, and what to paste."""
    hosts = dict.fromkeys(rank["host"] for rank in found["ranks"])
    say(f"{len(found['ranks'])} ranks on {', '.join(hosts)}, over {found['backend']}; all at work at the same time")
    say("")
    print_table(*_devices(found))
    say("")
    print_table(*_pairs(found))
    say("")
    layer = f"{found['layer_bytes'] / 2**20:.0f} MiB"
    rows = [
        ("every rank with both neighbours, each way", f"{found['neighbours'] / GB:.3g}", "a pipeline's messages"),
        (f"all-gather of {layer}", f"{found['all_gather'] / GB:.3g}", "FSDP2, before each layer"),
        (f"reduce-scatter of {layer}", f"{found['reduce_scatter'] / GB:.3g}", "FSDP2, after each layer's backward"),
        (f"all-reduce of {layer}", f"{found['all_reduce'] / GB:.3g}", "DDP"),
    ]
    print_table(("all ranks at once", "GB/s a rank", "who does that"), rows)
    say("")
    say("to plan and choose with these, in the class body:")
    say(f'    hardware = "{found["hardware"]}"')
    if out is not None:
        say(f"or on the command line: plan TARGET --measured {out}")


def _devices(found: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    cards = found["device"] == "cuda"
    copies = ("to card GB/s", "from card GB/s") if cards else ()
    headers = ("rank", "device", "bf16 TFLOP/s", "fp32 TFLOP/s", "copies GB/s", *copies)
    rows = []
    for number, rank in enumerate(found["ranks"]):
        rates = [f"{rank[name] / 1e12:.3g}" for name in ("products_bf16", "products_fp32")]
        rates += [f"{rank[name] / GB:.3g}" for name in ("copies", *(("to_device", "from_device") if cards else ()))]
        rows.append((str(number), rank["name"], *rates))
    return headers, rows


def _pairs(found: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows = []
    for pair in found["pairs"]:
        lower, upper = pair["ranks"]
        rates = f"{pair['one_way'] / GB:.3g}", f"{pair['both_ways'] / GB:.3g}"
        rows.append((f"{lower} - {upper}", *rates, f"{pair['latency'] * 1e6:.3g}"))
    return ("link", "one way GB/s", "both ways GB/s, each", "latency us"), rows
