"""A model that is only evaluated: the weights of a run, a checkpoint or a Hugging Face folder in one process, whatever they were
trained on. It computes what evaluation in training computes: the same sequences, microbatches, formats and sums.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.order import IGNORED, Sequences
from ..dsl import build, replace
from ..parallel.group import join, make_mesh
from ..plan.layout import lay_out
from ..specs import CrossEntropy, Experiment, OnHost, Single
from ..specs.experiment import world_size
from ..train.agreement import Ranks
from ..train.assembly import make_loss
from ..train.batches import make_loader
from ..train.checkpoint.folder import place
from ..train.evaluate import Evaluation, score
from ..train.first_weights import open_weights
from ..train.optim.engine import Engine
from ..train.optim.weights import weights_of
from ..train.prepare import tokenized
from ..train.repeatable import repeatable
from ..train.strategy import make_pipeline

__all__ = ["Scorer"]


class Scorer:
    """The model of `experiment` with the weights at `path`.

    Raises UserError when they are not those of the model, and for a text shorter than one sequence.
    """

    def __init__(self, path: str, experiment: Experiment) -> None:
        alone = {"parallel": Single(), "microbatch_size": experiment.microbatch_size}
        self.experiment = experiment if world_size(experiment) == 1 else replace(experiment, **alone)
        world = join()
        self.device = world.device
        self.pipeline = make_pipeline(self.experiment, lay_out(self.experiment), world, make_mesh(world, 1))
        self.loss_fn: Any = make_loss(self.experiment, world.device)
        self.parameters = dict(self.pipeline.named_parameters())
        self.ranks = Ranks(world, list(self.parameters))
        self.tokenizer: Any = build(experiment.tokenizer)
        source = open_weights(self, path)
        self.where = source.where
        rounding = self._rounding()
        with torch.no_grad():
            for name, tensor in source.read(list(self.parameters), {}):  # rounded as the optimizer rounds masters
                weights_of(self.parameters[name], {}, rounding).take(tensor)

    @property
    def step(self) -> int | None:
        """Of the checkpoint; None of a folder of Hugging Face."""
        at = place(os.path.abspath(self.where))
        return None if at is None else at[0]

    def _rounding(self) -> str:
        """How weights narrower than their masters follow from them: see `Engine`, `Foreign` and `HostOptimizer`."""
        from ..dsl.imports import import_target

        target = import_target(type(self.experiment.optimizer))
        own = isinstance(target, type) and issubclass(target, Engine)
        exact = not own or isinstance(self.experiment.update, OnHost)
        return "exact" if exact else getattr(build(self.experiment.precision), "rounding", "exact")

    def tokens(self, source: Any) -> Any:
        """The tokens of a built source, from the cache or made."""
        return tokenized(source, self.tokenizer)

    def loader(self, tokens: Any) -> Sequences:
        """Its sequences, in order."""
        return make_loader(self.experiment, tokens, self.tokenizer.eos_id)

    def evaluate(self, tokens: Any) -> Evaluation:
        """The loss over all of it."""
        with repeatable(self.experiment.deterministic, self.device):
            return score(self, self.loader(tokens), float)

    def token_losses(self, tokens: Any) -> np.ndarray:
        """Nats of each target in the order of the text, fp32 [num_tokens - 1].

        By cross entropy in one piece, where training may cut it into chunks, whose sums round otherwise.
        """
        found: list[Tensor] = []

        def record(logits: Tensor, targets: Tensor) -> Tensor:
            flat, wanted = logits.flatten(0, 1).float(), targets.flatten()
            losses = F.cross_entropy(flat, wanted, ignore_index=IGNORED, reduction="none")
            found.append(losses[wanted != IGNORED].cpu())
            return losses.sum()

        loader, spec = self.loader(tokens), self.experiment
        before, self.loss_fn = self.loss_fn, record
        try:
            with repeatable(spec.deterministic, self.device):
                score(self, loader, float)
        finally:
            self.loss_fn = before
        return torch.cat(found).numpy()


def plain_loss(experiment: Experiment) -> Experiment:
    """The same with a loss that sees the logits of every token."""
    plain = type(experiment.loss) is CrossEntropy
    return experiment if plain else replace(experiment, loss=CrossEntropy())
