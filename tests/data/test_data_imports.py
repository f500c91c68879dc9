"""Reading text starts fast: no torch, and nothing of transformers, datasets or pyarrow before it is used."""

from __future__ import annotations

import json
import os
import subprocess
import sys

PROGRAM = """
import sys
from forgather_dsl.data.sources import Stdlib, TextFiles, JsonLines, Parquet, HF
from forgather_dsl.data.tokenizers import Bytes, TrainedBPE, count_tokens, load_tokenizer
from forgather_dsl.data.tokens import tokenize
from forgather_dsl.data.loader import Loader
HEAVY = ("torch", "transformers", "datasets", "pyarrow", "huggingface_hub", "pandas")
source = JsonLines(paths=(sys.argv[1],), field="text", split="all", held_out=0.0)
source.check()
tokenizer = TrainedBPE(vocab_size=258, source=source, sample_bytes=10_000)
tokens = tokenize(source, tokenizer)
loader = Loader(tokens=tokens, seq_len=4, batch_size=2, seed=0, shuffle=True, eos_id=tokenizer.eos_id,
                documents=True, rank=0, replicas=1)
loader.next_batch()
print([name for name in HEAVY if name in sys.modules])
hub = HF(path="org/name", name=None, field="text", subset_split="train", streaming=True, split="all", held_out=0.0)
hub.check(), hub.identity(), str(hub)
print([name for name in HEAVY if name in sys.modules])
saved = HF(path=sys.argv[2], name=None, field="text", subset_split="train", streaming=False, split="all", held_out=0.0)
assert len(list(saved.documents())) == 2
print([name for name in HEAVY if name == "torch" and name in sys.modules])
"""


def test_heavy_imports_wait_until_they_are_needed(tmp_path):
    (tmp_path / "rows").mkdir()
    for path in (tmp_path / "a.jsonl", tmp_path / "rows" / "train.jsonl"):
        path.write_text(json.dumps({"text": "aaaa aaaa " * 10}) + "\n" + json.dumps({"text": "aaaa bb"}) + "\n")
    env = {**os.environ, "FORGATHER_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path / "hf")}
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "a.jsonl", tmp_path / "rows"],
        env=env,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["[]", "[]", "[]"]
