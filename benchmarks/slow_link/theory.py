"""What the emulation should cost on paper: bytes on the wire of each way to train, link rates, and the least that FSDP can take.

P bytes of parameters over N ranks, ring collectives: an all-gather or a reduce-scatter sends (N - 1) / N P from each rank, an
all-reduce twice that. FSDP gathers in the forward, again in the backward, and reduces gradients: three legs. rho is the time
of these three over the time of computing; for real cards it does not depend on the model's size:
rho = (N - 1) F b / (2 BW T) with F flop/s of a card, b bytes of a parameter, BW bytes/s, T tokens of a step over all cards.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RHOS", "Ring", "Setting", "card_rho", "least_seconds", "within"]

RHOS = {0.0: "no limit", 0.92: "PCIe x16, 12 GB/s", 1.83: "PCIe x8, 6 GB/s", 3.66: "PCIe x4, 3 GB/s", 10.0: "10 GbE"}
"""Of the ranks' links, and what comes near for a 7B model on four 24 GB cards without peer to peer, 16,384 tokens a step."""
TOLERANCE = 0.02  # of counted bytes, beside the formula


@dataclass(frozen=True)
class Setting:
    """What is emulated. `seconds` of computing per rank and step; one microbatch is one sequence."""

    ranks: int = 4
    microbatches: int = 8
    layers: int = 8
    seconds: float = 2.0
    layer_floats: int = 2**19
    tokens: int = 5  # of a microbatch; the message is 20 KiB, in the proportion to the weights of a 7B model

    @property
    def parameter_bytes(self) -> int:
        """Of the whole model, in fp32."""
        return self.layers * self.layer_floats * 4

    @property
    def share(self) -> float:
        """Seconds of one F, I or W of one sequence in one layer."""
        return self.seconds * self.ranks / (3 * self.layers * self.microbatches)

    def rate(self, rho: float) -> float | None:
        """Bits per second of each link, for FSDP's three legs to take rho times the computing; None: no limit."""
        return 8 * Ring.of(self).fsdp / (rho * self.seconds) if rho else None


@dataclass(frozen=True)
class Ring:
    """Bytes that a rank sends in a step, by the way to train."""

    leg: float

    @staticmethod
    def of(setting: Setting) -> Ring:
        """For a setting."""
        return Ring((setting.ranks - 1) / setting.ranks * setting.parameter_bytes)

    @property
    def fsdp(self) -> float:
        """Two gathers, one reduce-scatter."""
        return 3 * self.leg

    @property
    def fsdp_shipped(self) -> float:
        """The same over gloo, whose reduce-scatter is an all-reduce."""
        return 4 * self.leg

    @property
    def fsdp_keeping(self) -> float:
        """One gather, as weights stay whole from the forward to the backward, and one reduce-scatter."""
        return 2 * self.leg

    @property
    def ddp(self) -> float:
        """An all-reduce of the gradients."""
        return 2 * self.leg


def least_seconds(computing: float, sent: float, rate: float | None) -> float:
    """Of a step that sends `sent` bytes at `rate` bits/s and hides all of it, or all of the computing, behind the other."""
    return max(computing, 8 * sent / rate if rate else 0.0)


def within(counted: float, expected: float) -> bool:
    """Whether counted bytes are those of the formula, to 2 %."""
    return abs(counted - expected) <= TOLERANCE * expected


def card_rho(cards: int, flops: float, bytes_per_parameter: float, bandwidth: float, tokens: int) -> float:
    """rho of real cards: FSDP's three legs over 6 flop per parameter and token, times 4/3 for recomputing."""
    legs = 3 * (cards - 1) / cards * bytes_per_parameter / bandwidth
    return legs / (8 * tokens / (cards * flops))
