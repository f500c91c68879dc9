"""Finetuning on conversations. docs/finetuning.md goes through it, from a Hugging Face folder to one.

python -m forgather_dsl run experiments/finetune.py:TinyChat
"""

from forgather_dsl import AdamW, Experiment, Llama, Sampling, StdlibChat, patch


class TinyChat(Experiment):
    """A Llama of 1.9 M parameters learns to answer questions about Python's library: a minute, nothing downloaded."""

    data = StdlibChat()
    seq_len = 256
    batch_size = 8
    microbatch_size = 2
    epochs = 1
    sampling = Sampling(prompt="What does the function textwrap.fill do?", temperature=0.0)
    model = patch(Llama, dim=128, num_layers=4, num_heads=4)
    optimizer = AdamW(lr=3e-3)
