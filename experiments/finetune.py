"""x"""

from forgather_dsl import Experiment, StdlibChat, Llama, patch, AdamW


class TinyChat(Experiment):
    """A Llama of 2 M parameters that answers questions about Python's library, from nothing: it runs anywhere, offline."""

    data = StdlibChat()
    seq_len = 256
    batch_size = 16
    microbatch_size = 4
    epochs = 2
    model = patch(Llama, dim=128, num_layers=4, num_heads=4)
    optimizer = AdamW(lr=3e-3)
