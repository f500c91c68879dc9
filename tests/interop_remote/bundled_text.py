"""The text of our models as one file, joined by hand: what the tracer emits, without a tracer.

In: a call that builds a model. Out: a `Source` that needs torch alone.
"""

from __future__ import annotations

import re
from pathlib import Path

import forgather_dsl.models as models
from codegen import Source

PARTS = ("cache", "rope", "norms", "mlp", "attention", "llama", "init")


def bundled(body: str, root: str = "Llama", more: str = "") -> Source:
    """Every module of the models package behind another, then `more`, then `build_model` with this body."""
    folder = Path(models.__file__).parent
    text = "\n\n".join(_private((folder / f"{part}.py").read_text(), part) for part in PARTS)
    text = re.sub(r"(?m)^from (__future__|forgather_dsl)[^\n]*$", "", text)
    head = "from __future__ import annotations\nimport functools\nimport torch\n"
    body = "\n".join(f"    {line}" for line in body.strip().splitlines())
    return Source(
        f"{head}{text}\n\n{more}\n\ndef build_model():\n{body}\n", root=root, also={"draw_weights": "initialise"}
    )


def _private(text: str, part: str) -> str:
    """Functions of two modules may have one name."""
    for name in re.findall(r"(?m)^def (_\w+)", text):
        text = re.sub(rf"(?<!\.)\b{name}\b", f"{name}_of_{part}", text)
    return text


LLAMA = """
part = functools.partial
attention = part({attention}, bias=False, output_bias=False, qk_norm=None, dropout=0.0{window})
return Llama(
    dim=48, num_layers=3, num_heads=6, num_kv_heads=2, head_dim=8, ffn_dim=64, vocab_size=61,
    norm=lambda dim, layer_index: RMSNorm(dim, 1e-5), attention=attention,
    mlp=lambda dim, ffn_dim, layer_index: SwiGLU(dim, ffn_dim, False),
    rope={rope}, tie_embeddings={tied}, dropout={dropout}, init=NormalInit(std=0.2, depth_scaled=True),
)
"""


def llama(
    tied: bool = False, window: int | None = None, rope: str = "part(Rope, theta=10000.0)", dropout: float = 0.0
) -> Source:
    """A small Llama of these parts."""
    attention = "GroupedQueryAttention" if window is None else "SlidingWindow"
    more = "" if window is None else f", window={window}"
    return bundled(LLAMA.format(attention=attention, window=more, rope=rope, tied=tied, dropout=dropout))
