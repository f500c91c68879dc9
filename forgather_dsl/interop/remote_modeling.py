"""`modeling_*.py` as a template: the class with which transformers loads, saves, trains and runs an emitted model.

Upper-case names behind $ are filled in by `remote_files.modeling`. What differs between versions of transformers is said
where it is met.
"""

from __future__ import annotations

MODELING = '''"""The network of model.py as a model of transformers 4.57 and 5. Written by forgather_dsl.

model.py stands alone and knows nothing of this file, which adds what transformers expects of a causal language model:
loading and saving, padded batches, a loss, generate() with a cache, checkpointed layers, another size of vocabulary.
"""

import torch
import transformers
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_$TYPE import DEFAULTS, FIXED, ${PREFIX}Config
from .inputs_$TYPE import (
    LayerCache,
    Taps,
    checkpoint_layers,
    documents_of,
    kept,
    refuse,
    resized,
    without_weights,
)
from .model import $NAMES

# modules of the network by path
EMBEDDING = $EMBEDDING
HEAD = $HEAD
LAYERS = $LAYERS
# whether forward takes a cache, and ids of documents, which attention does not cross
CACHE = $CACHE
DOCUMENTS = $DOCUMENTS
# parameter -> the one whose tensor it shares; buffers that no file holds; what fills the weights of (network, seed)
TIED = $TIED
BUFFERS = $BUFFERS
INITIALISE = $INITIALISE
V5 = int(transformers.__version__.partition(".")[0]) >= 5
# transformers 5.24 calls "cache" what all versions before it called "past_key_values"
CACHE_NAME = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"


class ${PREFIX}PreTrainedModel(PreTrainedModel):
    """The network, and how transformers loads, saves, fills and resizes it."""

    config_class = ${PREFIX}Config
    base_model_prefix = "$NAME"  # names in files are those of model.py: transformers puts this before them
    main_input_name = "input_ids"
    supports_gradient_checkpointing = LAYERS is not None
    _supports_sdpa = True
    _no_split_modules = ["$ROOT"]
    _tied_weights_keys = {f"$NAME.{alias}": f"$NAME.{owner}" for alias, owner in TIED.items()}
    if not V5:
        _tied_weights_keys = list(_tied_weights_keys)

    def __init__(self, config):
        super().__init__(config)
        changed = [name for name in FIXED if getattr(config, name) != DEFAULTS[name]]
        if changed:
            raise ValueError(
                f"the configuration says {changed[0]}={getattr(config, changed[0])!r}, but model.py is written for "
                f"{DEFAULTS[changed[0]]!r}: export another model instead of changing this one"
            )
        self.$NAME = $BUILD()
        self.gradient_checkpointing = False
        if config.vocab_size != DEFAULTS["vocab_size"]:
            self.set_input_embeddings(resized(self.get_input_embeddings(), config.vocab_size))
            self.set_output_embeddings(resized(self.get_output_embeddings(), config.vocab_size))
        self.post_init()

    def get_input_embeddings(self):
        return self.$NAME.get_submodule(EMBEDDING)

    def set_input_embeddings(self, value):
        self._replace(EMBEDDING, value)

    def get_output_embeddings(self):
        return None if HEAD is None else self.$NAME.get_submodule(HEAD)

    def set_output_embeddings(self, value):
        self._replace(HEAD, value)

    def _replace(self, path, module):
        parent, _, name = path.rpartition(".")
        setattr(self.$NAME.get_submodule(parent), name, module)

    def resize_token_embeddings(self, new_num_tokens=None, *args, **kwargs):
        if HEAD is None and new_num_tokens is not None:
            raise ValueError("the output of model.py is no linear layer, so its vocabulary keeps its size")
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)

    @torch.no_grad()
    def initialize_weights(self):
        """First weights for what no file filled, and the buffers that no file holds.

        transformers 5 makes models without memory and leaves such buffers with what was in theirs, without a word.
        """
        named = self.$NAME.state_dict(keep_vars=True)
        missing = [name for name, tensor in named.items() if not getattr(tensor, "_is_hf_initialized", False)]
        if len(missing) == len(named):  # made from a configuration: constructors have run
            if INITIALISE is not None:
                INITIALISE(self.$NAME, int(torch.randint(2**31, ())))
        elif missing:
            with torch.device("cpu"):
                new = $BUILD()
            if INITIALISE is not None:
                INITIALISE(new, int(torch.randint(2**31, ())))
            self._copy_from(new, missing)
        elif BUFFERS and V5:
            with torch.device("cpu"), without_weights():
                new = $BUILD()
            self._copy_from(new, [])

    def _copy_from(self, new, missing):
        values = dict(new.named_buffers()) | new.state_dict()
        here = dict(self.$NAME.named_buffers()) | self.$NAME.state_dict(keep_vars=True)
        for name in (*BUFFERS, *missing):
            if here[name].shape == values[name].shape:
                here[name].copy_(values[name])
            else:  # rows of a vocabulary of another size
                here[name].normal_(std=float(values[name].std()))

    def save_pretrained(self, save_directory, is_main_process=True, state_dict=None, **kwargs):
        """Under the names of model.py, whose own loader reads what is written."""
        state = self.state_dict() if state_dict is None else state_dict
        state = {name.removeprefix("$NAME."): tensor for name, tensor in state.items()}
        state = {name: tensor for name, tensor in state.items() if name not in TIED}
        super().save_pretrained(save_directory, is_main_process=is_main_process, state_dict=state, **kwargs)

    def _set_gradient_checkpointing(self, enable=True, gradient_checkpointing_func=checkpoint, every_n_layers=1):
        self.gradient_checkpointing = enable
        func = gradient_checkpointing_func if enable else None
        checkpoint_layers(self.$NAME.get_submodule(LAYERS), func, every_n_layers)

    def _run(self, input_ids, attention_mask, position_ids, past, use_cache, keep, hidden, more):
        """The network once: (logits, last hidden states, what every output has)."""
        refuse(input_ids, more)
        past = self._cache(past, use_cache)
        seen = 0 if past is None else past.get_seq_length()
        documents = documents_of(input_ids.shape, seen, attention_mask, position_ids, DOCUMENTS)
        arguments = {}
        if past is not None:
            arguments["cache"] = LayerCache(past)
        if documents is not None:
            arguments["documents"] = documents.to(input_ids.device)
        with Taps(self.$NAME, HEAD, LAYERS, keep, hidden) as taps:
            logits = self.$NAME(input_ids, **arguments)
        if HEAD is None:
            logits = kept(logits, keep)
        return logits, taps.last, {CACHE_NAME: past, "hidden_states": tuple(taps.hidden) if hidden else None}

    def _cache(self, past, use_cache):
        """The cache of this call, a new one if none was given and one is wanted."""
        if past is not None and not CACHE:
            raise ValueError("this model has no cache: write use_cache=False")
        if past is not None and not isinstance(past, DynamicCache):
            raise ValueError(f"{type(past).__name__} does not fit this model, whose cache grows: write DynamicCache()")
        if self.gradient_checkpointing and self.training:
            if past is not None:
                raise ValueError("checkpointed layers run twice and would fill a cache twice: write use_cache=False")
            return None
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        return DynamicCache() if past is None and use_cache and CACHE else past


class ${PREFIX}Model(${PREFIX}PreTrainedModel):
    """Tokens to the hidden states that the head is given."""

    def __init__(self, config):
        if HEAD is None:
            raise ValueError("the output of model.py is no linear layer: nothing says what its last hidden states are")
        super().__init__(config)

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        cache=None,
        use_cache=None,
        output_hidden_states=None,
        return_dict=None,
        **kwargs,
    ):
        past = past_key_values if cache is None else cache
        _, last, common = self._run(
            input_ids, attention_mask, position_ids, past, use_cache, 1, output_hidden_states, kwargs
        )
        output = BaseModelOutputWithPast(last_hidden_state=last, **common)
        return output.to_tuple() if return_dict is False else output


class ${PREFIX}ForCausalLM(${PREFIX}PreTrainedModel, GenerationMixin):
    """Tokens to logits, and to a loss where labels are given (-100 counts for nothing)."""

    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        if CACHE:
            return super().prepare_inputs_for_generation(input_ids, **kwargs)
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask")}  # always the whole text

    def forward(
        self,
        input_ids=None,
        attention_mask=None,
        position_ids=None,
        past_key_values=None,
        cache=None,
        labels=None,
        use_cache=None,
        output_hidden_states=None,
        return_dict=None,
        logits_to_keep=0,
        **kwargs,
    ):
        past = past_key_values if cache is None else cache
        of_loss = {k: kwargs.pop(k) for k in ("num_items_in_batch", "shift_labels", "ignore_index") if k in kwargs}
        logits, _, common = self._run(
            input_ids, attention_mask, position_ids, past, use_cache, logits_to_keep, output_hidden_states, kwargs
        )
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **of_loss)
        output = CausalLMOutputWithPast(loss=loss, logits=logits, **common)
        return output.to_tuple() if return_dict is False else output
'''
