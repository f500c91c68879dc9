"""`compare`: two finished models on the same held-out text, token by token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from .arguments import Debug, Json, complete_target, end
from .output import print_json, print_table, say
from .source_text import named_sources

if TYPE_CHECKING:
    from ..runs.token_comparison import Comparison, Place

HELP = """Compare two finished models token by token: runs, checkpoints or Hugging Face folders.

Both read the same held-out text; the difference in bits per byte comes with an interval, then where and on which words they
differ most. Models may have different tokenizers: what is compared are the smallest pieces into which both divide the text."""


def compare_verb(
    first: Annotated[str, typer.Argument(metavar="A", autocompletion=complete_target)],
    second: Annotated[str, typer.Argument(metavar="B", autocompletion=complete_target)],
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", metavar="NAME=SOURCE", help="the text; default: what both hold out, if that is the same"
        ),
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, help="places and words of each side")] = 8,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="write the text, coloured, as a page")
    ] = None,
    trust: Annotated[bool, typer.Option("--trust", help="import the user's own code that a run names")] = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Compare two finished models token by token."""

    def work() -> None:
        from .subjects import subject

        sets = named_sources(data or [])
        if len(sets) > 1:
            raise UserError("compare takes one text; write --data once")
        one, other = subject(first, trust), subject(second, trust)
        from ..runs.compare import compare_models, shared_text

        text = next(iter(sets.values())) if sets else shared_text(one, other)
        found = compare_models(one, other, text, top)
        if html is not None:
            from ..runs.token_page import write_page

            write_page(html, found, first, second)
        names = {"first": first, "second": second, "text": next(iter(sets), "eval_data")}
        print_json({**names, **found.comparison.as_data()}) if json else _print(found.comparison, first, second)
        if html is not None and not json:
            say(f"page    {html}")

    end(work, debug)


compare_verb.__doc__ = HELP


def _print(found: Comparison, first: str, second: str) -> None:
    a, b = found.bits_per_byte
    say(f"A  {first}  {a:.4f} bits/byte, pays less on {100 * found.better[0]:.0f} % of pieces")
    say(f"B  {second}  {b:.4f} bits/byte, pays less on {100 * found.better[1]:.0f} %")
    say(verdict(found))
    for side, (better, other) in enumerate((("A", "B"), ("B", "A"))):
        print()
        print_table(
            (f"where {better} is better", "", "", f"bits of {better}", f"of {other}"),
            [_row(place, side) for place in found.places[side]],
        )
        print()
        print_table(
            (f"words that {better} knows better", "times", "bits saved"),
            [
                (_visible(word.text) or END, f"{word.times:,}", f"{abs(word.difference):,.1f}")
                for word in found.words[side]
            ],
        )


END = "(end of document)"


def verdict(found: Comparison) -> str:
    """The difference in words, and how sure it is."""
    sign = "more" if found.difference > 0 else "fewer"
    text = f"B needs {abs(found.difference):.4f} bits per byte {sign} than A"
    if found.half is None:
        return f"{text}; the text is too short to say how sure that is"
    low, high = found.difference - found.half, found.difference + found.half
    sure = "no difference is shown: the interval holds 0" if low <= 0 <= high else "the interval leaves out 0"
    percent = f"{100 * found.level:.0f} %"
    return f"{text}, {percent} interval {low:+.4f} to {high:+.4f} over {found.units}; {sure}"


def _row(place: Place, side: int) -> tuple[str, ...]:
    bits: Any = place.bits if side == 0 else place.bits[::-1]
    return (
        _visible(place.before)[-32:],
        f"[{_visible(place.text) or END}]",
        _visible(place.after)[:24],
        f"{bits[0]:.2f}",
        f"{bits[1]:.2f}",
    )


def _visible(text: str) -> str:
    return text.replace("\n", "⏎").replace("\t", "→")
