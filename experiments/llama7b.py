"""Published models of seven and eight billion parameters, trained from scratch, on several cards.

Bases say what is trained, mixins where and in which order: a leaf puts them together. `plan` shows what each card would
hold and how long a step would take, without a GPU; `run ... --smoke` trains a shrunken one here.
The hub's files of Llama and Mistral ask for an account: `hf auth login`.
"""

from forgather_dsl import (
    BF16,
    HF,
    Auto,
    Experiment,
    FullRecompute,
    GPipe,
    GroupedQueryAttention,
    HFTokenizer,
    Interleaved,
    Llama,
    Llama3Rope,
    Muon,
    OneFOneB,
    Pipeline,
    RMSNorm,
    Rope,
    SlidingWindow,
    ZeroBubble,
    ZeroBubbleH1,
    ZeroBubbleV,
    patch,
)


class Pretraining(Experiment, abstract=True):
    """What the models have in common: a billion tokens of educational web pages."""

    data = HF(path="HuggingFaceFW/fineweb-edu", name="sample-10BT", streaming=True, held_out=0.001)
    seq_len = 4096
    batch_size = 32
    microbatch_size = 1
    tokens = 1_000_000_000
    precision = BF16()  # weights of two bytes over exact fp32 masters
    optimizer = Muon(adamw_lr=3e-4)  # one number per weight of memory where AdamW takes two
    recompute = FullRecompute()
    eval_every = 500
    save_every = 500


class Llama7B(Pretraining, abstract=True):
    """Llama 2 7B (https://arxiv.org/abs/2307.09288)."""

    tokenizer = HFTokenizer(path="meta-llama/Llama-2-7b-hf", vocab_size=32_000)
    model = patch(Llama, dim=4096, num_layers=32, num_heads=32, ffn_dim=11_008)


class Llama31_8B(Pretraining, abstract=True):
    """Llama 3.1 8B (https://arxiv.org/abs/2407.21783)."""

    tokenizer = HFTokenizer(path="meta-llama/Llama-3.1-8B", vocab_size=128_256)
    model = patch(Llama, dim=4096, num_layers=32, num_heads=32, num_kv_heads=8, ffn_dim=14_336, rope=Llama3Rope())


class Mistral7B(Pretraining, abstract=True):
    """Mistral 7B v0.1 (https://arxiv.org/abs/2310.06825)."""

    tokenizer = HFTokenizer(path="mistralai/Mistral-7B-v0.1", vocab_size=32_000)
    model = patch(
        Llama,
        dim=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        ffn_dim=14_336,
        attention=SlidingWindow(window=4096),
    )


class Qwen3_8B(Pretraining, abstract=True):
    """Qwen 3 8B (https://arxiv.org/abs/2505.09388). Its embedding has more rows than its tokenizer has tokens."""

    tokenizer = HFTokenizer(path="Qwen/Qwen3-8B", vocab_size=151_669)
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


class PP2(Experiment, abstract=True):
    """Two cards of 80 GB."""

    hardware = "2x80GB"
    parallel = Pipeline(stages=2, schedule=OneFOneB())


class PP4(Experiment, abstract=True):
    """Four cards of 24 GB."""

    hardware = "4x24GB"
    parallel = Pipeline(stages=4, schedule=OneFOneB())


class PP4Large(PP4, abstract=True):
    """Four cards of 32 GB: a vocabulary of 128,000 needs them, for the optimizer's step of the embedding and the head."""

    hardware = "4x32GB"


class GPipeSchedule(Experiment, abstract=True):
    """All forwards, then all backwards."""

    parallel = patch(Pipeline, schedule=GPipe())


class InterleavedSchedule(Experiment, abstract=True):
    """Two stages on each card, dealt out in turn."""

    parallel = patch(Pipeline, schedule=Interleaved())


class ZeroBubbleSchedule(Experiment, abstract=True):
    """Split backward, the order found by search; weight gradients are put off as far as the cards have room."""

    parallel = patch(Pipeline, schedule=ZeroBubble())


class ZeroBubbleH1Schedule(Experiment, abstract=True):
    """Split backward in a fixed order."""

    parallel = patch(Pipeline, schedule=ZeroBubbleH1())


class ZeroBubbleVSchedule(Experiment, abstract=True):
    """Split backward in a fixed order, two stages on each card in a V."""

    parallel = patch(Pipeline, schedule=ZeroBubbleV())


class AutoSchedule(Experiment, abstract=True):
    """Stages, cuts and order that the planner finds best."""

    parallel = patch(Pipeline, schedule=Auto())


class PP4OneFOneB(PP4, Llama7B):
    """Four cards, one forward and one backward in turn."""


class PP4GPipe(GPipeSchedule, PP4, Llama7B):
    """Four cards, all forwards first: every microbatch is alive at once, so there are few of them."""

    batch_size = 8


class PP4Interleaved(InterleavedSchedule, PP4, Llama7B):
    """Four cards, eight stages: half of the bubble, twice the messages."""


class PP4ZeroBubbleH1(ZeroBubbleH1Schedule, PP4, Llama7B):
    """Four cards, split backward. A weight gradient put off keeps a whole stage's activations: half of the length fits."""

    seq_len = 2048
    batch_size = 64
    parallel = patch(Pipeline, cuts=(9, 9, 8, 6))  # the last stage puts off the most


class PP4ZeroBubbleV(ZeroBubbleVSchedule, PP4, Llama7B):
    """Four cards, split backward in a V; at half of the length too."""

    seq_len = 2048
    batch_size = 64


class PP4ZeroBubble(ZeroBubbleSchedule, PP4, Llama7B):
    """Four cards, split backward, the order found by search."""


class PP4Auto(AutoSchedule, PP4, Llama7B):
    """Four cards, whatever is best on them."""


class MistralPP4(AutoSchedule, PP4, Mistral7B):
    """Mistral 7B on four cards."""


class Llama31PP4(PP4Large, Llama31_8B):
    """Llama 3.1 8B on four larger cards."""


class QwenPP4(PP4Large, Qwen3_8B):
    """Qwen 3 8B on four larger cards."""

    parallel = patch(Pipeline, cuts=(7, 11, 11, 7))


class Llama31PP2(PP2, Llama31_8B):
    """Llama 3.1 8B on two cards."""
