"""The verb `doctor`: this machine, and with `--links` what its ranks compute and what passes between them."""

from __future__ import annotations

from typing import Annotated

import typer

from ..errors import UserError
from .arguments import Debug, Json, end
from .output import print_json, print_table


def doctor_verb(
    links: Annotated[
        bool, typer.Option("--links", help="measure what ranks compute, and the links between them, to plan with")
    ] = False,
    ranks: Annotated[
        int | None, typer.Option("--ranks", metavar="N", help="with --links; default: one a GPU, or two")
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="with --links: also write it there, for plan --measured")
    ] = None,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Examine this machine: versions, GPUs, memory, disk, and a ping between two ranks. Or the links between ranks."""

    def work() -> None:
        if links:
            from .links import measured, print_links

            found = measured(ranks, out)
            if found is not None:  # rank 0 of torchrun's speaks for all
                print_json(found) if json else print_links(found, out)
            return
        if ranks is not None or out is not None:
            raise UserError(
                f"{'--ranks' if ranks is not None else '--out'} goes with --links; write doctor --links too"
            )
        from .doctor import as_rows, examine

        found = examine()
        print_json(found) if json else print_table(("", ""), as_rows(found))

    end(work, debug)
