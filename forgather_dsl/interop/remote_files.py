"""The Python files with which transformers opens an emitted model as its own: text from facts.

`configuration_*.py` (below), `modeling_*.py` and `inputs_*.py` (in modules of their own) stand beside an unchanged `model.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from string import Template
from typing import Any

from .remote_modeling import MODELING
from .remote_probe import NAME, Facts

FIXED = (  # keys of config.json that model.py has built in
    "model_args",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "tie_word_embeddings",
)
CONSTANTS = ("embedding", "head", "layers", "cache", "documents", "tied", "buffers")  # facts that modeling_*.py states
WIDTH = 120


def prefix_of(root: str) -> str:
    """What the classes begin with: never a name that transformers has itself."""
    return "Forgather" + (root.removesuffix("ForCausalLM").removesuffix("CausalLM").removesuffix("LM") or root)


def model_type_of(root: str) -> str:
    """`ForgatherTinyLlama` as `forgather_tiny_llama`."""
    return re.sub(r"(?<=[a-zA-Z0-9])(?=[A-Z][a-z])", "_", prefix_of(root)).lower()


def configuration(root: str, defaults: Mapping[str, Any]) -> str:
    """Text of `configuration_*.py`; `defaults` are the keys of config.json that say what model.py is."""
    return Template(_CONFIGURATION).substitute(
        PREFIX=prefix_of(root),
        TYPE=model_type_of(root),
        DEFAULTS=literal(dict(defaults), "DEFAULTS = "),
        FIXED=literal(tuple(name for name in FIXED if name in defaults), "FIXED = "),
    )


def modeling(facts: Facts, build: str) -> str:
    """Text of `modeling_*.py`; `build` names the function of model.py that makes the network."""
    names = [build] if facts.initialise is None else [build, facts.initialise]
    return Template(MODELING).substitute(
        PREFIX=prefix_of(facts.root),
        TYPE=model_type_of(facts.root),
        ROOT=facts.root,
        NAME=NAME,
        NAMES=", ".join(sorted(names)),
        BUILD=build,
        INITIALISE=facts.initialise,
        **{name.upper(): literal(getattr(facts, name), f"{name} = ") for name in Facts._fields if name in CONSTANTS},
    )


def literal(value: Any, before: str = "", indent: str = "") -> str:
    """A Python literal as ruff formats it, behind the text `before` on its first line."""
    flat = _flat(value)
    if len(indent) + len(before) + len(flat) + 1 <= WIDTH or not value or not isinstance(value, (dict, list, tuple)):
        return flat
    deeper = f"{indent}    "
    if isinstance(value, dict):
        items = [f"{_flat(key)}: {literal(item, f'{_flat(key)}: ', deeper)}" for key, item in value.items()]
    else:
        items = [literal(item, "", deeper) for item in value]
    opening, closing = {dict: "{}", list: "[]", tuple: "()"}[type(value)]
    return "\n".join([opening, *(f"{deeper}{item}," for item in items), f"{indent}{closing}"])


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flat(key)}: {_flat(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flat, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_flat, value)) + (",)" if len(value) == 1 else ")")
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


_CONFIGURATION = '''"""The configuration of model.py for transformers 4.57 and 5. Written by forgather_dsl."""

from transformers import PretrainedConfig

DEFAULTS = $DEFAULTS
# What model.py has built in. config.json repeats it for tools that look there, and is refused where it says otherwise.
FIXED = $FIXED


class ${PREFIX}Config(PretrainedConfig):
    """Sizes under the names of transformers; all of the network's arguments are in `model_args`, which it leaves alone."""

    model_type = "$TYPE"

    def __init__(self, **kwargs):
        for name, value in DEFAULTS.items():
            kwargs.setdefault(name, value)
        super().__init__(**kwargs)
        for name in DEFAULTS:
            setattr(self, name, kwargs[name])
'''
