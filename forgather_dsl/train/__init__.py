"""Training: from an experiment to a run directory. `trainer` and what it imports need no torch; `session` and `loop` do."""
