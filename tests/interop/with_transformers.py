"""Every kind of stock model out, every family in, with whatever transformers is first on the path; prints what was said as JSON.

`python with_transformers.py FOLDER`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
import transformers
from hf_folders import OPTIONS, write_model, write_tokenizer
from runs_of_weights import MODELS, make_run, random_weights, write_corpus

from forgather_dsl.interop.export import export
from forgather_dsl.interop.incoming import import_folder


def main(folder: str) -> None:
    os.chdir(folder)
    transformers.logging.disable_progress_bar()
    corpus = write_corpus(Path("corpus"))
    said: dict[str, list[str]] = {}
    for name, model in MODELS.items():
        make_run(Path(name), model, corpus, random_weights(model))
        said[name] = export(name, "hf", f"{name}-hf").said
    for family in OPTIONS:
        for tied in (True, False):
            hf = Path(f"{family}-{tied}")
            write_model(hf, family, tied, torch.bfloat16)
            write_tokenizer(hf)
            said[hf.name] = import_folder(str(hf), f"{hf}-run", check=True).said
    print(json.dumps({"version": transformers.__version__, "said": said}))


if __name__ == "__main__":
    main(sys.argv[1])
