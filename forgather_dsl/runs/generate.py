"""Text from a run's newest checkpoint, on one process whatever the run was trained on."""

from __future__ import annotations

import os

import torch

from ..data.chat_prompt import ask
from ..dsl import build
from ..errors import UserError
from ..models.cache import KVCache, decoding
from ..models.init import tie_weights
from ..parallel.group import World
from ..specs import ChatSource, Experiment
from ..train import checkpoint
from ..train.agreement import Ranks
from ..train.prepare import check_sources
from ..train.repeatable import repeatable
from ..train.sampling import picker
from ..train.weights import expected, require_same, stored


@torch.inference_mode()
def generate(
    path: str,
    experiment: Experiment,
    prompt: str,
    max_new_tokens: int,
    *,
    temperature: float,
    top_k: int | None,
    seed: int,
    chat: bool,
) -> str:
    """The prompt and up to `max_new_tokens` tokens more; ends early at a document boundary.

    With `chat` the prompt is a user's message, written by the run's template, and its answer alone is returned.
    """
    if chat and not isinstance(experiment.data, ChatSource):
        name = type(experiment.data).__name__
        raise UserError(f"{path} was not trained on chat data but on {name}, so it has no template; leave out --chat")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = _model(path, experiment, device)
    sources = check_sources(experiment)
    tokenizer = build(experiment.tokenizer, memo=sources.memo)
    pick, cache = picker(temperature, top_k, seed), KVCache()
    added: list[int] = []
    tokens, end = (
        ask(sources.train, tokenizer, prompt)
        if chat
        else ([tokenizer.eos_id, *tokenizer.encode(prompt)], tokenizer.eos_id)
    )
    with decoding(), repeatable(experiment.deterministic, device):
        while len(added) < max_new_tokens:
            logits = model(torch.tensor([tokens], device=device), None, cache)
            token = pick(logits[0, -1])
            if token == end:
                break
            added.append(token)
            tokens = [token]
    return tokenizer.decode(added).strip() if chat else prompt + tokenizer.decode(added)


def _model(path: str, experiment: Experiment, device: torch.device) -> torch.nn.Module:
    """With the weights of the newest checkpoint. Raises UserError: there is none."""
    saved = checkpoint.newest(os.path.join(path, "checkpoints"), Ranks(World(0, 1, device, None), []))
    if saved is None:
        raise UserError(
            f"{path} has no checkpoint to generate from; train it, or write save_every = ... for earlier ones"
        )
    found = stored(saved)
    require_same(saved.path, found, expected(experiment.model, len(found)))
    with torch.device("meta"):
        model: torch.nn.Module = build(experiment.model)
    model.to_empty(device=device)
    tie_weights(model)
    parameters = dict(model.named_parameters())
    shapes = {f"weights/{name}": tuple(parameter.shape) for name, parameter in parameters.items()}
    if (wrong := saved.problem(shapes, {})) is not None:
        raise UserError(wrong)
    for key, tensor in saved.tensors(shapes):
        parameters[key.removeprefix("weights/")].copy_(tensor)
    return model.eval()
