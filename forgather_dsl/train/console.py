"""What a person sees while training: a live line on a terminal, plain lines elsewhere. rich is imported for a terminal only."""

from __future__ import annotations

import sys
import time
from typing import Any

from ..errors import printable


class Console:
    """A logger: gets every record of `metrics.jsonl` and shows what matters."""

    def __init__(self) -> None:
        self._start: dict[str, Any] = {}
        self._began = time.monotonic()
        self._live: Any = None
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(refresh_per_second=8, transient=True)
            self._live.start()

    def log(self, record: dict[str, Any]) -> None:
        """Show one record."""
        if "data_fingerprint" in record:
            self._start = record
        elif "sample" in record:
            self._print(printable(f"sample  step {record['step']}\n{_indent(record['sample'])}"))
        elif sets := [key.removeprefix("eval_loss") for key in record if key.startswith("eval_loss")]:
            for after in sets:
                name = f"  {after[1:]}" if after else ""
                self._print(f"eval    step {record['step']}{name}  {self._eval_text(record, after)}")
        elif "loss" in record:
            text = self._train_text(record)
            if self._live is not None:
                self._live.update(text)
            else:
                print(text, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _print(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def _eval_text(self, record: dict[str, Any], after: str) -> str:
        parts = [f"loss {record[f'eval_loss{after}']:.4f}"]
        if record.get(f"eval_perplexity{after}") is not None:
            parts.append(f"perplexity {record[f'eval_perplexity{after}']:.4g}")
        bits = record.get(f"eval_bits_per_byte{after}")
        if bits is not None:
            parts.append(f"{bits:.4f} bits/byte")
            gzip = self._start.get("gzip_bits_per_byte") if not after else None  # of eval_data alone
            if gzip is not None:
                parts.append(f"gzip -9 on the same text {gzip:.4f} ({100 * (bits / gzip - 1):+.1f} %)")
        return "  ".join(parts)

    def _train_text(self, record: dict[str, Any]) -> str:
        total = self._start.get("steps")
        of = f"/{total}" if total else ""
        parts = [f"step {record['step']:>5}{of}", f"{100 * record['progress']:3.0f} %", f"loss {record['loss']:.4f}"]
        parts += [
            f"lr {record['lr']:.2e}",
            f"norm {record['grad_norm']:.2f}",
            f"{record['tokens_per_second']:,.0f} tok/s",
        ]
        if record.get("mfu") is not None:
            parts.append(f"MFU {100 * record['mfu']:.0f} %")
        if record.get("bubble") is not None:
            parts.append(f"bubble {100 * record['bubble']:.0f} %")
        parts.append(f"{max(record['peak_memory_bytes']) / 2**30:.1f} GiB")
        parts.append(f"ETA {self._eta(record['progress'])}")
        return "  ".join(parts)

    def _eta(self, progress: float) -> str:
        done = progress - self._start.get("progress", 0.0)
        if done <= 0:
            return "?"
        left = (time.monotonic() - self._began) * (1 - progress) / done
        return duration(left)


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _indent(text: str) -> str:
    shown = "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
    return "\n".join("  | " + line for line in shown.split("\n"))  # a model may write what commands a terminal
