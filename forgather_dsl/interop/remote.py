"""Any causal language model as a folder that transformers 4.57 and 5 open with `trust_remote_code=True`.

In: the emitted text of the model and its weights. Out: `model.py` as it is, the files that wrap it, configuration and
weights under their own names; checked by opening the folder in a process that has transformers and not this package.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from codegen import Source
from codegen.stamp import stamped

from ..dsl.serialize import to_dict
from ..errors import UserError
from ..train.weights import DTYPES
from .remote_files import configuration, model_type_of, modeling, prefix_of
from .remote_inputs import INPUTS
from .remote_probe import Facts, facts_of

# fields of our specs -> the names under which tools of transformers look for sizes
SIZES = {
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn_dim": "intermediate_size",
}
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
_CHECK = os.path.join(os.path.dirname(os.path.abspath(__file__)), "remote_check.py")


def write_remote(weights: Any, into: str, proof: bool, generation: Mapping[str, Any]) -> list[str]:
    """Fill the empty folder `into`; returns lines for the user.

    Args:
        weights: an `Outgoing`: a verified checkpoint and the experiment that it is of.
        proof: whether to open the folder with transformers and compare; the model is in memory once, and again.
        generation: ids of special tokens as the run knows them, such as `eos_token_id`.

    Raises:
        UserError: with every reason why the model cannot be remote code, or with what differs.
    """
    from .folder import write_tensors
    from .standalone import source_of

    experiment = weights.experiment
    source = source_of(experiment)
    source = dataclasses.replace(source, text=stamped(source.text))
    write_tensors(into, weights.stored, weights.tensors())
    formats = {DTYPES[entry.dtype] for entry in weights.stored.values()}
    dtype = formats.pop() if len(formats) == 1 else "float32"
    config = configuration_of(experiment.model, experiment.seq_len, dtype, generation)
    return write_code(into, source, config, proof)


def configuration_of(model: Any, max_position: int, dtype: str, generation: Mapping[str, Any]) -> dict[str, Any]:
    """The part of config.json that the text of a model does not say: its arguments, number format, special tokens."""
    sizes = {
        theirs: getattr(model, ours) for ours, theirs in SIZES.items() if isinstance(getattr(model, ours, None), int)
    }
    return {
        "model_args": to_dict(model),
        **sizes,
        "max_position_embeddings": max_position,
        "torch_dtype": dtype,
        **{name: generation.get(name) for name in SPECIAL},
    }


def write_code(into: str, source: Source, config: Mapping[str, Any], proof: bool = True) -> list[str]:
    """All files but the weights, which are in the folder already; returns what was checked and what cannot be had.

    What the model turns out not to do (keep a cache, leave out padding on the left) is refused by the written code.
    Raises UserError: as `write_remote`.
    """
    if source.requirements:
        raise UserError(
            f"{source.root} needs {', '.join(source.requirements)} beside torch, which a folder for transformers cannot bring"
        )
    facts = facts_of(source)
    _write(into, source, facts, config)
    if not proof:
        return ["not checked with transformers (--no-proof)", *_limits(facts)]
    found = _check(into, source, facts)
    cannot = {name: why for name, why in found["cannot"].items() if why}
    if cannot:
        facts = facts._replace(**dict.fromkeys(cannot, False))
        _write(into, source, facts, config)
        found = _check(into, source, facts)
    if found["reasons"]:
        listed = "\n  ".join(found["reasons"])
        raise UserError(f"transformers {found['version']} computes another model from this folder:\n  {listed}")
    lines = [f"logits bit for bit those of model.py in transformers {found['version']}"]
    return lines + _limits(facts) + [f"  {why}" for why in cannot.values()]


def _limits(facts: Facts) -> list[str]:
    limits = []
    if not facts.cache:
        limits.append("no cache: generate() computes the whole text for every token")
    if not facts.documents:
        limits.append("padding on the left is refused; on the right it is right")
    if facts.head is None:
        limits.append("no linear head: the vocabulary cannot be resized, and AutoModel is refused")
    return limits


def _write(into: str, source: Source, facts: Facts, config: Mapping[str, Any]) -> None:
    prefix, kind = prefix_of(facts.root), model_type_of(facts.root)
    built_in = {
        **{name: value for name, value in config.items() if name not in SPECIAL and name != "torch_dtype"},
        "vocab_size": facts.vocab_size,
        "hidden_size": facts.hidden_size,
        "num_hidden_layers": facts.num_layers,
        "tie_word_embeddings": bool(facts.tied),
        "use_cache": facts.cache,
    }
    special = {name: config.get(name) for name in SPECIAL}
    whole = {
        "architectures": [f"{prefix}ForCausalLM"],
        "model_type": kind,
        "auto_map": {
            "AutoConfig": f"configuration_{kind}.{prefix}Config",
            "AutoModel": f"modeling_{kind}.{prefix}Model",
            "AutoModelForCausalLM": f"modeling_{kind}.{prefix}ForCausalLM",
        },
        "torch_dtype": config["torch_dtype"],
        **built_in,
        **special,
    }
    texts = {
        "model.py": source.text,
        f"configuration_{kind}.py": configuration(facts.root, built_in),
        f"inputs_{kind}.py": INPUTS,
        f"modeling_{kind}.py": modeling(facts, source.build),
        "config.json": json.dumps(whole, indent=2) + "\n",
        "generation_config.json": json.dumps({**special, "use_cache": facts.cache}, indent=2) + "\n",
    }
    for name, text in texts.items():
        with open(os.path.join(into, name), "w", encoding="utf-8") as file:
            file.write(text)


def _check(folder: str, source: Source, facts: Facts) -> dict[str, Any]:
    """What `remote_check` found: {version, reasons, cannot}. Raises UserError: it did not come to an end."""
    asked = {
        "folder": os.path.abspath(folder),
        "build": source.build,
        "vocab_size": facts.vocab_size,
        "tied": facts.tied,
        "claims": [name for name in ("cache", "documents") if getattr(facts, name)],
    }
    with tempfile.TemporaryDirectory() as modules:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_MODULES_CACHE": modules,  # transformers copies the code of the folder there
        }
        command = [sys.executable, "-P", _CHECK, json.dumps(asked)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"transformers cannot open what was written:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])
