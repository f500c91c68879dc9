"""The first run, and the tutorial: a small language model of Python's own source. Nothing is downloaded.

python -m forgather_dsl run experiments/first.py:First
"""

from forgather_dsl import DDP, FSDP2, AdamW, Experiment, Llama, Muon, Pipeline, patch


class First(Experiment):
    """A Llama of 1.9 M parameters on Python's standard library: about a minute on two CPU cores."""

    seq_len = 128  # tokens
    batch_size = 8  # sequences per optimizer step,
    microbatch_size = 2  # of which two at a time
    steps = 300
    model = patch(Llama, dim=128, num_layers=4, num_heads=4)
    optimizer = Muon(lr=0.02, adamw_lr=0.01)


class FirstPP2(First):
    """The same on two processes, a pipeline of two stages: the same losses, bit for bit."""

    parallel = Pipeline(stages=2)


class FirstDDP2(First):
    """The same on two processes that share the batch: the same losses, but for the rounding of one sum."""

    parallel = DDP(replicas=2)


class FirstFSDP2(First):
    """The same with half of every matrix on each process; AdamW, as Muon needs whole ones."""

    parallel = FSDP2(shards=2)
    optimizer = AdamW(lr=3e-3)
