"""Ablations of a tiny Llama: each class changes one thing. Compare what two of them resolve to with `diff`.

python -m forgather_dsl diff experiments/tiny_llama.py:Baseline experiments/tiny_llama.py:SquaredReLU
"""

from forgather_dsl import (
    GELUMLP,
    AdamW,
    Cycle,
    Experiment,
    GroupedQueryAttention,
    LayerNorm,
    Llama,
    Muon,
    NoRope,
    Pipeline,
    ReLUSquaredMLP,
    RMSNorm,
    SlidingWindow,
    WarmupStableDecay,
    patch,
)


class TinyLlama(Experiment, abstract=True):
    """What the ablations have in common: 4.2 M parameters, Python's standard library, 600 steps."""

    seq_len = 256
    batch_size = 16
    microbatch_size = 4
    steps = 600
    eval_every = 200
    model = patch(Llama, dim=192, num_layers=6, num_heads=6)
    optimizer = AdamW(lr=3e-3)


class Baseline(TinyLlama):
    """The base as it is."""


class WithLayerNorm(TinyLlama):
    """Layer norm for RMS norm."""

    model = patch(Llama, norm=LayerNorm())


class SquaredReLU(TinyLlama):
    """Two matrices and a squared ReLU for SwiGLU, the same number of parameters."""

    model = patch(Llama, mlp=ReLUSquaredMLP(), ffn_dim=768)


class GELU(TinyLlama):
    """Two matrices and a GELU for SwiGLU, the same number of parameters."""

    model = patch(Llama, mlp=GELUMLP(), ffn_dim=768)


class FewKeyHeads(TinyLlama):
    """Two key and value heads for six query heads."""

    model = patch(Llama, num_kv_heads=2)


class QKNorm(TinyLlama):
    """Queries and keys normalised head by head, as in Qwen 3."""

    model = patch(Llama, attention=GroupedQueryAttention(qk_norm=RMSNorm()))


class LocalAndGlobal(TinyLlama):
    """Two layers that see the last 64 tokens for each that sees all."""

    model = patch(Llama, attention=Cycle(SlidingWindow(window=64), SlidingWindow(window=64), GroupedQueryAttention()))


class NoPositions(TinyLlama):
    """No position code: the causal mask alone tells the order."""

    model = patch(Llama, rope=NoRope())


class TiedEmbeddings(TinyLlama):
    """One matrix for the embedding and the head."""

    model = patch(Llama, tie_embeddings=True)


class WithMuon(TinyLlama):
    """Muon for the matrices of the layers."""

    optimizer = Muon()


class StableThenDecay(TinyLlama):
    """A constant learning rate and a linear decay over the last fifth, for a cosine."""

    lr_schedule = WarmupStableDecay()


class PP3(TinyLlama):
    """Three pipeline stages."""

    parallel = Pipeline(stages=3)
