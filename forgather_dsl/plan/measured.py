"""What `doctor --links` measured, as the options of `hardware` that a plan is made with.

In: its JSON file. Out: `Links`, and a line such as `auto,link=5.9GB/s,latency=35us,gather=4.8GB/s,products=115TFLOP/s`.
Of several links the slowest counts, used both ways by all ranks at once, as a pipeline does; of the collectives what FSDP2's
two all-gathers and one reduce-scatter come to together; of cards the slowest, of a host without cards all ranks together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..dsl import ConfigError
from ..specs import Experiment
from . import hardware as machines
from .memory import State

__all__ = ["Links", "read_links"]

_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_RANK = ("products_bf16", "products_fp32", "copies")
_BETWEEN = ("neighbours", "all_gather", "reduce_scatter", "all_reduce")


class Links(NamedTuple):
    """What was measured, per second; `source` says where and when."""

    on_cards: bool
    link: float  # bytes each way
    latency: float  # seconds
    gather: float  # bytes that a rank sends
    products_bf16: float  # flops of a card, or of the host
    products_fp32: float
    copies: float  # bytes read and written, of a card or of the host
    source: str

    @classmethod
    def of(cls, data: Mapping[str, Any], file: str = "links.json") -> Links:
        """From what `parallel.measuring.measure` returns. Raises ConfigError for anything else, with all that is wrong."""
        ranks, pairs = data.get("ranks"), data.get("pairs")
        wrong = [name for name in _BETWEEN if not _is_rate(data.get(name))]
        for name, rows, wanted in (("ranks", ranks, _RANK), ("pairs", pairs, ("both_ways", "latency"))):
            if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
                wrong.append(name)
            else:
                wrong += [f"{name}: {key}" for key in wanted if not all(_is_rate(row.get(key)) for row in rows)]
        if wrong or not isinstance(ranks, list) or not isinstance(pairs, list):
            raise ConfigError(
                f"--measured {file}: no numbers for {', '.join(wrong)}; write it anew with doctor --links --out {file}"
            )
        on_cards = data.get("device") == "cuda"
        speeds = {name: _of_device([row[name] for row in ranks], _cards(ranks), on_cards) for name in _RANK}
        hosts = len({row.get("host") for row in ranks})
        where = f"{len(ranks)} ranks on {hosts} host{'s' * (hosts > 1)} over {data.get('backend')}, {data.get('when')}"
        return cls(
            on_cards=on_cards,
            link=min(data["neighbours"], *(pair["both_ways"] for pair in pairs)),
            latency=max(pair["latency"] for pair in pairs),
            gather=3 / (2 / data["all_gather"] + 1 / data["reduce_scatter"]),
            **speeds,
            source=f"doctor --links, {where}",
        )

    def options(self, bf16: bool) -> dict[str, str]:
        """Options of `hardware` and their values, for products of one format."""
        products = self.products_bf16 if bf16 else self.products_fp32
        return {
            "link": f"{_told(self.link)}B/s",
            "latency": f"{self.latency * 1e6:.3g}us",
            "gather": f"{_told(self.gather)}B/s",
            "products": f"{_told(products, least=1e9)}FLOP/s",
            "copies": f"{_told(self.copies)}B/s",
        }

    def hardware(self, text: str, experiment: Experiment) -> str:
        """`text` with what was measured for options that it does not have.

        Raises ConfigError where one is of cards and the other of a host without.
        """
        found = machines.parse(text)
        if bool(found.devices) != self.on_cards:
            measured, planned = ("cards", "none") if self.on_cards else ("no cards", "some")
            raise ConfigError(
                f"--measured is of ranks with {measured}, and hardware {text!r} has {planned}; "
                f"measure where it runs with doctor --links, or plan for --gpus auto on the machine that was measured"
            )
        said = {part.partition("=")[0].strip().lower() for part in text.split(",")[1:]}
        bf16 = State(experiment, self.on_cards).number_bytes == 2
        return ",".join([text, *(f"{name}={value}" for name, value in self.options(bf16).items() if name not in said)])


def read_links(file: str) -> Links:
    """What a file of `doctor --links --out` holds. Raises ConfigError: there is none, or it is something else."""
    hint = f"write one with doctor --links --out {file}"
    try:
        with open(file, encoding="utf-8") as opened:
            data = json.load(opened)
    except OSError as error:
        raise ConfigError(f"--measured {file}: {error.strerror}; {hint}") from error
    except ValueError as error:
        raise ConfigError(f"--measured {file}: not JSON ({error}); {hint}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"--measured {file}: holds no object; {hint}")
    return Links.of(data, file)


def _cards(ranks: list[dict[str, Any]]) -> int:
    return len({(row.get("host"), row.get("card")) for row in ranks})


def _of_device(rates: list[float], cards: int, on_cards: bool) -> float:
    """All ranks on a host are one device; cards that ranks share are as fast as these together, else the slowest counts."""
    if not on_cards:
        return sum(rates)
    return min(rates) if cards == len(rates) else sum(rates) / cards


def _told(rate: float, least: float = 1e3) -> str:
    """Three digits and a unit's letter, none below `least`."""
    unit, letter = next((found for found in _UNITS if rate >= found[0]), _UNITS[-1])
    if unit < least:
        unit, letter = next(found for found in _UNITS if found[0] == least)
    return f"{float(f'{rate / unit:.3g}'):g}{letter}"


def _is_rate(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
