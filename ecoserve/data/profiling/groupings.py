"""Lengths by group: turn, prompt-length band, served model, language, split.

At most twelve groups are shown, the rarest together as ``other``; so are languages of fewer than 30 prompts. Prompt
bands are octaves (17 to 32, 33 to 64, ... tokens), the same for every trace, so that two can be compared; thin ones at
either end join their neighbour. A grouping explains the adjusted R squared of log length, which does not grow with the
number of groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from ecoserve.data.profiling.model import Group, Grouping
from ecoserve.data.profiling.summaries import count, summarise
from ecoserve.data.profiling.table import TraceTable

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
    """Lengths by group.

    Args:
        table: the records.
        by: the grouping.
        rows: shape ``[k]``, the rows that ``codes`` belong to; ``None`` for all.
        codes: shape ``[k]``, index into ``names``.
        names: of the groups, in their order.
        design_effect: factor by which variances exceed those of independent records.
    """
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
