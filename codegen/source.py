"""What a trace gives: the text of one file, and what was decided on the way."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Decision:
    """A choice that the emitted file no longer has."""

    file: str  # as the header shows it: the module's dotted name
    line: int
    expression: str  # as it stood in the source
    value: str  # what it is in this configuration


@dataclass(frozen=True)
class Source:
    """The text of a file that needs torch alone, and how to build the model from it."""

    text: str
    root: str  # the name of the model's class in the text
    build: str = "build_model"  # the function in the text that builds the model, without arguments
    load: str = "load_model"  # the function in the text that also loads weights: (path, device) -> model
    also: dict[str, str] = field(default_factory=dict)  # names in the text of further functions that were asked for
    decisions: tuple[Decision, ...] = ()
    requirements: tuple[str, ...] = ()  # packages beside torch that `allow` keeps as imports
    tied: dict[str, str] = field(default_factory=dict)  # names of the state dict that share the tensor of another name
