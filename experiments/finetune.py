"""Finetuning all weights of a model on conversations: a Hugging Face folder in, and after `export` one out.

`TinyChat` runs anywhere in a minute, nothing is downloaded. The others begin with a folder that lies beside: fetch it with
`hf download Qwen/Qwen3-8B --local-dir Qwen3-8B` (Llama and Mistral ask for an account), and write your own data into a
subclass. docs/finetuning.md goes through it.
"""

from forgather_dsl import (
    BF16,
    Adafactor,
    AdamW,
    AutoRecompute,
    Chat,
    ChunkedCrossEntropy,
    Experiment,
    FullRecompute,
    GroupedQueryAttention,
    HFTokenizer,
    InBackward,
    Llama,
    Llama3Rope,
    OneFOneB,
    OnHost,
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
    """What the models have in common. Learning rate, schedule and no weight decay are those of Tulu 3's finetuning of 8 B
    (https://arxiv.org/abs/2411.15124: 5e-6, warm-up over 3 %, then down to 0); sequences are packed, so fewer make a batch.
    """

    data = Chat(dataset="HuggingFaceH4/ultrachat_200k", subset_split="train_sft", held_out=0.01)
    seq_len = 4096
    batch_size = 32
    microbatch_size = 1
    epochs = 1
    precision = BF16()  # weights of two bytes over exact fp32 masters: a small learning rate is not rounded away
    optimizer = AdamW(lr=5e-6, betas=(0.9, 0.999), weight_decay=0.0, states="8bit")
    loss = ChunkedCrossEntropy()
    lr_schedule = WarmupCosine(warmup=0.03, final=0.0)
    recompute = FullRecompute()
    sampling = Sampling(prompt="Why is the sky blue?", max_new_tokens=128)
    eval_every = 50
    save_every = 100


class Llama31Chat(Finetuning, abstract=True):
    """Llama 3.1 8B; the base model's tokenizer has no template, so it is named, and with it the end of a turn."""

    init_from = "Llama-3.1-8B"
    tokenizer = HFTokenizer(path="Llama-3.1-8B", vocab_size=128_256)
    data = patch(Chat, template="llama3")
    model = patch(Llama, dim=4096, num_layers=32, num_heads=32, num_kv_heads=8, ffn_dim=14_336, rope=Llama3Rope())


class Qwen3Chat(Finetuning, abstract=True):
    """Qwen 3 8B; its own template leaves thinking out of earlier turns, so a plain one of the same form is named."""

    init_from = "Qwen3-8B"
    tokenizer = HFTokenizer(path="Qwen3-8B", vocab_size=151_669)
    data = patch(Chat, template="chatml")
    model = patch(
        Llama,
        vocab_size=151_936,
        dim=4096,
        num_layers=36,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        ffn_dim=12_288,
        norm=RMSNorm(eps=1e-6),
        attention=GroupedQueryAttention(qk_norm=RMSNorm(eps=1e-6)),
        rope=Rope(theta=1_000_000.0),
    )


class MistralChat(Finetuning, abstract=True):
    """Mistral 7B v0.3, whose attention sees everything."""

    init_from = "Mistral-7B-v0.3"
    tokenizer = HFTokenizer(path="Mistral-7B-v0.3", vocab_size=32_768)
    data = patch(Chat, template="mistral")
    model = patch(
        Llama, dim=4096, num_layers=32, num_heads=32, num_kv_heads=8, ffn_dim=14_336, rope=Rope(theta=1_000_000.0)
    )


class FourCards(Experiment, abstract=True):
    """Four cards of 24 GB, a pipeline; each stage runs again as little as its card allows."""

    hardware = "4x24GB"
    recompute = AutoRecompute()
    parallel = Pipeline(stages=4, schedule=OneFOneB())


class OneCard(Experiment, abstract=True):
    """One card of 24 GB, a step of one microbatch: Adafactor steps in the backward pass, weights are rounded by chance."""

    hardware = "1x24GB"
    batch_size = 4
    microbatch_size = 4
    precision = BF16(rounding="stochastic")
    optimizer = Adafactor(lr=5e-6, weight_decay=0.0)
    clip_norm = None  # a norm over all gradients is known too late
    update = InBackward()
    recompute = FullRecompute(offload=True, mlp_tiles=4)


class OneCardHost(Experiment, abstract=True):
    """One card of 24 GB and 128 GB of the host, where AdamW runs, with exact masters, clipping and accumulation."""

    hardware = "1x24GB,host=128GB"
    optimizer = patch(AdamW, states="fp32")
    update = OnHost(gradients="host")
    recompute = FullRecompute(offload=True, mlp_tiles=4)


class MistralChatPP4(FourCards, MistralChat):
    """Mistral 7B on conversations, four cards of 24 GB. Plan: 18.6, 17.0, 19.2, 21.3 GiB; 7,100 tokens/s."""


class Llama31ChatPP4(FourCards, Llama31Chat):
    """Llama 3.1 8B on conversations, four cards of 24 GB. Plan: 20.6, 18.9, 16.4, 20.2 GiB; 6,330 tokens/s."""


class QwenChatPP4(FourCards, Qwen3Chat):
    """Qwen 3 8B on conversations, four cards of 24 GB. Plan: 20.7, 18.8, 18.1, 19.0 GiB; 5,870 tokens/s."""


class Llama31ChatOneCard(OneCard, Llama31Chat):
    """Llama 3.1 8B on conversations, one card of 24 GB. Plan: 18.6 GiB and 4 of the host's; 1,770 tokens/s."""


class QwenChatOneCard(OneCard, Qwen3Chat):
    """Qwen 3 8B on conversations, one card of 24 GB. Plan: 19.0 GiB and 4 of the host's; 1,730 tokens/s."""


class Llama31ChatOneCardHost(OneCardHost, Llama31Chat):
    """Llama 3.1 8B on conversations, one card of 24 GB and a host with 128 GB.

    Plan: 17.9 GiB and 121 of the host's; 1,640 tokens/s.
    """
