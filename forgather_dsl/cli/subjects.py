"""What `eval` and `compare` take: runs, checkpoints, and folders of Hugging Face."""

from __future__ import annotations

from ..runs.evaluations import Subject, subject_of_run
from ..train.first_weights import FOLDER, kind_of


def subject(path: str, trust: bool) -> Subject:
    """What a path names, as an experiment whose weights are there. Raises UserError."""
    if kind_of(path) != FOLDER:
        return subject_of_run(path, trust=trust)
    from ..interop.opened import experiment_of

    return Subject(path, experiment_of(path), None)
