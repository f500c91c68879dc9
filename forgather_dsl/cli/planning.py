"""`plan`: what an experiment would need and do on some hardware, told before anything runs. No torch, no GPU."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..runs.members import Item, Member
from .arguments import Debug, Json, Settings, Smoke, Target, end
from .output import on_terminal, print_json, print_table, say

if TYPE_CHECKING:
    from ..plan.planner import Plan

GPUS = "4x24GB, 24GB+12GB, 4xRTX4090, 4x24GB,link=12GB/s,latency=30us; default: the experiment's hardware"


def plan_verb(
    target: Target,
    set_: Settings = None,
    gpus: Annotated[str | None, typer.Option("--gpus", metavar="CARDS", help=GPUS)] = None,
    profile: Annotated[
        str | None, typer.Option("--profile", metavar="FILE", help="measured seconds, in place of modelled ones")
    ] = None,
    measured: Annotated[
        str | None, typer.Option("--measured", metavar="FILE", help="speeds and links that doctor --links measured")
    ] = None,
    draw: Annotated[bool, typer.Option("--draw", help="draw the schedule")] = False,
    svg: Annotated[str | None, typer.Option("--svg", metavar="FILE", help="write it as a picture")] = None,
    html: Annotated[str | None, typer.Option("--html", metavar="FILE", help="write everything as a page")] = None,
    smoke: Smoke = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="run every rank's real code on fake tensors too; takes seconds and torch")
    ] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Predict memory, time and bubble per rank, compare schedules, and say what to change where it does not fit."""

    def work() -> None:
        from ..plan.contract import to_dict
        from .sweeping import members, source_of

        if (source := source_of(target)) is not None:
            _refuse_for_many(target, draw=draw, svg=svg, html=html, exact=exact, smoke=smoke, measured=measured)
            _plan_members(members(target, source, set_ or []), gpus, profile, json)
            return
        found = _planned(target, set_ or [], gpus, profile, measured, smoke)
        data = to_dict(found, target)
        if exact:
            _measure(found, data)
        _write_pictures(found, data, svg, html)
        if json:
            print_json(data)
        else:
            _print(found, data, draw)

    end(work, debug)


def _planned(
    target: str, settings: list[str], gpus: str | None, profile: str | None, measured: str | None, smoke: bool
) -> Plan:
    """The plan, with notes of what was done to the experiment and where numbers are from."""
    from ..dsl import replace as changed
    from ..plan.choosing import chosen
    from ..plan.measured import read_links
    from ..plan.planner import plan
    from ..plan.profile import measured_with, read_profile
    from ..plan.smoke import smoke as shrink
    from .targets import find_experiment

    experiment, told, cards = find_experiment(target, settings), list[str](), gpus
    if smoke:  # what a strategy is chosen for has its own sizes
        experiment, lines = shrink(chosen(changed(experiment, hardware=gpus or experiment.hardware)))
        told = [f"smoke: {line}" for line in lines]
    if measured is not None:
        links = read_links(measured)
        cards = links.hardware(gpus or experiment.hardware, experiment)
        told.append(f"measured by {links.source}")
    found = plan(measured_with(experiment, profile), cards, read_profile(profile), strategies=True)
    return replace(found, notes=(*told, *found.notes))


def _refuse_for_many(target: str, **options: object) -> None:
    given = ", ".join(f"--{name}" for name, value in options.items() if value)
    if given:
        raise UserError(f"{target} names several experiments; {given} takes one, such as {target}:NAME")


def _plan_members(found: Sequence[Member], gpus: str | None, profile: str | None, json: bool) -> None:
    """A plan for each member of a sweep, told in a line."""
    from ..plan import tables
    from ..plan.contract import to_dict
    from ..plan.planner import plan
    from ..plan.profile import measured_with, read_profile
    from ..runs.sweep_check import check_configurations

    check_configurations([Item(member.label, member.experiment) for member in found])
    plans = [plan(measured_with(member.experiment, profile), gpus, read_profile(profile)) for member in found]
    datas = [to_dict(planned, member.label) for planned, member in zip(plans, found)]
    if json:
        print_json(datas)
        return
    peaks = [max(rank["peak_gib"] for rank in data["ranks"]) for data in datas]
    print_table(
        ("experiment", "gpus", "schedule", "fits", "peak GiB", "tokens/s"),
        [
            (member.label, data["gpus"], data["schedule"], "yes" if data["fits"] else "no", f"{peak:.1f}", _rate(data))
            for member, data, peak in zip(found, datas, peaks)
        ],
    )
    say("assumed: " + "; ".join(tables.assumed(datas[0])))


def _rate(data: dict[str, Any]) -> str:
    rate = data["tokens_per_second"]
    return "-" if rate is None else f"{rate:,.0f}"


def _write_pictures(found: Plan, data: dict[str, Any], svg: str | None, html: str | None) -> None:
    from ..plan import page, picture

    for option, file in (("--svg", svg), ("--html", html)):
        if file is None:
            continue
        run = found.run
        if option == "--html":
            text = page.html(found, data)
        else:
            title = f"{data['target']} on {data['gpus']}: {data['schedule']}"
            text = picture.svg(run.layout.schedule, run.simulation, run.costs, title)
        try:
            with open(file, "w", encoding="utf-8") as opened:
                opened.write(text)
        except OSError as error:
            raise UserError(f"{option} {file}: {error.strerror}; write a file in a folder that exists") from error


def _print(found: Plan, data: dict[str, Any], draw: bool) -> None:
    from ..plan import tables
    from ..plan.drawing import timeline_text

    for note in data["notes"]:
        say(f"note: {note}")
    for text in (tables.headline(data), tables.verdict(data), tables.speed(data)):
        say(text)
    if draw:
        width, colored = shutil.get_terminal_size((120, 24)).columns, on_terminal()
        print()
        print(timeline_text(found.run.layout.schedule, found.run.simulation, width, color=colored))
    print()
    print_table(*tables.ranks_table(data))
    if data["comparison"]:
        print()
        print_table(*tables.comparison_table(data))
    if data["strategies"]:
        print()
        print_table(*tables.strategies_table(data))
        for text in tables.break_even(data):
            say(text)
    if not data["fits"]:
        print()
        _print_advice(data)
    if "exact_peak_gib" in data["ranks"][0]:
        print()
        print_table(*tables.exact_table(data))
    print()
    say("assumed: " + "; ".join(tables.assumed(data)))


def _measure(found: Plan, data: dict[str, Any]) -> None:
    """Adds to each rank what its real code holds at the peak, GiB, without what a process takes."""
    experiment = found.run.experiment
    if found.run.layout.schedule.num_shards:
        raise UserError("--exact does not know the shards of a spread head; leave it out, or parallel.spread_head")
    from ..train.exact import exact

    on_gpu = found.run.hardware.devices[0].kind != "host"
    for rank, real in zip(data["ranks"], exact(experiment, on_gpu=on_gpu, progress=_progress)):
        rank["exact_peak_gib"] = real.total / 2**30


def _progress(rank: Any) -> None:
    if on_terminal():
        print(f"rank {rank.rank} run in {rank.seconds:.1f} s", file=sys.stderr)


def _print_advice(data: dict[str, Any]) -> None:
    if not data["advice"]:
        print("nothing that is known here makes it fit; a smaller model (dim, num_layers, vocab_size) would take less")
        return
    print("to make it fit, write in the class body:")
    options = [data["advice"], *data["alternatives"]]
    for number, lines in enumerate(options):
        if number:
            print("or:")
        for line in lines:
            say(f"    {line}")
    names = {name for lines in options for line in lines for name in re.findall(r"\b([A-Z]\w*)\(", line)}
    if names:
        print(f"with: from forgather_dsl import {', '.join(sorted(names))}")
