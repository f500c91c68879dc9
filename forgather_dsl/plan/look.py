"""What all pages look like that this package writes: plans, reports. Colours follow the reader's light or dark setting."""

from __future__ import annotations

__all__ = ["PAGE_STYLE"]

PAGE_STYLE = """
:root{color-scheme:light dark;--ground:#fff;--ink:#1f2328;--faint:#59636e;--line:#d1d9e0;--soft:#f6f8fa;--good:#1a7f37;--bad:#cf222e}
@media(prefers-color-scheme:dark){:root{--ground:#0d1117;--ink:#e6edf3;--faint:#9198a1;--line:#30363d;--soft:#151b23;--good:#3fb950;--bad:#ff7b72}}
body{background:var(--ground);color:var(--ink);font:15px/1.5 system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;
margin:0 auto;max-width:1500px;padding:28px 32px 48px}
h1{font-size:22px;margin:0 0 2px}h2{font-size:16px;margin:32px 0 10px}p{margin:4px 0}.faint{color:var(--faint)}
.verdict{font-weight:600;margin:14px 0 2px}.good{color:var(--good)}.bad{color:var(--bad)}
.scroll{overflow-x:auto;border:1px solid var(--line);border-radius:8px}.scroll svg{display:block}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
th,td{padding:5px 12px;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th{font-weight:600;color:var(--faint);font-size:13px}th.text,td.text{text-align:left}
tr.own td{background:var(--soft);font-weight:600}tr:last-child td{border-bottom:0}
pre{background:var(--soft);border:1px solid var(--line);border-radius:8px;padding:12px 16px;overflow-x:auto;font-size:13.5px}
ul{padding-left:20px;margin:6px 0}
"""
