"""Names and small shapes that several parts of a profile's page share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final

from ecoserve.data.profiling.model import Grouping
from ecoserve.data.profiling.tails import law_name
from ecoserve.pages import write

GROUPING_TITLES: Final = {
    "turn": "Turn of the conversation",
    "prompt_band": "Prompt length (tokens)",
    "model": "Served model",
    "language": "Language of the prompt",
    "split": "Split",
}
_DASHES: Final = ("solid", "dash", "dot", "longdashdot", "longdash", "dashdot")


def grouping_title(grouping: Grouping) -> str:
    """A grouping's title, with the share of the variance that it explains."""
    title = GROUPING_TITLES[grouping.by]
    return title if grouping.explains is None else f"{title}: explains {write(grouping.explains, 'share')}"


def law_title(name: str, parameters: dict[str, float]) -> str:
    """A law with its parameters: ``Weibull (scale 341, shape 1.31)``."""
    return f"{law_name(name)} ({', '.join(f'{key} {value:.3g}' for key, value in parameters.items())})"


def dash(number: int) -> str:
    """The dash of the ``number``-th line of a plot."""
    return _DASHES[number % len(_DASHES)]


def span(low: int, high: int) -> str:
    """A bin of lengths: ``17–32``."""
    return f"{high:,}" if high == low + 1 else f"{low + 1:,}–{high:,}"


def per_doubling(edges: Sequence[int], counts: Sequence[int], total: int) -> list[float]:
    """Height of each bin: per cent of all answers per doubling of length, so that bins can be compared."""
    bins = zip(pairwise(edges), counts, strict=True)
    return [100 * n / total / math.log2((high + 0.5) / (low + 0.5)) for (low, high), n in bins]


def percents(shares: Iterable[float | None], *, positive: bool = False) -> list[float | None]:
    """Shares in per cent; with ``positive``, for a logarithmic axis, without zeros."""
    return [None if v is None or (positive and v <= 0) else 100 * v for v in shares]
