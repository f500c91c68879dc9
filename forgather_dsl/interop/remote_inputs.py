"""`inputs_*.py` as text: masks and positions of transformers as documents, its caches under our names, taps on a forward.

The same for every model; it stands beside `modeling_*.py` in the folder, because such a folder imports nothing of ours.
"""

from __future__ import annotations

INPUTS = '''"""What transformers passes to a model, as the network in model.py takes it. Written by forgather_dsl."""

import contextlib
import functools

import torch
from torch import nn


class LayerCache:
    """A cache of transformers under the names that the layers of model.py use."""

    def __init__(self, cache):
        self.cache = cache

    @property
    def length(self):
        return self.cache.get_seq_length()

    def update(self, layer_index, k, v):
        return self.cache.update(k, v, layer_index)


class Taps:
    """While open: the head sees the last `keep` tokens alone (0: all; or indices), and its inputs are kept.

    With `hidden`, so are the inputs of all layers.
    """

    def __init__(self, network, head, layers, keep, hidden):
        if hidden and (layers is None or head is None):
            raise ValueError("output_hidden_states: model.py has no list of layers in front of a linear head")
        self.hidden, self.last, self.keep, self.hooks = [], None, keep, []
        self.tapped = [network.get_submodule(head)] if head is not None else []
        self.layers = list(network.get_submodule(layers)) if hidden else []

    def __enter__(self):
        self.hooks = [layer.register_forward_pre_hook(self._before_layer) for layer in self.layers]
        self.hooks += [head.register_forward_pre_hook(self._before_head) for head in self.tapped]
        return self

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()

    def _before_layer(self, layer, args):
        self.hidden.append(args[0])

    def _before_head(self, head, args):
        self.last = args[0]
        self.hidden.append(self.last)
        return (kept(self.last, self.keep),)


def kept(x, keep):
    """The last `keep` tokens of `[batch, seq, ...]`; all for 0; those at these places for a tensor."""
    if not isinstance(keep, int):
        return x[:, keep]
    return x[:, -keep:] if keep else x


def refuse(input_ids, more):
    """What cannot be had is refused, not passed over: `more` are the arguments that forward has no name for."""
    if input_ids is None or more.get("inputs_embeds") is not None:
        raise ValueError("the network in model.py takes tokens: pass input_ids, not inputs_embeds")
    if more.get("output_attentions"):
        raise ValueError("output_attentions: attention here never writes its weights out")
    expected = ("output_attentions", "inputs_embeds", "cache_position")  # positions are known from the cache
    unknown = [name for name, value in more.items() if value is not None and name not in expected]
    if unknown:
        raise TypeError(f"forward() got {', '.join(unknown)}, which this model has no use for")


def documents_of(shape, seen, attention_mask, position_ids, possible):
    """Ids that attention must not cross, of the `seen` tokens in the cache and the new ones; None: causal is enough.

    `possible`: the network knows documents, and distances only, so that padding on the left may count as positions.
    Positions that start anew are documents packed into a row, as in transformers, where no mask is given.
    ValueError: what was asked for cannot be had.
    """
    total = seen + shape[1]
    if attention_mask is not None and attention_mask.shape not in ((shape[0], total), (1, total)):
        raise ValueError(
            f"attention_mask has shape {list(attention_mask.shape)}: write ones and zeros [{shape[0]}, {total}], for "
            f"{seen} cached and {shape[1]} new tokens"
        )
    device = next((x.device for x in (position_ids, attention_mask) if x is not None), None)
    if device is None:
        return None
    if attention_mask is None:
        mask = torch.ones(1, total, dtype=torch.bool, device=device)
    else:
        mask = attention_mask.to(device).bool()
    if position_ids is not None:
        restarts = _restarts(position_ids, mask, seen, attention_mask is not None, possible)
        if restarts is not None:
            return restarts
    if not bool((mask[:, 1:] & ~mask[:, :-1]).any()):  # what is left out stands behind: no token looks there
        return None
    if not possible:
        raise ValueError("this model cannot leave out what stands before other tokens: pad on the right, or not at all")
    return mask.long()


def _restarts(position_ids, mask, seen, masked, possible):
    """Refuse positions that are not the distances within the row; ids of documents where they start anew."""
    positions = position_ids
    if seen:  # the cached tokens have those that generate() counts
        positions = mask.long().cumsum(1) - 1
        if bool(((position_ids != positions[:, seen:]) & mask[:, seen:]).any()):
            raise ValueError("position_ids do not go on where the cache ends: leave them out")
    shift = positions - torch.arange(mask.shape[1], device=mask.device)
    if not possible and bool(((shift != 0) & mask).any()):
        raise ValueError("the network in model.py counts positions itself, from 0: leave position_ids out")
    first = shift.masked_fill(~mask, shift.max() + 1).amin(1, keepdim=True)
    if not bool(((shift != first) & mask).any()):
        return None
    if masked or seen:
        raise ValueError(
            "positions jump within a row, which this network cannot follow: leave position_ids out; without cache and "
            "attention_mask they may start anew with each document"
        )
    return nn.functional.pad((shift[:, 1:] != shift[:, :-1]).long().cumsum(1), (1, 0))


def checkpoint_layers(layers, func, every_n_layers):
    """Let every n-th layer keep its inputs only and run again for backward, through `func`; None: no layer."""
    for index, layer in enumerate(layers):
        layer.__dict__.pop("forward", None)
        if func is not None and index % every_n_layers == 0:
            layer.forward = functools.partial(_checkpointed, layer, func)


def _checkpointed(layer, func, *args, **kwargs):
    forward = functools.partial(type(layer).forward, layer, **kwargs)
    return func(forward, *args) if layer.training and torch.is_grad_enabled() else forward(*args)


def resized(module, size):
    """An embedding or head for another number of tokens; its weights come from a file."""
    if isinstance(module, nn.Embedding):
        return nn.Embedding(size, module.embedding_dim, padding_idx=module.padding_idx)
    if isinstance(module, nn.Linear):
        return nn.Linear(module.in_features, size, bias=module.bias is not None)
    raise ValueError(f"vocab_size={size}: the output of model.py is no linear layer, so its vocabulary keeps its size")


@contextlib.contextmanager
def without_weights():
    """Modules made inside have their buffers, but of parameters the shapes alone."""
    register = nn.Module.register_parameter

    def shape_alone(module, name, parameter):
        if parameter is not None:
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = shape_alone
    try:
        yield
    finally:
        nn.Module.register_parameter = register
'''
