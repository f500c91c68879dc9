"""Finetuning all weights of a model on conversations: a Hugging Face folder in, and after `export` one out.

`TinyChat` runs anywhere in a minute, nothing is downloaded. The others begin with a folder that lies beside: fetch it with
`hf download Qwen/Qwen3-8B --local-dir Qwen3-8B` (Llama and Mistral ask for an account), and write your own data into a
subclass. docs/finetuning.md goes through it.
"""

from forgather_dsl import (
    BF16,
    AdamW,
    Chat,
    Experiment,
    FullRecompute,
    GroupedQueryAttention,
    HFTokenizer,
    Llama,
    Llama3Rope,
    Muon,
    OneFOneB,
    Pipeline,
    RMSNorm,
    Rope,
    Sampling,
    StdlibChat,
    WarmupCosine,
    patch,
)


class TinyChat(Experiment):
    """A Llama of 1.9 M parameters learns to answer questions about Python's library: a minute on two CPU cores."""

    data = StdlibChat()
    seq_len = 256
    batch_size = 8
    microbatch_size = 2
    epochs = 1
    sampling = Sampling(prompt="What does the function textwrap.fill do?", temperature=0.0)
    model = patch(Llama, dim=128, num_layers=4, num_heads=4)
    optimizer = AdamW(lr=3e-3)


class Finetuning(Experiment, abstract=True):
    """What the models have in common. The learning rate is Tulu 3's for 8 B (https://arxiv.org/abs/2411.15124, 5e-6, 2 epochs,
    128 sequences of 4,096, warm-up of 3 %), whose sequences are longer in part; no weight decay there either.
    """

    data = Chat(dataset="HuggingFaceH4/no_robots", held_out=0.02)  # 9,500 conversations written by people
    seq_len = 4096
    batch_size = 32
    microbatch_size = 1
    epochs = 2
    precision = BF16()  # weights of two bytes over exact fp32 masters, so that a small learning rate is not rounded away
    optimizer = Muon(lr=5e-4, adamw_lr=5e-6, weight_decay=0.0)
    lr_schedule = WarmupCosine(warmup=0.03, final=0.0)
    recompute = FullRecompute()
    sampling = Sampling(prompt="Why is the sky blue?", max_new_tokens=128)
    eval_every = 50
    save_every = 100
