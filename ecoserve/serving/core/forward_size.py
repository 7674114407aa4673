"""The target forward size: tokens in one forward at which the machine's throughput saturates.

A small forward takes as long as reading the weights, a large one as long as computing its tokens. Prompts are free up
to where the one becomes the other; beyond it they only delay the decodes beside them.

Of forwards timed at several sizes, the target is the smallest size that gives ``SATURATION`` of the best throughput;
between two sizes the time is taken to be linear. EcoServe (arXiv 2411.06364) fills prompts up to such a size; how it is
found is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

#: Share of the best throughput that counts as saturated.
SATURATION: Final = 0.9
#: If the largest size is better by this factor than the one before it, throughput has not saturated.
_RISING: Final = 1.03


@dataclass(frozen=True, slots=True)
class ForwardSize:
    """The result of a profile of forwards.

    Attributes:
        tokens: the target forward size.
        best_tokens_per_s: throughput at the best size.
        saturated: False if throughput still rises at the largest size: the target forward size is then too small.
    """

    tokens: int
    best_tokens_per_s: float
    saturated: bool


def profile_sizes(largest: int, smallest: int = 16) -> list[int]:
    """Sizes to time: powers of two and the middle between each two, up to ``largest``, which is the last."""
    out = []
    size = smallest
    while size < largest:
        out += [size, size + size // 2]
        size *= 2
    return [n for n in out if n < largest] + [largest]


def target_forward_size(times: Sequence[tuple[int, float]], saturation: float = SATURATION) -> ForwardSize:
    """The target forward size of a machine.

    Args:
        times: (tokens, seconds) of forwards, sizes ascending; at least two.
        saturation: share of the best throughput, 0..1.
    """
    assert len(times) >= 2
    assert all(a[0] < b[0] for a, b in pairwise(times))
    rates = [n / s for n, s in times]
    best = max(rates)
    goal = saturation * best
    k = next(i for i, rate in enumerate(rates) if rate >= goal)
    tokens = float(times[k][0])
    if k > 0:
        (n0, s0), (n1, s1) = times[k - 1], times[k]
        slope = (s1 - s0) / (n1 - n0)
        # n / (s0 + slope (n - n0)) = goal
        tokens = min(float(n1), max(float(n0), goal * (s0 - slope * n0) / (1 - goal * slope)))
    return ForwardSize(max(1, round(tokens)), best, rates[-1] <= _RISING * max(rates[:-1]))
