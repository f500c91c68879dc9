"""forgather_dsl: experiments as Python classes, pipeline parallelism for consumer GPUs, models that stand alone."""
