"""What a rank trains of the parameters that it computes with: all of them, or its replica's share.

In: a pipeline, its place in the mesh. Out: parameters for the optimizer and checkpoints. Replicas that share the state have
all weights of their stages and update some rows of every matrix, views of the whole ones (ZeRO stages 1 and 2, arXiv
1910.02054): each row's gradient is summed on the replica that owns it, which sends the row to the others after an update. The
bytes are those of plain replicas. Vectors, matrices with fewer rows than replicas and a spread head are whole everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn as nn

from forgather_dsl.parallel.failures import PeerLost
from forgather_dsl.parallel.group import Mesh
from forgather_dsl.parallel.interpreter import Pipeline
from forgather_dsl.parallel.progress import PROGRESS
from forgather_dsl.parallel.shard import Rows
from forgather_dsl.parallel.shard_messages import Gather, ReduceScatter

__all__ = ["Owner", "SharedState"]


class Owner:
    """A rank that trains what its engine names."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """What the optimizer steps, by full name."""
        return self.pipeline.named_parameters()

    def rows(self) -> dict[str, Rows]:
        """Of every parameter that is cut by rows among ranks: the rows that this rank's part of it has."""
        return self.pipeline.rows()

    def counted(self) -> set[str]:
        """Names of the parameters of which this rank's numbers stand for all ranks that have the same."""
        return self.pipeline.counted()

    def summed_later(self) -> set[str]:
        """Names of the parameters whose gradients replicas still have to add up."""
        return self.pipeline.summed_later()

    def exchange_gradients(self) -> None:
        """After the last backward and the sums."""

    def exchange_weights(self) -> None:
        """After weights have changed."""


class SharedState(Owner):
    """A replica that trains its rows of the matrices of its stages."""

    def __init__(self, pipeline: Pipeline, mesh: Mesh) -> None:
        super().__init__(pipeline)
        assert mesh.peers is not None
        self.mesh, self.group = mesh, mesh.peers
        spread = None if pipeline.shard is None else pipeline.shard.name
        self.whole = {
            name: p
            for name, p in pipeline.named_parameters()
            if name != spread and p.ndim > 1 and len(p) >= mesh.replicas
        }
        self._rows: dict[str, Rows] = {}
        self._own: dict[str, nn.Parameter] = {}
        for name, parameter in self.whole.items():
            each = self._each(parameter)
            start = min(each * mesh.replica, len(parameter))
            count = min(each, len(parameter) - start)
            self._rows[name] = Rows(tuple(parameter.shape), start, count)
            self._own[name] = nn.Parameter(parameter.detach()[start : start + count], parameter.requires_grad)
            self._own[name].grad_dtype = parameter.grad_dtype

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This replica's rows, or all of what is whole."""
        for name, parameter in self.pipeline.named_parameters():
            yield name, self._own.get(name, parameter)

    def rows(self) -> dict[str, Rows]:
        """And of a spread head."""
        return {**self.pipeline.rows(), **self._rows}

    def counted(self) -> set[str]:
        """Rows are counted where they are."""
        return self.pipeline.counted() | set(self._own)

    def summed_later(self) -> set[str]:
        """What is whole."""
        return self.pipeline.summed_later() - set(self._own)

    @torch.no_grad()
    def exchange_gradients(self) -> None:
        """The sums over replicas of this one's rows; gradients of whole matrices go.

        Raises PeerLost when a replica is gone.
        """
        used = [name for name, p in self.whole.items() if p.requires_grad]
        for name in sorted(used):
            parameter, own = self.whole[name], self._own[name]
            if parameter.grad is None:  # a layer that this replica never used
                parameter.grad = torch.zeros_like(parameter, dtype=parameter.grad_dtype)
            sent = self._padded(parameter.grad)
            parameter.grad = None
            into = sent.new_empty(len(sent) // self.mesh.replicas, *sent.shape[1:])
            PROGRESS.wait("the other replicas", "gradients")
            try:
                if self.mesh.wire.type == "cuda":
                    dist.reduce_scatter_tensor(into, sent, group=self.group)
                else:
                    ReduceScatter()(into.view(-1), sent.view(-1), self.group, dist.ReduceOp.SUM)
            except RuntimeError as error:
                raise PeerLost("another replica", "adding up gradients", error) from error
            PROGRESS.resume()
            own.grad = into[: len(own)].to(own.device)

    @torch.no_grad()
    def exchange_weights(self) -> None:
        """Every replica's rows into the whole matrices. Raises PeerLost when a replica is gone."""
        for name in sorted(self.whole):
            parameter, own = self.whole[name].detach(), self._own[name].detach()
            each = self._each(parameter)
            sent = torch.zeros(each, *parameter.shape[1:], dtype=parameter.dtype, device=self.mesh.wire)
            sent[: len(own)] = own
            everything = sent.new_empty(each * self.mesh.replicas, *parameter.shape[1:])
            Gather()(everything, sent, self.group)
            parameter.copy_(everything[: len(parameter)])

    def _each(self, parameter: torch.Tensor) -> int:
        return -(-len(parameter) // self.mesh.replicas)

    def _padded(self, gradient: torch.Tensor) -> torch.Tensor:
        """Rows for every replica, on the wire's device."""
        missing = self._each(gradient) * self.mesh.replicas - len(gradient)
        gradient = gradient.to(self.mesh.wire)
        return torch.cat([gradient, gradient.new_zeros(missing, *gradient.shape[1:])]) if missing else gradient
