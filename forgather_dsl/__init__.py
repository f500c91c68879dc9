"""forgather_dsl: experiments as Python classes, pipeline parallelism for consumer GPUs, models that stand alone.

    from forgather_dsl import Experiment, Llama, Trainer, patch

The public names are loaded when they are first used; none of them imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import dsl, specs
    from .dsl import (
        REQUIRED,
        ConfigError,
        Cycle,
        Factory,
        Lazy,
        build,
        call,
        check,
        derived,
        diff,
        digest,
        explain,
        graph,
        load,
        override,
        patch,
        replace,
        snapshot,
        swap,
    )
    from .errors import UserError
    from .runs.report import report
    from .runs.run import Run
    from .runs.sweep import Sweep
    from .specs import *  # noqa: F403
    from .train.trainer import Trainer

__version__ = "0.1.0"

_PLACES = {
    "report": ".runs.report",
    "Trainer": ".train.trainer",
    "Run": ".runs.run",
    "Sweep": ".runs.sweep",
    "UserError": ".errors",
}

__all__ = [
    "BF16",
    "DDP",
    "FP8",
    "FP32",
    "FSDP2",
    "GELUMLP",
    "HF",
    "MLP",
    "REQUIRED",
    "SGD",
    "Adafactor",
    "AdamW",
    "AfterBackward",
    "Attention",
    "Auto",
    "AutoParallel",
    "AutoRecompute",
    "BF16Mixed",
    "Bytes",
    "Chat",
    "ChatSource",
    "Checkpoints",
    "ChunkedCrossEntropy",
    "ConfigError",
    "Console",
    "Constant",
    "CrossEntropy",
    "Cycle",
    "DualPipeV",
    "Experiment",
    "Factory",
    "FullRecompute",
    "GPipe",
    "GroupedQueryAttention",
    "Guard",
    "HFTokenizer",
    "InBackward",
    "Init",
    "Interleaved",
    "JsonLines",
    "KeepAttention",
    "LRSchedule",
    "LayerNorm",
    "Lazy",
    "Lion",
    "Llama",
    "Llama3Rope",
    "Logger",
    "LoopedBFS",
    "Loss",
    "Model",
    "Muon",
    "NoRecompute",
    "NoRope",
    "Norm",
    "NormalInit",
    "NormsAndActivation",
    "OnHost",
    "OneFOneB",
    "Optimizer",
    "Parallel",
    "Parquet",
    "Pipeline",
    "PositionCode",
    "Precision",
    "RMSNorm",
    "ReLUSquaredMLP",
    "Recompute",
    "Rope",
    "Run",
    "Sampling",
    "Schedule",
    "ScheduleFile",
    "Single",
    "SlidingWindow",
    "Source",
    "Spike",
    "Stdlib",
    "StdlibChat",
    "Sweep",
    "SwiGLU",
    "TensorBoard",
    "TextFiles",
    "Tokenizer",
    "TokenizerFile",
    "Trackio",
    "TrainedBPE",
    "Trainer",
    "Update",
    "UserError",
    "VHalf",
    "VMin",
    "WandB",
    "WarmupCosine",
    "WarmupStableDecay",
    "Watchdog",
    "ZeroBubble",
    "ZeroBubbleH1",
    "ZeroBubbleH2",
    "ZeroBubbleV",
    "build",
    "call",
    "check",
    "derived",
    "diff",
    "digest",
    "explain",
    "graph",
    "load",
    "override",
    "patch",
    "replace",
    "report",
    "snapshot",
    "swap",
]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name], __name__), name)
    if not name.startswith("_"):
        for place in ("specs", "dsl"):
            module = importlib.import_module(f".{place}", __name__)
            if name == place:
                return module
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
