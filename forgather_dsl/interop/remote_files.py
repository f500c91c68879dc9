"""The Python files with which transformers opens an emitted model as its own: text from facts.

`configuration_*.py` (below), `modeling_*.py` and `inputs_*.py` (in modules of their own) stand beside an unchanged `model.py`.
"""

from __future__ import annotations

import pprint
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


def prefix_of(root: str) -> str:
    """What the classes begin with: never a name that transformers has itself."""
    return "Forgather" + (root.removesuffix("ForCausalLM").removesuffix("CausalLM").removesuffix("LM") or root)


def model_type_of(root: str) -> str:
    """`ForgatherTinyLlama` as `forgather_tiny_llama`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", prefix_of(root)).lower()


def configuration(root: str, defaults: Mapping[str, Any]) -> str:
    """Text of `configuration_*.py`; `defaults` are the keys of config.json that say what model.py is."""
    return Template(_CONFIGURATION).substitute(
        PREFIX=prefix_of(root),
        TYPE=model_type_of(root),
        DEFAULTS=pprint.pformat(dict(defaults), width=110, sort_dicts=False),
        FIXED=repr(tuple(name for name in FIXED if name in defaults)),
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
        INITIALISE="None" if facts.initialise is None else facts.initialise,
        EMBEDDING=repr(facts.embedding),
        HEAD=repr(facts.head),
        LAYERS=repr(facts.layers),
        CACHE=repr(facts.cache),
        DOCUMENTS=repr(facts.documents),
        TIED=repr(facts.tied),
        BUFFERS=repr(facts.buffers),
    )


_CONFIGURATION = '''"""The configuration of model.py for transformers 4.57 and 5. Written by forgather_dsl."""

from transformers import PretrainedConfig

DEFAULTS = $DEFAULTS
# What model.py has built in: config.json repeats it for tools that read sizes there, and is refused if it says otherwise.
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
