"""Published models of seven and eight billion parameters, trained from scratch, on several cards.

Bases say what is trained, mixins where and in which order: a leaf puts them together. Each says what its plan says: memory
of each card at its peak, tokens per second predicted for RTX 4090s (`plan` tells what that rests on). `run ... --smoke` trains
a shrunken one here. The hub's files of Llama and Mistral ask for an account: `hf auth login`.
"""

from forgather_dsl import (
    BF16,
    FSDP2,
    HF,
    Adafactor,
    AdamW,
    Auto,
    AutoRecompute,
    ChunkedCrossEntropy,
    Experiment,
    FullRecompute,
    GPipe,
    GroupedQueryAttention,
    HFTokenizer,
    InBackward,
    Interleaved,
    KeepAttention,
    Llama,
    Llama3Rope,
    OneFOneB,
    OnHost,
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
    optimizer = AdamW(states="8bit")  # two bytes of moments per weight
    loss = ChunkedCrossEntropy()
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


class Qwen3_14B(Qwen3_8B, abstract=True):
    """Qwen 3 14B (https://arxiv.org/abs/2505.09388)."""

    tokenizer = patch(HFTokenizer, path="Qwen/Qwen3-14B")
    model = patch(Llama, dim=5120, num_layers=40, num_heads=40, ffn_dim=17_408)


class PP4(Experiment, abstract=True):
    """Four cards of 24 GB."""

    hardware = "4x24GB"
    parallel = Pipeline(stages=4, schedule=OneFOneB())


class OneCard(Experiment, abstract=True):
    """One card of 24 GB, a step of one microbatch: each layer is updated in its backward and its gradients are gone. Adafactor
    keeps next to nothing, weights are rounded by chance, and what layers keep waits in the host's memory."""

    hardware = "1x24GB"
    batch_size = 4
    microbatch_size = 4
    precision = BF16(rounding="stochastic")
    optimizer = Adafactor()
    clip_norm = None  # a norm over all gradients is known too late
    update = InBackward()
    recompute = FullRecompute(offload=True, mlp_tiles=4)


class OneCardHost(OneCard, abstract=True):
    """One card of 24 GB and 128 GB of the host: AdamW with exact fp32 masters, clipping and accumulation run there."""

    hardware = "1x24GB,host=128GB"
    batch_size = 64
    microbatch_size = 1
    precision = BF16()
    optimizer = AdamW()  # in fp32: eight bits take a processor longer than memory would
    clip_norm = 1.0
    update = OnHost(gradients="host")


class LongContext(Experiment, abstract=True):
    """Sequences of 16,384 tokens, where attention is what takes time: it is not run twice."""

    seq_len = 16_384
    batch_size = 1
    microbatch_size = 1
    recompute = KeepAttention(offload=True, mlp_tiles=8)


class FourCards(PP4, abstract=True):
    """Four cards of 24 GB: AdamW with exact masters and 8-bit moments; each stage runs again as little as its card allows."""

    batch_size = 64
    recompute = AutoRecompute()


class FourCardsSharded(FourCards, abstract=True):
    """Four cards of 24 GB, a quarter of every matrix on each: what to compare a pipeline with. Two sequences at a time, as
    every microbatch gathers all weights twice."""

    microbatch_size = 2
    parallel = FSDP2(shards=4)
    recompute = FullRecompute()


class TwoCards(FourCards, abstract=True):
    """Two cards of 24 GB: nothing beside weights and gradients, which are rounded by chance."""

    hardware = "2x24GB"
    parallel = patch(Pipeline, stages=2)
    precision = BF16(rounding="stochastic")
    optimizer = Adafactor()


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
    """Four cards, one forward and one backward in turn. Plan: 16.2, 15.0, 14.7, 15.4 GiB; 6,910 tokens/s."""


class PP4GPipe(GPipeSchedule, PP4, Llama7B):
    """Four cards, all forwards first: every microbatch is alive at once, so there are few of them.

    Plan: 17.1, 16.1, 16.1, 17.2 GiB; 5,530 tokens/s.
    """

    batch_size = 8


class PP4Interleaved(InterleavedSchedule, PP4, Llama7B):
    """Four cards, eight stages: half of the bubble, twice the messages.

    Plan: 17.0, 15.6, 15.3, 16.0 GiB; 7,190 tokens/s.
    """


class PP4ZeroBubbleH1(ZeroBubbleH1Schedule, PP4, Llama7B):
    """Four cards, split backward. A weight gradient put off keeps a whole stage's activations: half of the length fits.

    Plan: 18.9, 20.1, 19.9, 17.6 GiB; 7,270 tokens/s.
    """

    seq_len = 2048
    batch_size = 64
    parallel = patch(Pipeline, cuts=(9, 9, 8, 6))  # the last stage puts off the most


class PP4ZeroBubbleV(ZeroBubbleVSchedule, PP4, Llama7B):
    """Four cards, split backward in a V; at half of the length too.

    Plan: 17.1, 16.8, 18.8, 20.7 GiB; 7,750 tokens/s.
    """

    seq_len = 2048
    batch_size = 64


class PP4ZeroBubble(ZeroBubbleSchedule, PP4, Llama7B):
    """Four cards, split backward, the order found by search within what these cards can spare.

    Plan: 16.2, 17.9, 18.1, 18.9 GiB; 7,040 tokens/s.
    """

    recompute = FullRecompute(leave_gib=2.5)


class PP4Auto(AutoSchedule, PP4, Llama7B):
    """Four cards, whatever is best within what they can spare. Plan: 21.2, 21.1, 21.1, 21.1 GiB; 7,520 tokens/s."""

    recompute = FullRecompute(leave_gib=2.5)


class Llama2PP4(FourCards, Llama7B):
    """Llama 2 7B on four cards. Plan: 17.3, 15.8, 19.7, 19.4 GiB; 7,860 tokens/s."""


class Llama2FSDP4(FourCardsSharded, Llama7B):
    """Llama 2 7B on four cards, as shards. Plan: 19.1, 19.1, 19.1, 19.1 GiB; 7,650 tokens/s."""


class MistralPP4(FourCards, Mistral7B):
    """Mistral 7B on four cards. Plan: 18.3, 16.9, 20.9, 20.9 GiB; 7,400 tokens/s."""


class Llama31PP4(FourCards, Llama31_8B):
    """Llama 3.1 8B on four cards: the last stage has the head, which is worth two and a half layers.

    Plan: 21.4, 18.8, 20.9, 19.8 GiB; 6,640 tokens/s.
    """

    parallel = patch(Pipeline, cuts=(8, 9, 8, 7))


class Llama31PP4Short(FourCards, Llama31_8B):
    """Llama 3.1 8B at half of the length, where no matrix product need run twice once weights are rounded by chance.

    Plan: 20.2, 21.3, 18.3, 13.9 GiB; 8,580 tokens/s.
    """

    seq_len = 2048
    batch_size = 128
    precision = BF16(rounding="stochastic")
    parallel = patch(Pipeline, cuts=(8, 9, 9, 6))


class QwenPP4(FourCards, Qwen3_8B):
    """Qwen 3 8B on four cards. Plan: 20.5, 18.6, 18.0, 21.2 GiB; 6,570 tokens/s."""

    parallel = patch(Pipeline, cuts=(8, 10, 10, 8))


class Qwen14PP4(FourCards, Qwen3_14B):
    """Qwen 3 14B on four cards: nothing beside weights and gradients has room.

    Plan: 19.4, 18.8, 17.9, 20.5 GiB; 3,630 tokens/s.
    """

    precision = BF16(rounding="stochastic")
    optimizer = Adafactor()
    parallel = patch(Pipeline, cuts=(9, 11, 11, 9))


class Qwen14PP4Host(FourCards, Qwen3_14B):
    """Qwen 3 14B on four cards, AdamW with exact masters in the host's memory.

    Plan: 19.4, 18.8, 17.9, 20.5 GiB and 165 of the host's; 3,140 tokens/s.
    """

    hardware = "4x24GB,host=192GB"
    optimizer = AdamW()
    update = OnHost()
    parallel = patch(Pipeline, cuts=(9, 11, 11, 9))


class Llama2PP2(TwoCards, Llama7B):
    """Llama 2 7B on two cards. Plan: 15.7, 21.2 GiB; 4,310 tokens/s."""


class MistralPP2(TwoCards, Mistral7B):
    """Mistral 7B on two cards. Plan: 17.7, 21.2 GiB; 3,820 tokens/s."""


class Llama31PP2(TwoCards, Llama31_8B):
    """Llama 3.1 8B on two cards. Plan: 20.2, 17.3 GiB; 3,560 tokens/s."""


class QwenPP2(TwoCards, Qwen3_8B):
    """Qwen 3 8B on two cards. Plan: 20.6, 17.7 GiB; 3,430 tokens/s."""


class Llama2OneCard(OneCard, Llama7B):
    """Llama 2 7B on one card. Plan: 15.8 GiB and 4 of the host's; 1,970 tokens/s."""


class MistralOneCard(OneCard, Mistral7B):
    """Mistral 7B on one card. Plan: 16.7 GiB and 4 of the host's; 1,860 tokens/s."""


class Llama31OneCard(OneCard, Llama31_8B):
    """Llama 3.1 8B on one card. Plan: 18.3 GiB and 4 of the host's; 1,770 tokens/s."""


class QwenOneCard(OneCard, Qwen3_8B):
    """Qwen 3 8B on one card. Plan: 18.9 GiB and 4 of the host's; 1,740 tokens/s."""


class Llama2OneCardHost(OneCardHost, Llama7B):
    """Llama 2 7B on one card, AdamW on the host. Plan: 14.6 GiB and 101 of the host's; 1,910 tokens/s."""


class Llama31OneCardHost(OneCardHost, Llama31_8B):
    """Llama 3.1 8B on one card, AdamW on the host. Plan: 17.8 GiB and 121 of the host's; 1,710 tokens/s."""


class Llama2OneCardLong(LongContext, OneCard, Llama7B):
    """Llama 2 7B on one card, 16,384 tokens at a time. Plan: 15.9 GiB and 8 of the host's; 1,720 tokens/s."""


class Llama31OneCardLong(LongContext, OneCard, Llama31_8B):
    """Llama 3.1 8B on one card, 16,384 tokens at a time. Plan: 18.6 GiB and 8 of the host's; 1,570 tokens/s."""
