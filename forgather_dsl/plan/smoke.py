"""`--smoke`: an experiment shrunk to what any machine trains in seconds, to see that all of its parts work together.

In: an experiment. Out: the same with small sizes, and lines that say everything that changed. What makes the run what it is
stays: stages, schedule, number of microbatches, replicas, optimizer, precision, recomputing, the kinds of layers and the
ratios of their sizes. What has to be fetched from the hub becomes Python's own library.
"""

from __future__ import annotations

import os
from typing import Any

from ..dsl import ConfigError, Cycle, Lazy, diff, replace
from ..specs import (
    HF,
    Auto,
    Chat,
    ChatSource,
    Console,
    Experiment,
    HFTokenizer,
    Llama,
    Pipeline,
    SlidingWindow,
    Stdlib,
    StdlibChat,
    TrainedBPE,
)
from ..specs.experiment import world_size

__all__ = ["few_layers", "model_sizes", "smoke"]

DIM, SEQ_LEN, VOCAB_SIZE, STEPS = 64, 128, 512, 4
MOST_SEQUENCES = 2  # of a microbatch
NEW_TOKENS = 8
HELD_OUT = 0.02  # of the standard library: a few files


def smoke(experiment: Experiment) -> tuple[Experiment, list[str]]:
    """The small experiment, and what is different about it, a line for each part.

    Raises:
        ConfigError: a model whose sizes are not known here.
    """
    model = experiment.model
    if not isinstance(model, Llama):
        raise ConfigError(
            f"--smoke knows how to shrink Llama, not {type(model).__name__}; write small sizes yourself, "
            "such as --set model.num_layers=4 --set seq_len=128 --set steps=4"
        )
    small = replace(experiment, **_length(experiment), **_text(experiment))
    if small.eval_data is not None and _of_the_hub(small.eval_data):
        small = replace(small, eval_data=replace(Stdlib(held_out=HELD_OUT), split="held_out"))
    here = {name: source for name, source in small.eval_sets.items() if not _of_the_hub(source)}
    small = replace(small, eval_sets=here)
    sizes = model_sizes(model, few_layers(model, _num_stages(experiment)), small.seq_len / experiment.seq_len)
    tokenizers = experiment.tokenizer.vocab_size, small.tokenizer.vocab_size
    sizes["vocab_size"] = -(-model.vocab_size * tokenizers[1] // tokenizers[0])  # some have more rows than tokens
    small = replace(small, model=replace(model, **sizes))
    if isinstance(experiment.parallel, Pipeline):
        small = replace(small, parallel=_parallel(experiment, experiment.parallel, sizes["num_layers"]))
    return small, _told(experiment, small)


def _length(experiment: Experiment) -> dict[str, Any]:
    """A few steps of short sequences, as many microbatches as before; told on the console alone."""
    size = min(experiment.microbatch_size, MOST_SEQUENCES)
    sampling = experiment.sampling
    if sampling is not None:
        sampling = replace(sampling, max_new_tokens=min(NEW_TOKENS, sampling.max_new_tokens))
    return {
        "seq_len": min(experiment.seq_len, SEQ_LEN),
        "microbatch_size": size,
        "batch_size": experiment.batch_size // experiment.microbatch_size * size,
        "steps": min(experiment.steps or STEPS, STEPS),
        **dict.fromkeys(("tokens", "epochs", "seconds", "eval_every", "save_every", "sample_every")),
        "log_every": 1,
        "init_from": None,  # those weights are of the large model
        "sampling": sampling,
        "loggers": tuple(logger for logger in experiment.loggers if isinstance(logger, Console)),
    }


def _text(experiment: Experiment) -> dict[str, Any]:
    """Data and tokenizer, as they are where they are here and small."""
    data, tokenizer = experiment.data, experiment.tokenizer
    if _of_the_hub(data):
        data = StdlibChat(held_out=HELD_OUT) if isinstance(data, Chat) else Stdlib(held_out=HELD_OUT)
    if _of_the_hub(tokenizer):
        if isinstance(data, ChatSource):
            data = replace(data, template=StdlibChat().template)  # the other one knows another tokenizer
        tokenizer = TrainedBPE(vocab_size=VOCAB_SIZE, source=data)
    elif isinstance(tokenizer, TrainedBPE):
        source = data if _of_the_hub(tokenizer.source) or tokenizer.source == experiment.data else tokenizer.source
        tokenizer = replace(tokenizer, vocab_size=min(VOCAB_SIZE, tokenizer.vocab_size), source=source)
    return {"data": data, "tokenizer": tokenizer}


def _of_the_hub(spec: Lazy[Any]) -> bool:
    """Whether it would be fetched; all take the path of a local folder too."""
    path = spec.path if isinstance(spec, HF | HFTokenizer) else spec.dataset if isinstance(spec, Chat) else None
    return path is not None and not os.path.exists(path)


def model_sizes(model: Llama, num_layers: int, shorter: float) -> dict[str, Any]:
    """Widths in the proportions of the model's, and attention windows in proportion to the sequence."""
    sizes: dict[str, Any] = {"num_layers": num_layers, "attention": _windows(model.attention, shorter)}
    group = model.num_heads // model.num_kv_heads
    kv_heads = min(2, model.num_kv_heads)
    heads = kv_heads * group
    head_dim = max(2, DIM // heads // 2 * 2)  # even, as rotary embeddings need it
    dim = round(heads * head_dim * model.dim / (model.num_heads * model.head_dim) / 2) * 2
    if dim < model.dim:
        ffn_dim = max(8, round(model.ffn_dim * dim / model.dim / 8) * 8)
        sizes |= {"dim": dim, "num_heads": heads, "num_kv_heads": kv_heads, "head_dim": head_dim, "ffn_dim": ffn_dim}
    return sizes


def _windows(attention: Any, shorter: float) -> Any:
    if isinstance(attention, SlidingWindow):
        return replace(attention, window=max(1, round(attention.window * shorter)))
    if isinstance(attention, Cycle):  # type: ignore[arg-type]  # to type checkers it is a function
        return replace(attention, options=tuple(_windows(option, shorter) for option in attention.options))
    return attention


def few_layers(model: Llama, least: int) -> int:
    """The fewest from `least` up that give the model one of every kind."""
    cycles = [model.norm, model.attention, model.mlp, getattr(model.attention, "qk_norm", None)]
    kinds = [len(part.options) for part in cycles if isinstance(part, Cycle)]  # type: ignore[arg-type]  # as above
    return min(model.num_layers, max(least, *kinds, 1))


def _num_stages(experiment: Experiment) -> int:
    parallel = experiment.parallel
    if not isinstance(parallel, Pipeline):
        return 1
    if isinstance(parallel.schedule, Auto):
        return 2 * parallel.stages  # the most that it tries
    return len(parallel.schedule.__placement__(parallel.stages))


def _parallel(experiment: Experiment, parallel: Pipeline, num_layers: int) -> Pipeline:
    """Cuts in proportion; no measured times, which are those of other sizes; ranks may share what GPUs there are."""
    schedule: Any = parallel.schedule
    if getattr(schedule, "profile", None) is not None:
        schedule = replace(schedule, profile=None)
    cuts = parallel.cuts if parallel.cuts is None else _scaled(parallel.cuts, num_layers)
    return replace(parallel, schedule=schedule, cuts=cuts, ranks_per_gpu=world_size(experiment))


def _scaled(cuts: tuple[int, ...], num_layers: int) -> tuple[int, ...]:
    """A layer each, and the rest to whoever is furthest below its share."""
    small = [1] * len(cuts)
    while sum(small) < num_layers:
        small[min(range(len(cuts)), key=lambda stage: small[stage] / cuts[stage])] += 1
    return tuple(small)


def _told(experiment: Experiment, small: Experiment) -> list[str]:
    """Every difference, those of a part in a line; of a part that was exchanged nothing but that."""
    lines: dict[str, list[str]] = {}
    exchanged: list[str] = []
    for change in diff(experiment, small):
        if change.path.startswith(tuple(f"{path}." for path in exchanged)):
            continue
        if change.right in (Stdlib.__name__, TrainedBPE.__name__):
            exchanged.append(change.path)
        part, _, name = change.path.rpartition(".")
        head, _, rest = part.partition(".")
        lines.setdefault(head, []).append(f"{f'{rest}.{name}' if rest else name} {change.left} -> {change.right}")
    return [f"{head + ': ' if head else ''}{', '.join(texts)}" for head, texts in lines.items()]
