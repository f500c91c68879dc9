"""Any causal language model as a folder that transformers 4.57 and 5 open with `trust_remote_code=True`.

In: the emitted text of the model and its weights. Out: `model.py` as it is, the files that wrap it, configuration and
weights under their own names; checked by opening the folder in a process that has transformers and not this package.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from codegen import Source
from codegen.stamp import stamped

from ..dsl.serialize import to_dict
from ..errors import UserError
from ..plan.hardware import host_memory
from ..train.weights import DTYPES
from .folder import SINGLE, write_tensors
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
MEMORY_SHARE = 0.5  # of all there is, for a model that is opened
LENGTH = 64  # tokens of a twin
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
    from .standalone import source_of

    experiment = weights.experiment
    source = source_of(experiment)
    source = dataclasses.replace(source, text=stamped(source.text))
    write_tensors(into, weights.stored, weights.tensors())
    formats = {DTYPES[entry.dtype] for entry in weights.stored.values()}
    dtype = formats.pop() if len(formats) == 1 else "float32"
    config = configuration_of(experiment.model, experiment.seq_len, dtype, generation)
    if proof and weights.size > MEMORY_SHARE * host_memory():
        return _by_twin(into, experiment.model, source, config)
    return write_code(into, source, config, proof)


def _by_twin(into: str, model: Any, source: Source, config: Mapping[str, Any]) -> list[str]:
    """Write code for a model that is too large to be opened here, as it was seen right for a small one."""
    from safetensors.torch import save_file

    from .standalone import randomise
    from .tracing import traced
    from .twin import same_code, twin_of

    twin = twin_of(model)
    other = None if twin is None else traced(twin)
    if other is None or not same_code(source, other.source):
        raise UserError(
            "there is no memory to open the model with transformers, and no small one has the same code; write --no-proof "
            "to have the folder as it is"
        )
    small: Any = other.build()
    randomise(small)
    with tempfile.TemporaryDirectory() as folder:
        save_file({name: p.detach().clone() for name, p in small.named_parameters()}, os.path.join(folder, SINGLE))
        seen = {**configuration_of(twin, LENGTH, "float32", {}), "model_args": {}}
        facts, lines = _settled(folder, other.source, seen)
    _write(into, source, facts_of(source)._replace(cache=facts.cache, documents=facts.documents), config)
    lines[0] += f", of a twin of {sum(p.numel() for p in small.parameters()):,} parameters with the same code"
    return [*lines, "not opened: the model itself, for which there is no memory here"]


def configuration_of(model: Any, max_position: int, dtype: str, generation: Mapping[str, Any]) -> dict[str, Any]:
    """The part of config.json that the text of a model does not say: its arguments, number format, special tokens."""
    sizes = {
        theirs: getattr(model, ours) for ours, theirs in SIZES.items() if isinstance(getattr(model, ours, None), int)
    }
    return {
        "model_args": _by_name(to_dict(model)),
        **sizes,
        "max_position_embeddings": max_position,
        "torch_dtype": dtype,
        **{name: generation.get(name) for name in SPECIAL},
    }


def _by_name(value: Any) -> Any:
    """Types without the file or module that they are from, which may be a path on this machine."""
    if isinstance(value, dict):
        return {key: re.split(r"[:.]", item)[-1] if key == "$type" else _by_name(item) for key, item in value.items()}
    return [_by_name(item) for item in value] if isinstance(value, list) else value


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
    if not proof:
        _write(into, source, facts, config)
        return ["not opened with transformers: --no-proof", *_limits(facts)]
    return _settled(into, source, config)[1]


def _settled(into: str, source: Source, config: Mapping[str, Any]) -> tuple[Facts, list[str]]:
    """Write, open with transformers, and write again without what turned out not to hold."""
    facts = facts_of(source)
    _write(into, source, facts, config)
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
    return facts, lines + _limits(facts) + [f"  {why}" for why in cannot.values()]


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
        "on_meta": not facts.buffers,
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
