"""typer commands that start at once: recent versions import pydantic (0.2 s) to find that the text on the command line is text.

In: a command's parameters. Out: the same parameters; text and flags are taken as they are, numbers and mistakes go typer's way.
"""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand, TyperGroup


class QuickCommand(TyperCommand):
    """One verb."""

    def get_params(self, ctx: Any) -> Any:
        """The parameters, `--help` included."""
        return [_quick(parameter) for parameter in super().get_params(ctx)]


class QuickGroup(TyperGroup):
    """All verbs."""

    def get_params(self, ctx: Any) -> Any:
        """The parameters, `--help` included."""
        return [_quick(parameter) for parameter in super().get_params(ctx)]


def _quick(parameter: Any) -> Any:
    kind = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
    if kind is None or "process_value" in vars(parameter):  # an older typer, which has no pydantic; or done already
        return parameter
    slow, callback = parameter.process_value, parameter.callback

    def process_value(ctx: Any, value: Any) -> Any:
        if kind == list[str] and not isinstance(value, str):
            value = tuple(value or ())
        elif not ((value is None and not parameter.required) or (kind in (str, bool) and isinstance(value, kind))):
            return slow(ctx, value)
        return callback(ctx, parameter, value) if callback is not None else value

    parameter.process_value = process_value
    return parameter
