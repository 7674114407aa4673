"""What GPUs send each other, where the measured collectives are not those of the machine at hand.

aiconfigurator's collectives were measured on servers whose GPUs reach each other directly. Two cards in a workstation
may have to go through the host's memory, at a quarter of the pace and with several times the latency. Whoever knows the
link of the machine states it; then it decides.
"""

from __future__ import annotations

from dataclasses import dataclass

from ecoserve.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Link:
    """The way between any two GPUs of a machine.

    Attributes:
        latency_s: seconds from the beginning of a collective to its first byte.
        bandwidth: bytes a second in each direction, when both are busy. One direction alone gets up to twice that: the
            host's memory, which both pass, is what they share.
    """

    latency_s: float
    bandwidth: float

    def __post_init__(self) -> None:
        if self.latency_s < 0 or self.bandwidth <= 0:
            raise ConfigError("a link needs a bandwidth above 0 and a latency of at least 0", where="link")

    def all_reduce_s(self, message: float, gpus: int) -> float:
        """Sum of ``message`` bytes, the same on all GPUs."""
        return self.latency_s * (gpus - 1) + 2 * (gpus - 1) / gpus * message / self.bandwidth

    def gather_s(self, pieces: list[float]) -> float:
        """Everybody gets everybody's piece (bytes, one a GPU); or sums of such pieces go to their owners."""
        gpus = len(pieces)
        return self.latency_s * (gpus - 1) + sum(pieces) * (gpus - 1) / gpus / self.bandwidth
