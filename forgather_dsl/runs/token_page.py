"""`compare --html`: the text itself, each piece coloured by which model knows it better; one file, which loads nothing."""

from __future__ import annotations

from html import escape

import numpy as np

from ..errors import UserError
from .compare import Compared
from .token_bits import Pieces

__all__ = ["write_page"]

MOST_CHARACTERS = 60_000  # of text on the page
FULL_BITS = 4.0  # a difference with the deepest colour

_STYLE = """
:root{color-scheme:light dark;--ground:#fff;--ink:#1f2328;--faint:#59636e;--line:#d1d9e0;--a:45,105,200;--b:205,85,20}
@media(prefers-color-scheme:dark){:root{--ground:#0d1117;--ink:#e6edf3;--faint:#9198a1;--line:#30363d;--a:90,155,255;--b:255,140,70}}
body{background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:1100px;padding:28px}
pre{font:13px/1.7 ui-monospace,Menlo,Consolas,monospace;white-space:pre-wrap;overflow-wrap:anywhere;border:1px solid var(--line);
border-radius:8px;padding:12px 16px}h1{font-size:21px;margin:0 0 4px}h2{font-size:14px;color:var(--faint);margin:24px 0 6px}
.faint{color:var(--faint)}.key span,pre span{border-radius:3px;padding:1px 0}
"""


def write_page(file: str, found: Compared, first: str, second: str) -> None:
    """Write it. Raises UserError where that is not possible."""
    shown, rest = _chosen(found.documents)
    c = found.comparison
    interval = (
        "" if c.half is None else f", {100 * c.level:.0f} % interval &plusmn; {c.half:.4f} over {escape(c.units)}"
    )
    parts = [
        f"<h1>A {escape(first)} and B {escape(second)}, token by token</h1>",
        f"<p>A {c.bits_per_byte[0]:.4f}, B {c.bits_per_byte[1]:.4f} bits per byte: B less A {c.difference:+.4f}{interval}.</p>",
        f'<p class="key"><span style="{_look(-FULL_BITS)}">&nbsp;A pays fewer bits&nbsp;</span> '
        f'<span style="{_look(FULL_BITS)}">&nbsp;B pays fewer bits&nbsp;</span> '
        f'<span class="faint">deepest from {FULL_BITS:g} bits on; hover over a piece for its numbers</span></p>',
        *(_document(number, document) for number, document in shown),
    ]
    if rest:
        parts.append(f'<p class="faint">{rest} documents that differ less per byte are not shown.</p>')
    head = f'<meta charset="utf-8"><title>A and B, token by token</title><style>{_STYLE}</style>'
    text = f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"
    try:
        with open(file, "w", encoding="utf-8", errors="replace") as opened:
            opened.write(text)
    except OSError as error:
        raise UserError(f"--html {file}: {error.strerror}; write a file in a folder that exists") from error


def _chosen(documents: list[Pieces]) -> tuple[list[tuple[int, Pieces]], int]:
    """Those that differ most per byte, as much of them as a page takes, and how many are left out."""
    ranked = sorted(
        enumerate(documents), key=lambda pair: -float(np.abs(pair[1].difference).sum()) / max(1, pair[1].num_bytes)
    )
    shown, room = [], MOST_CHARACTERS
    for number, document in ranked:
        if room <= 0:
            break
        shown.append((number, document))
        room -= len(document.text)
    return shown, len(documents) - len(shown)


def _document(number: int, document: Pieces) -> str:
    """As much of it as a page takes."""
    change = float(document.difference.sum()) / max(1, document.num_bytes)
    spans, room = [], MOST_CHARACTERS
    for index in range(len(document.cuts)):
        piece = document.piece(index)
        if (room := room - len(piece)) < 0:
            spans.append(" &hellip;")
            break
        a, b = (float(bits[index]) for bits in document.bits)
        label = f"A {a:.2f} bits, B {b:.2f}"
        spans.append(f'<span title="{label}" style="{_look(a - b)}">{escape(piece) or "&#9633;"}</span>')
    return f"<h2>document {number + 1}: B less A {change:+.4f} bits per byte</h2><pre>{''.join(spans)}</pre>"


def _look(saved_by_b: float) -> str:
    """A colour for bits: blue where A pays fewer, orange where B does."""
    depth = min(1.0, abs(saved_by_b) / FULL_BITS) * 0.75
    return f"background:rgba(var(--{'b' if saved_by_b > 0 else 'a'}),{depth:.2f})" if depth >= 0.02 else ""
