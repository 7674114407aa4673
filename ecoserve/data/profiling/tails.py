"""The longest answers: which law describes the lengths, and how heavy the tail is.

A law is reported with its distance, not with a test: with enough answers every law is rejected. A tail index is
reported as far as its interval shows it and no higher threshold contradicts it.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from ecoserve.data.laws import FittedLaw, Histogram, KaplanMeier, TailFit, fit_laws, fit_tails
from ecoserve.data.profiling.model import Law, Tail, TailIndex
from ecoserve.data.profiling.summaries import Z95, quantile
from ecoserve.errors import TraceError
from ecoserve.pages.tables import write

#: A tail index above this is called heavy: an exponential tail has 0, a power law with exponent 10 has 0.1.
HEAVY: Final = 0.1
#: A law whose distribution function is nowhere further off than this describes the lengths well enough to draw from.
CLOSE: Final = 0.05


def tail(counts: Histogram, cap: int | None) -> tuple[Tail, list[FittedLaw]]:
    """The tail of the lengths in ``counts``, and the fitted laws for drawing; ``cap``: where answers are cut off."""
    try:
        laws = fit_laws(counts)
    except TraceError:
        # Too few lengths, or all alike: there is no law.
        laws = []
    indices = [_index(f) for f in fit_tails(counts)]
    kind = _kind(indices)
    p50, p99 = _corrected(counts, 0.5), _corrected(counts, 0.99)
    found = Tail(
        p99_over_p50=p99 / p50 if p50 and p99 else None,
        top10_token_share=_top_share(counts, 0.1),
        top1_token_share=_top_share(counts, 0.01),
        laws=[_law(fit) for fit in laws],
        ks_by_chance=laws[0].chance_ks if laws else None,
        ends_at=cap if counts.cut.any() else None,
        indices=indices,
        kind=kind,
        verdict=_verdict(kind, indices, laws, cap if counts.cut.any() else None),
    )
    return found, laws


def _corrected(counts: Histogram, q: float) -> int | None:
    return KaplanMeier.of(counts).quantile(q) if counts.cut.any() else quantile(counts, q)


def _top_share(counts: Histogram, top: float) -> float:
    """Share of all tokens that the longest ``top`` of the answers has; the answer at the edge counts in part."""
    n = counts.ended + counts.cut
    longest_first = np.cumsum(n[::-1]).astype(np.float64)
    wanted = top * counts.n
    taken = np.clip(wanted - (longest_first - n[::-1]), 0.0, n[::-1])
    return float(taken @ counts.lengths[::-1] / (n @ counts.lengths))


def _law(fit: FittedLaw) -> Law:
    law = fit.law
    quantiles = {"p50": law.quantile(0.5), "p99": law.quantile(0.99), "p99_9": law.quantile(0.999)}
    figures = ("log_likelihood", "aic", "bic", "ks", "anderson_darling")
    return Law(name=law.name, parameters=dict(law.parameters), **{f: getattr(fit, f) for f in figures}, **quantiles)


def _index(fit: TailFit) -> TailIndex:
    error = None if fit.xi_error is None else Z95 * fit.xi_error
    return TailIndex(
        threshold=fit.threshold,
        above=fit.n,
        index=fit.xi,
        low=None if error is None else fit.xi - error,
        high=None if error is None else fit.xi + error,
        ks=fit.ks,
    )


def _kind(indices: list[TailIndex]) -> str:
    if not indices:
        return "unknown"
    main = _main(indices)
    low, high = _bounds(main)
    # Lower thresholds may be too low for such a law to hold; from the main one on it should not change any more.
    if any(_bounds(other)[0] > high or _bounds(other)[1] < low for other in indices[indices.index(main) :]):
        return "mixed"
    if high < 0:
        return "ends"
    if high < HEAVY:
        return "light"
    return "heavy" if low > HEAVY else "open"


def _main(indices: list[TailIndex]) -> TailIndex:
    """The one above the 90th percentile, else above the 80th."""
    return indices[1] if len(indices) > 1 else indices[0]


def _bounds(index: TailIndex) -> tuple[float, float]:
    # Without a standard error xi is at -0.5 or below, and no more is known: the tail ends, and abruptly.
    return (-math.inf, max(index.index, -0.5)) if index.low is None or index.high is None else (index.low, index.high)


def _two(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


_NAMES: Final = {
    "lognormal": "log-normal", "weibull": "Weibull", "pareto": "Pareto (Lomax)", "logt": "log-t", "gamma": "gamma",
    "exponential": "exponential",
}  # fmt: skip


def law_name(name: str) -> str:
    return _NAMES.get(name, name)


def _verdict(kind: str, indices: list[TailIndex], laws: list[FittedLaw], cap: int | None) -> str:
    parts = []
    if laws:
        best = laws[0]
        off = write(best.ks, "share")
        likeliest = f"of the laws tried, {law_name(best.law.name)} is the likeliest, at most {off} of the answers off"
        fits = min(law.ks for law in laws) <= CLOSE
        parts.append(likeliest if fits else f"{likeliest}: no simple law fits, so draw from the recorded lengths")
    if indices:
        main = _main(indices)
        interval = "" if main.low is None or main.high is None else (
            f", 95 % interval {_two(main.low)} to {_two(main.high)}"
        )  # fmt: skip
        index = f"tail index {_two(main.index)}{interval}, above {main.threshold:,} tokens"
        parts.append(
            {
                "ends": f"the tail is thinner than exponential and comes to an end ({index})",
                "light": f"the tail is about as light as an exponential one ({index})",
                "heavy": f"the tail is heavy, like a power law ({index}): means and totals hang on few answers",
                "mixed": f"the tail is not of one kind: {index}, but "
                + ", ".join(f"{_two(i.index)} above {i.threshold:,}" for i in indices if i.threshold > main.threshold),
                "open": f"there are too few answers to say how heavy the tail is ({index})",
            }[kind]
        )
    else:
        parts.append("there are too few long answers to say how heavy the tail is")
    if cap is not None:
        parts.append(f"answers are cut off at {cap:,} tokens, and their lengths beyond are not known")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."
