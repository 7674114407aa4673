"""Summaries of lengths: moments, quantiles with intervals, and the same by group.

Quantile q is the least length that at least a share q does not exceed. Intervals are between order statistics
(binomial), widened by the design effect (Kish) where records of one conversation resemble each other. At most twelve
groups are shown, the rarest together as ``other``; prompt bands are octaves (17 to 32, 33 to 64, ... tokens). A
grouping explains the adjusted R squared of log length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ecoserve.data.laws import Histogram, KaplanMeier
from ecoserve.data.profiling.model import Group, Grouping, Lengths
from ecoserve.data.profiling.table import TraceTable, chosen

PERCENTILES: Final = {
    "p1": 0.01, "p5": 0.05, "p10": 0.1, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99,
    "p99_9": 0.999,
}  # fmt: skip
_CORRECTED: Final = ("p50", "p90", "p95", "p99")
#: Lengths up to this are counted in an array as long as the longest.
_LARGE: Final = 1 << 21
#: Records, about, of a longer trace that figures are computed on which need more than counts (some 300 bytes each).
MOST_ROWS: Final = 1_000_000
#: Standard deviations that leave 2.5 % on each side.
Z95: Final = 1.959964

Whole = npt.NDArray[np.integer]


def count(lengths: Whole, censored: npt.NDArray[np.bool_] | None = None) -> Histogram:
    """The counts of ``lengths`` (shape ``[n]``, >= 0), without the copies that checking would cost."""
    if not len(lengths):
        nothing = np.zeros(0, dtype=np.int64)
        return Histogram(nothing, nothing, nothing)
    if lengths.max() > _LARGE:
        # A single absurd prompt length must not take gigabytes.
        seen, number = np.unique(lengths, return_inverse=True)
        everything = np.bincount(number)
        cut = np.zeros_like(everything) if censored is None else np.bincount(number[censored], minlength=len(seen))
        return Histogram(seen.astype(np.int64), everything - cut, cut)
    everything = np.bincount(lengths)
    cut = np.zeros_like(everything) if censored is None else np.bincount(lengths[censored], minlength=len(everything))
    seen = np.flatnonzero(everything)
    return Histogram(seen, everything[seen] - cut[seen], cut[seen])


def summarise(counts: Histogram, design_effect: float = 1.0) -> Lengths:
    """All of :class:`~ecoserve.data.profiling.model.Lengths` from ``counts``."""
    n = counts.n
    if not n:
        return Lengths(n=0, censored_share=0.0)
    weights = (counts.ended + counts.cut).astype(np.float64)
    x = counts.lengths.astype(np.float64)
    mean = float(weights @ x / n)
    from_mean = x - mean
    variance = float(weights @ from_mean**2 / n)
    sd = math.sqrt(variance * n / (n - 1)) if n > 1 else 0.0
    third = float(weights @ from_mean**3 / n)
    cut = int(counts.cut.sum())
    km = KaplanMeier.of(counts) if cut else None
    corrected = {f"km_{p}": km.quantile(PERCENTILES[p]) for p in _CORRECTED} if km is not None else {}
    return Lengths(
        n=n,
        mean=mean,
        sd=sd,
        cv=sd / mean if mean > 0 else None,
        skew=third / variance**1.5 if variance > 0 else None,
        min=int(counts.lengths[0]),
        max=int(counts.lengths[-1]),
        censored_share=cut / n,
        **{name: quantile(counts, q) for name, q in PERCENTILES.items()},
        **corrected,
        **intervals(counts, design_effect),
    )


def quantile(counts: Histogram, q: float) -> int:
    """The least length that at least a share ``q`` does not exceed, answers cut off taken as they are."""
    return _at_rank(counts, math.ceil(q * counts.n - 1e-9))


def interval(counts: Histogram, q: float, design_effect: float = 1.0) -> tuple[int, int]:
    """95 % interval of the quantile ``q``: between the order statistics at n q -+ 1.96 standard deviations."""
    n = counts.n
    away = Z95 * math.sqrt(n * q * (1.0 - q) * design_effect)
    return _at_rank(counts, math.floor(n * q - away)), _at_rank(counts, math.ceil(n * q + away) + 1)


def intervals(counts: Histogram, design_effect: float) -> dict[str, int]:
    """The 95 % intervals of median and 90th percentile, as the keys of :class:`~.model.Lengths`."""
    found = {"p50": interval(counts, 0.5, design_effect), "p90": interval(counts, 0.9, design_effect)}
    return {
        f"{name}_{end}": value for name, ends in found.items() for end, value in zip(("low", "high"), ends, strict=True)
    }


def _at_rank(counts: Histogram, rank: int) -> int:
    """The ``rank``-th shortest (1-based; what is out of range is taken as the first or last)."""
    upto = np.cumsum(counts.ended + counts.cut)
    index = np.searchsorted(upto, min(max(rank, 1), counts.n), side="left")
    return int(counts.lengths[index])


def conversations_of(table: TraceTable) -> tuple[int, float]:
    """How many conversations a table has, and the design effect of its answers, on some of them if there are many."""
    names = table.conversation
    number = len(np.unique(names))
    if number == len(table):
        return number, 1.0
    some = chosen(names, MOST_ROWS / len(table)) if len(table) > MOST_ROWS else slice(None)
    return number, design_effect(table.response[some], np.unique(names[some], return_inverse=True)[1])


def design_effect(lengths: Whole, clusters: Whole) -> float:
    """Factor on the variance of a share because records of one cluster resemble each other (Kish); at least 1.

    Measured on the share of answers above the median; ``clusters`` are numbers, shape ``[n]``.
    """
    if len(lengths) < 2:
        return 1.0
    above = (lengths > np.median(lengths)).astype(np.float64)
    above -= above.mean()
    total = float(above @ above)
    sums = np.bincount(clusters, weights=above)
    return max(1.0, float(sums @ sums) / total) if total > 0 else 1.0


Codes = npt.NDArray[np.int64]
By = Literal["turn", "prompt_band", "model", "language", "split"]

MOST_GROUPS: Final = 12
OTHER: Final = "other"
#: Records that a band of its own needs.
_THIN: Final = 30
#: Groupings whose rare groups are merged -> records that a group of its own needs.
_FEW: Final[dict[str, int]] = {"model": 1, "language": _THIN, "split": 1}
#: Upper ends of the turn groups, 1-based.
_TURNS: Final = (1, 2, 3, 4, 8, 16)


def all_groupings(part: TraceTable, design_effect: float, whole: TraceTable) -> list[Grouping]:
    """Every grouping of ``part`` that has at least two groups; languages are those of the sample of ``whole``."""
    found = []
    for by, make in _MAKERS:
        table = whole if by == "language" else part
        if (made := make(table)) is not None:
            rows, codes, names = made
            codes, names = _few(by, codes, names)
            found.append(grouping(table, by, rows, codes, names, design_effect))
    return [g for g in found if len(g.groups) > 1]


def joint_groupings(
    tables: tuple[TraceTable, TraceTable], design_effects: tuple[float, float]
) -> list[tuple[Sequence[str], Grouping, Grouping]]:
    """Two tables in the same groups: their names in order, and each table's grouping; where there are two or more."""
    found = []
    for by, make in _MAKERS:
        a, b = _joint_bands(*tables) if by == "prompt_band" else [make(table) for table in tables]
        if a is None or b is None:
            continue
        names: Sequence[str] = list(dict.fromkeys([*a[2], *b[2]]))
        codes = np.concatenate([np.asarray([names.index(n) for n in side[2]])[side[1]] for side in (a, b)])
        codes, names = _few(by, codes, names)
        ends = len(a[1])
        one = grouping(tables[0], by, a[0], codes[:ends], names, design_effects[0])
        two = grouping(tables[1], by, b[0], codes[ends:], names, design_effects[1])
        if len({g.name for g in (*one.groups, *two.groups)}) > 1:
            found.append((names, one, two))
    return found


def grouping(
    table: TraceTable, by: By, rows: Codes | None, codes: Codes, names: Sequence[str], design_effect: float
) -> Grouping:
    """Lengths by group: ``codes`` (shape ``[k]``) index ``names``, for the table's ``rows`` (``None``: all)."""
    response = table.response if rows is None else table.response[rows]
    censored = table.censored if rows is None else table.censored[rows]
    total = len(codes)
    groups = []
    for code, name in enumerate(names):
        here = codes == code
        n = int(np.count_nonzero(here))
        if n:
            lengths = summarise(count(response[here], censored[here]), design_effect)
            groups.append(Group(name=name, share=n / total, lengths=lengths))
    return Grouping(by=by, rows=total, explains=explained(np.log(np.maximum(response, 1)), codes), groups=groups)


def explained(values: npt.NDArray[Any], codes: Codes) -> float | None:
    """Adjusted share of the variance of ``values`` (shape ``[n]``) between groups; ``None`` if there is none."""
    n = len(values)
    sizes = np.bincount(codes)
    k = int(np.count_nonzero(sizes))
    # Rounding would leave a variance of equal values.
    if k < 2 or n <= k + 1 or np.ptp(values) == 0:
        return None
    from_mean = values - values.mean()
    total = float(from_mean @ from_mean)
    sums = np.bincount(codes, weights=from_mean)
    between = float((sums[sizes > 0] ** 2 / sizes[sizes > 0]).sum())
    adjusted = 1.0 - (total - between) / (n - k) / (total / (n - 1))
    return min(1.0, max(0.0, adjusted))


def prompt_bands(prompts: npt.NDArray[Any], thin: int = _THIN) -> tuple[Codes, list[str]]:
    """The octave of each prompt length (shape ``[n]``, tokens >= 0) and the octaves' names; thin ends are joined."""
    octave = np.ceil(np.log2(np.maximum(prompts, 1))).astype(np.int64)
    sizes = np.bincount(octave)
    low, high = _ends(sizes, thin)
    codes = np.clip(octave, low, high) - low
    names = [f"{2 ** (k - 1) + 1:,}–{2**k:,}" if k else "1" for k in range(low, high + 1)]
    if low > 0:
        names[0] = f"up to {2**low:,}"
    if high > low:
        names[-1] = f"over {2 ** (high - 1):,}"
    return codes, names


def _ends(sizes: npt.NDArray[np.int64], thin: int) -> tuple[int, int]:
    """First and last octave shown, such that the joined ends are not thin if possible."""
    filled = np.flatnonzero(sizes)
    low, high = int(filled[0]), int(filled[-1])
    while low < high and sizes[: low + 1].sum() < thin:
        low += 1
    while high > low and sizes[high:].sum() < thin:
        high -= 1
    return low, high


def _few(by: By, codes: Codes, names: Sequence[str]) -> tuple[Codes, Sequence[str]]:
    """At most :data:`MOST_GROUPS` groups, most frequent first; those beyond, or with too few records, are merged."""
    if by not in _FEW:
        return codes, names
    sizes = np.bincount(codes, minlength=len(names))
    ranked = np.argsort(-sizes, kind="stable")
    kept = [int(c) for c in ranked if sizes[c] >= _FEW[by]]
    if len(kept) > MOST_GROUPS:
        kept = kept[: MOST_GROUPS - 1]
    place = np.full(len(names), len(kept), dtype=np.int64)
    place[kept] = np.arange(len(kept))
    shown = [names[c] for c in kept]
    return place[codes], [*shown, OTHER] if (sizes > 0).sum() > len(kept) else shown


Made = tuple[Codes | None, Codes, Sequence[str]] | None


def _turns(table: TraceTable) -> Made:
    codes = np.searchsorted(np.asarray(_TURNS), table.turn + 1, side="left")
    lows = [1, *(t + 1 for t in _TURNS)]
    names = [f"turn {a}" if a == b else f"turns {a}–{b}" for a, b in zip(lows, _TURNS, strict=False)]
    return None, codes, [*names, f"turn {_TURNS[-1] + 1} and later"]


def _bands(table: TraceTable) -> Made:
    return _joint_bands(table)[0]


def _joint_bands(*tables: TraceTable) -> list[Made]:
    """The bands of all tables' prompts together, so that thin ends are joined everywhere or nowhere."""
    known = [np.flatnonzero(table.prompt >= 0) for table in tables]
    if not all(len(rows) for rows in known):
        return [None for _ in tables]
    prompts = np.concatenate([table.prompt[rows] for table, rows in zip(tables, known, strict=True)])
    codes, names = prompt_bands(prompts, max(_THIN, len(prompts) // 500))
    parts = np.split(codes, np.cumsum([len(rows) for rows in known])[:-1])
    return [(rows, part, names) for rows, part in zip(known, parts, strict=True)]


def _models(table: TraceTable) -> Made:
    return None, table.model.astype(np.int64), [name or "not named" for name in table.models]


def _splits(table: TraceTable) -> Made:
    return None, table.split.astype(np.int64), [name or "not named" for name in table.splits]


def _languages(table: TraceTable) -> Made:
    sample = table.languages
    return (sample.rows, sample.codes, sample.names) if len(sample.rows) else None


_MAKERS: Final[tuple[tuple[By, Callable[[TraceTable], Made]], ...]] = (
    ("turn", _turns),
    ("prompt_band", _bands),
    ("model", _models),
    ("language", _languages),
    ("split", _splits),
)
