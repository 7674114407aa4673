"""The tail's law is found above a threshold, whatever lies below it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from ecoserve.data.laws import Histogram, Law, TailFit, tails


def fit_tails(lengths: npt.ArrayLike, cut: npt.ArrayLike | None = None, **options: Any) -> list[TailFit]:
    return tails.fit_tails(Histogram.of(lengths, cut), **options)


def spliced(n: int, xi: float, scale: float, seed: int = 0) -> np.ndarray:
    """Nine of ten lengths uniform up to 500, the others 500 and a generalised Pareto exceedance."""
    rng = np.random.default_rng(seed)
    body = rng.integers(1, 501, n)
    tail = 500 + np.ceil(stats.genpareto(xi, scale=scale).rvs(n, random_state=rng)).astype(int)
    return np.minimum(np.where(rng.random(n) < 0.9, body, tail), 2**20)


@pytest.mark.parametrize("xi", [-0.3, 0.05, 0.6])
def test_shape_and_scale_are_found_again(xi: float) -> None:
    (fit,) = fit_tails(spliced(80_000, xi, 200.0), thresholds=[0.9])
    assert fit.threshold == pytest.approx(500, abs=5)
    assert fit.share == pytest.approx(0.1, abs=0.005)
    assert fit.xi_error is not None
    assert abs(fit.xi - xi) < 4 * fit.xi_error < 0.1
    assert fit.scale == pytest.approx(200, rel=0.1)
    assert fit.ks < 0.02


def test_the_standard_error_is_that_of_the_theory() -> None:
    """Asymptotically the standard error of xi is (1 + xi) / sqrt(n) (Smith 1987)."""
    (fit,) = fit_tails(spliced(80_000, 0.2, 300.0), thresholds=[0.9])
    assert fit.xi_error == pytest.approx((1 + fit.xi) / math.sqrt(fit.n), rel=0.1)


def test_cutting_off_in_the_tail_does_not_bias() -> None:
    wanted = spliced(80_000, 0.4, 200.0)
    seen, cut = np.minimum(wanted, 1000), wanted > 1000
    (fit,) = fit_tails(seen, cut, thresholds=[0.9])
    assert fit.censored == cut.sum() > 500
    assert fit.xi_error is not None
    assert abs(fit.xi - 0.4) < 4 * fit.xi_error


def test_several_thresholds_tell_a_tail_from_a_body() -> None:
    fits = fit_tails(spliced(80_000, 0.5, 100.0), thresholds=[0.5, 0.9, 0.97])
    assert [f.q for f in fits] == [0.5, 0.9, 0.97]
    assert fits[1].ks < fits[0].ks / 3
    assert abs(fits[1].xi - fits[2].xi) < 3 * (fits[1].xi_error or 0) + 3 * (fits[2].xi_error or 0)


def test_the_lomax_law_has_the_tail_index_of_its_shape() -> None:
    lengths = Law("pareto", {"scale": 300, "shape": 2.0}).sample(np.random.default_rng(1), 100_000)
    (fit,) = fit_tails(lengths, thresholds=[0.95])
    assert fit.xi == pytest.approx(0.5, abs=0.1)


def test_where_there_is_no_tail_there_is_no_fit() -> None:
    assert fit_tails([5] * 1000) == []
    assert fit_tails(range(1, 100)) == []
    assert fit_tails([]) == []
    # It is not known where the 80 % quantile lies if half of the answers were cut off below it.
    assert fit_tails(list(range(1, 1001)) * 2, [n > 500 for n in range(1, 1001)] * 2, thresholds=[0.8]) == []
