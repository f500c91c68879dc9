"""Five ablations of a tiny Llama, small and short enough to train each with three seeds on one CPU core in half an hour.

for seed in 0 1 2; do
    for name in Base WithLayerNorm SquaredReLU QKNorm NoPositions WithMuon; do
        python -m forgather_dsl run experiments/ablations.py:$name --set seed=$seed --out runs/ablations/$name-$seed
    done
done
python -m forgather_dsl report runs/ablations --base Base --html ablations.html
"""

from forgather_dsl import (
    FP32,
    AdamW,
    Experiment,
    GroupedQueryAttention,
    LayerNorm,
    Llama,
    Muon,
    NoRope,
    ReLUSquaredMLP,
    RMSNorm,
    Stdlib,
    TrainedBPE,
    patch,
)


class Ablation(Experiment, abstract=True):
    """What they have in common: 0.8 M parameters, an eighth of a million tokens of Python's standard library."""

    seq_len = 128
    batch_size = 4
    steps = 240
    eval_every = 60
    data = Stdlib(held_out=0.02)
    tokenizer = TrainedBPE(source=Stdlib(held_out=0.02), vocab_size=2048)
    model = patch(Llama, dim=96, num_layers=4, num_heads=4)
    optimizer = AdamW(lr=3e-3)
    precision = FP32()


class Base(Ablation):
    """The base as it is."""


class WithLayerNorm(Ablation):
    """Layer norm for RMS norm."""

    model = patch(Llama, norm=LayerNorm())


class SquaredReLU(Ablation):
    """Two matrices and a squared ReLU for SwiGLU, the same number of parameters."""

    model = patch(Llama, mlp=ReLUSquaredMLP(), ffn_dim=384)


class QKNorm(Ablation):
    """Queries and keys normalised head by head, as in Qwen 3."""

    model = patch(Llama, attention=GroupedQueryAttention(qk_norm=RMSNorm()))


class NoPositions(Ablation):
    """No position code: the causal mask alone tells the order."""

    model = patch(Llama, rope=NoRope())


class WithMuon(Ablation):
    """Muon for the matrices of the layers."""

    optimizer = Muon()
