"""`Auto` for an experiment: its parts and costs given to `auto.choose`, the answer kept on disk.

In: an experiment, the user's cuts. Out: `Choice`. Raises ConfigError for cuts or sizes that cannot be.
"""

from __future__ import annotations

from typing import Any

from ..dsl import ConfigError
from ..specs import Experiment, Pipeline
from ..specs.experiment import num_microbatches
from ..specs.parallel import Searched
from . import cached
from .actions import from_csv, to_csv
from .auto import Choice, Layers, choose
from .costs import Costs, without_shards
from .model_costs import model_costs
from .parts import parts_of
from .profile import read_profile

__all__ = ["automatic"]

VERSION = 1  # of what `choose` finds


def automatic(experiment: Experiment, parallel: Pipeline, cuts: Layers | None) -> Choice:
    """What is chosen for `parallel.stages` ranks. `cuts`: layers of each stage, one or two stages on each rank."""
    ranks, microbatches, layers = parallel.stages, num_microbatches(experiment), experiment.model.num_layers
    if ranks > layers:
        raise ConfigError(f"parallel.stages: {ranks} stages for {layers} layers; every stage needs one")
    if cuts is not None and len(cuts) not in (ranks, 2 * ranks):
        raise ConfigError(
            f"parallel.cuts: {len(cuts)} numbers; under Auto give {ranks} (one stage on each rank) or {2 * ranks} (two)"
        )
    assert isinstance(parallel.schedule, Searched)
    profile = read_profile(parallel.schedule.profile)

    def cost_of(placement: tuple[int, ...], layers: Layers) -> Costs:
        return without_shards(model_costs(experiment, placement, layers, profile), len(placement))

    parts = parts_of(experiment, ranks, profile)
    whole = tuple(range(i * layers // ranks, (i + 1) * layers // ranks) for i in range(ranks))

    def find() -> dict[str, Any]:
        chosen = choose(cost_of, parts, ranks, microbatches, cuts)
        return {
            "name": chosen.schedule.name,
            "rows": to_csv(chosen.schedule),
            "layers": [[stage.start, stage.stop] for stage in chosen.layers],
            "reason": chosen.reason,
        }

    inputs = {
        "version": VERSION,
        "parts": parts._asdict(),
        "costs": cost_of(tuple(range(ranks)), whole).__dict__,  # what parts do not tell: links, working memory
        "ranks": ranks,
        "microbatches": microbatches,
        "cuts": None if cuts is None else [len(stage) for stage in cuts],
    }
    found = cached.remembered("auto", inputs, find)
    chosen_layers = tuple(range(start, stop) for start, stop in found["layers"])
    return Choice(from_csv(found["rows"], found["name"]), chosen_layers, found["reason"])
