"""What a finished run leaves in `model/`: the model as one file that needs torch alone, its weights, its tokenizer.

Written from the newest checkpoint, whatever the ranks that trained it. A model whose weights take more than `MOST_BYTES` is
written without them, as they are in the checkpoint already: `export RUN --to torch` writes both. A model without source
that stands alone is no failure of the run: a line says why there is none.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator

import torch

from ..dsl import ConfigError
from ..errors import UserError, printable
from ..specs import Experiment
from ..train.trainer import TRUSTED
from .folder import SINGLE, new_folder, require_room
from .outgoing import Outgoing, open_outgoing
from .standalone import PROVEN, TEXT, write_standalone, write_text

FOLDER = "model"
MOST_BYTES = 2**30


def write_model(path: str, experiment: Experiment | None = None, trust: bool = False) -> str:
    """Write `model/` of a run directory, and say in a line what came of it. Raises nothing but what stops a process.

    Args:
        experiment: what was trained; None: what the run directory says, with `trust` with the user's own code.
    """
    where = os.path.join(path, FOLDER)
    try:
        weights = open_outgoing(path, experiment, trust=trust)
        if _is_of(where, weights):
            return ""
        with torch.random.fork_rng(devices=[]):
            return f"model   {where}: {_written(where, weights)}"
    except (UserError, ConfigError) as error:
        return f"no {where}: {error}"
    except Exception as error:  # training is done, and what it has learnt is saved
        return f"no {where}: {type(error).__name__}: {error} (this should not happen; `codegen {path} --out DIR --debug` shows where)"


def _written(where: str, weights: Outgoing) -> str:
    whole = weights.size <= MOST_BYTES
    require_room(where, weights.size if whole else 0)
    with _replaced(where) as partial:
        lines = write_standalone(weights, partial) if whole else write_text(weights.experiment, partial)
        with contextlib.suppress(UserError):  # a tokenizer that cannot be had any more
            from .words import tokenizer_of, write_tokenizer

            write_tokenizer(tokenizer_of(weights.experiment), partial, check=False)
    more = f", {SINGLE}" if whole else "; export --to torch writes the weights beside it"
    by = "" if lines[0].startswith(PROVEN) else ", as seen of a small twin with the same code"
    return f"{TEXT}{more}: the same with torch alone, bit for bit{by}"


def _is_of(where: str, weights: Outgoing) -> bool:
    """Whether it was written after the checkpoint: a run that is asked to go on when it is done has nothing to add."""
    try:
        return os.path.getmtime(os.path.join(where, TEXT)) >= os.path.getmtime(weights.saved.path)
    except OSError:
        return False


@contextlib.contextmanager
def _replaced(where: str) -> Iterator[str]:
    """A folder to write into that takes the place of an earlier one when it is complete."""
    fresh, old = f"{where}.new", f"{where}.old"
    for left in (fresh, old):
        shutil.rmtree(left, ignore_errors=True)
    with new_folder(fresh) as partial:
        yield partial
    if os.path.isdir(where):
        os.rename(where, old)
    os.rename(fresh, where)
    shutil.rmtree(old, ignore_errors=True)


if __name__ == "__main__":
    if said := write_model(sys.argv[1], trust=os.environ.get(TRUSTED) == "1"):
        print(printable(said), flush=True)
