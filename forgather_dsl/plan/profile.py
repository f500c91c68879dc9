"""Measured seconds, to plan with instead of modelled ones.

In: JSON data, and the experiment it is used for. Out: `Profile`, or ConfigError that says what does not agree.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..dsl import ConfigError, replace
from ..specs import Experiment, Pipeline
from ..specs.parallel import Searched

__all__ = ["Profile", "measured_with", "own_profile", "read_profile"]

Times = tuple[float, float, float]  # seconds of F, I, W of one microbatch


class Profile(NamedTuple):
    """Seconds of F, I and W (with recomputing, if the run recomputed) of each part, one microbatch; the link, if measured."""

    device: str
    embedding: Times
    layers: tuple[Times, ...]
    head: Times
    link: tuple[float, float] | None  # seconds of latency, bytes per second

    @classmethod
    def of(cls, data: Mapping[str, Any], experiment: Experiment) -> Profile:
        """From `{"device", "seq_len", "microbatch_size", "seconds": {"embedding": {"F", "I", "W"}, "layer": {...} or
        "layers": [{...}, ...], "head": {...}}, optional "link": {"latency", "bytes_per_second"}}`.

        Raises:
            ConfigError: something is missing or no number, or it was measured with another model, length or batch.
        """
        problems: list[str] = []
        for name in ("seq_len", "microbatch_size"):
            if data.get(name) != (ours := getattr(experiment, name)):
                problems.append(f"{name} is {data.get(name)!r} in the profile and {ours} here")
        seconds = data.get("seconds")
        if not isinstance(seconds, Mapping):
            raise ConfigError('profile: no "seconds"; write one with run --profile')
        num_layers = experiment.model.num_layers
        layers = seconds.get("layers", [seconds.get("layer")] * num_layers)
        if not isinstance(layers, list) or len(layers) != num_layers:
            count = len(layers) if isinstance(layers, list) else "no"
            problems.append(f"it has {count} layers, the model {num_layers}")
            layers = []
        embedding, head = (_times(seconds, name, problems) for name in ("embedding", "head"))
        times = tuple(_times({f"layer {i}": layer}, f"layer {i}", problems) for i, layer in enumerate(layers))
        link = _link(data["link"], problems) if data.get("link") is not None else None
        if problems:
            raise ConfigError(
                "profile: "
                + "; ".join(problems)
                + "; measure this experiment with run --profile, or leave the profile out"
            )
        return cls(str(data.get("device", "an unnamed device")), embedding, times, head, link)


def _times(seconds: Mapping[str, Any], name: str, problems: list[str]) -> Times:
    found = seconds.get(name)
    values: list[Any] = [found.get(kind) for kind in "FIW"] if isinstance(found, Mapping) else []
    if not values or not all(_is_number(value) for value in values):
        problems.append(f'{name} needs {{"F": seconds, "I": seconds, "W": seconds}}')
        return 0.0, 0.0, 0.0
    return values[0], values[1], values[2]


def _link(found: Any, problems: list[str]) -> tuple[float, float] | None:
    names = ("latency", "bytes_per_second")
    values: list[Any] = [found.get(name) for name in names] if isinstance(found, Mapping) else [None]
    if not all(_is_number(value) for value in values) or not values[1]:
        problems.append('link needs {"latency": seconds, "bytes_per_second": number}')
        return None
    return values[0], values[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")


def read_profile(path: str | None) -> Mapping[str, Any] | None:
    """What a file of measured times holds, as `Profile.of` takes it; None for no file.

    Raises:
        ConfigError: there is no such file, or it is not JSON.
    """
    if path is None:
        return None
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except OSError as error:
        raise ConfigError(f"profile {path}: {error.strerror}; write one with run --profile") from error
    except ValueError as error:
        raise ConfigError(f"profile {path}: not JSON ({error}); write one with run --profile") from error
    if not isinstance(data, dict):
        raise ConfigError(f"profile {path}: holds no object; write one with run --profile")
    return data


def measured_with(experiment: Experiment, file: str | None) -> Experiment:
    """The experiment with its order searched for the times in `file`; itself for no file, or an order that is not searched."""
    parallel = experiment.parallel
    if file is None or not isinstance(parallel, Pipeline) or not isinstance(parallel.schedule, Searched):
        return experiment
    return replace(experiment, parallel=replace(parallel, schedule=replace(parallel.schedule, profile=file)))


def own_profile(experiment: Experiment) -> Mapping[str, Any] | None:
    """The measured seconds that an experiment's order is searched for, if it names any."""
    schedule = experiment.parallel.schedule if isinstance(experiment.parallel, Pipeline) else None
    return read_profile(schedule.profile) if isinstance(schedule, Searched) else None
