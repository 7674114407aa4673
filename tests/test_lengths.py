"""The length distribution against sums over every single length, and against input it must refuse."""

from __future__ import annotations

import copy
import json
import math
import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ecoserve.errors import PredictionError
from ecoserve.lengths import CLOSERS, MAX_BINS, MAX_LENGTH, ClosedBy, LengthDistribution

#: Sums may be off by 1e-6, so that answers may be, too.
CLOSE = 3e-6


@st.composite
def distributions(draw: st.DrawFn, longest: int = 300, most_bins: int = 12) -> LengthDistribution:
    """Any distribution up to ``longest`` tokens: gaps below, empty bins anywhere, sums that are only nearly 1."""
    edges = sorted(draw(st.sets(st.integers(0, longest), min_size=2, max_size=most_bins + 1)))
    share = st.one_of(st.just(0.0), st.floats(1e-12, 1.0), st.integers(1, 5).map(float))
    weights = draw(st.lists(share, min_size=len(edges) - 1, max_size=len(edges) - 1))
    assume(sum(weights) > 0)
    slack = draw(st.sampled_from([1.0, 1.0, 1.0 - 9e-7, 1.0 + 9e-7]))
    total = math.fsum(weights)
    return LengthDistribution(edges, [w / total * slack for w in weights], draw(st.sampled_from(CLOSERS)))


def pmf(d: LengthDistribution) -> np.ndarray:
    """P(length = n) for n = 0 .. upper, one length after the other."""
    out = np.zeros(d.upper + 1)
    for low, high, p in zip(d.edges, d.edges[1:], d.probs, strict=False):
        for n in range(low + 1, high + 1):
            out[n] = p / (high - low)
    return out / out.sum()


def same_law(a: LengthDistribution, b: np.ndarray, tolerance: float = CLOSE) -> bool:
    mine = pmf(a)
    size = max(len(mine), len(b))
    gap = np.cumsum(np.pad(mine, (0, size - len(mine)))) - np.cumsum(np.pad(b, (0, size - len(b))))
    return bool(np.abs(gap).max() <= tolerance)


# -- asking it ---------------------------------------------------------------------------------------


@given(distributions(), st.integers(-5, 320))
def test_survival_is_the_mass_above(d: LengthDistribution, n: int) -> None:
    assert d.survival(n) == pytest.approx(pmf(d)[max(0, n + 1) :].sum(), abs=CLOSE)


@given(distributions(), st.lists(st.floats(-5, 320, allow_nan=False), min_size=1, max_size=20))
def test_survival_of_many_is_survival_of_each(d: LengthDistribution, at: list[float]) -> None:
    together = d.survival_at(np.asarray(at).reshape(-1, 1))
    assert together.shape == (len(at), 1)
    assert together.ravel() == pytest.approx([d.survival(n) for n in at], abs=CLOSE)


@given(distributions(), st.floats(0, 320), st.floats(0, 320))
def test_survival_never_rises_and_stays_a_probability(d: LengthDistribution, a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert 1.0 >= d.survival(low) >= d.survival(high) - CLOSE >= -CLOSE
    assert d.survival(d.edges[0]) == 1.0
    assert d.survival(d.upper) == 0.0


@given(distributions())
def test_mean_is_the_sum_over_lengths(d: LengthDistribution) -> None:
    mass = pmf(d)
    assert d.mean() == pytest.approx((mass * np.arange(len(mass))).sum(), rel=CLOSE)
    assert d.mean() == d.mean()


@given(distributions(), st.floats(0.0, 1.0))
@example(LengthDistribution((0, 10, 20, 30), (0.1, 0.9, 0.0)), 1.0)
@example(LengthDistribution((0, 10, 20, 30), (0.7, 0.1 + 0.2, 0.0)), 1.0)
@example(LengthDistribution((0, 10, 20), (0.0, 1.0)), 0.0)
def test_quantile_is_the_smallest_length_that_reaches_it(d: LengthDistribution, q: float) -> None:
    cdf = np.cumsum(pmf(d))
    n = d.quantile(q)
    assert isinstance(n, int)
    assert d.edges[0] < n <= d.upper
    assert cdf[n] >= q - CLOSE
    assert n == d.edges[0] + 1 or cdf[n - 1] <= q + CLOSE


@given(st.lists(st.integers(0, 9), min_size=1, max_size=MAX_BINS))
def test_the_full_quantile_is_the_longest_possible_length(weights: list[int]) -> None:
    assume(any(weights))
    d = LengthDistribution.from_weights(range(0, 3 * len(weights) + 1, 3), weights)
    assert d.quantile(1.0) == 3 * (1 + max(k for k, w in enumerate(weights) if w))


@given(distributions(), st.floats(0, 1), st.floats(0, 1))
def test_quantiles_ascend(d: LengthDistribution, a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert d.quantile(low) <= d.quantile(high)


@pytest.mark.parametrize("q", [-0.001, 1.001, math.nan, math.inf])
def test_a_quantile_outside_of_0_and_1_is_refused(q: float) -> None:
    with pytest.raises(PredictionError, match="quantile"):
        LengthDistribution.point(5).quantile(q)


# -- making another from it -----------------------------------------------------------------------------


@given(distributions(), st.integers(0, 299))
def test_given_longer_than_is_conditioning(d: LengthDistribution, n: int) -> None:
    mass = pmf(d)
    left = mass[n + 1 :].sum()
    assume(left > 1e-9)
    rest = np.where(np.arange(len(mass)) > n, mass, 0.0) / left
    posterior = d.given_longer_than(n)
    assert same_law(posterior, rest)
    assert posterior.quantile(0.0) > n
    assert posterior.closed_by == d.closed_by
    assert posterior.mean() == pytest.approx((rest * np.arange(len(rest))).sum(), rel=1e-5)


@given(distributions(), st.integers(0, 400))
@example(LengthDistribution((0, 10, 20), (1.0 - 9e-7, 0.0)), 12)
def test_a_posterior_always_leaves_something_to_come(d: LengthDistribution, n: int) -> None:
    posterior = d.given_longer_than(n)
    assert posterior.survival(n) == pytest.approx(1.0)
    assert posterior.quantile(0.0) > n or n <= d.edges[0]
    assert posterior.mean() > n


@given(distributions(), st.integers(0, 200), st.integers(0, 100))
def test_conditioning_twice_is_conditioning_once(d: LengthDistribution, n: int, more: int) -> None:
    assume(d.survival(n + more) > 1e-6)
    assert same_law(d.given_longer_than(n).given_longer_than(n + more), pmf(d.given_longer_than(n + more)))


@given(st.integers(1, 64), st.integers(0, 5000))
def test_past_its_support_what_is_left_is_of_the_order_of_what_has_passed(length: int, over: int) -> None:
    n = length + over
    rest = LengthDistribution.point(length).given_longer_than(n)
    assert n < rest.quantile(0.0) <= rest.quantile(0.5) <= n + max(4, n)
    assert rest.upper == n + max(4, n)
    assert rest.quantile(0.5) - n == pytest.approx(3 / 8 * max(4, n), abs=2)


@pytest.mark.parametrize("n", [MAX_LENGTH - 1, MAX_LENGTH, MAX_LENGTH + 1])
def test_past_the_longest_length_there_still_is_an_answer(n: int) -> None:
    assert LengthDistribution.point(7).given_longer_than(n).upper == MAX_LENGTH


@given(distributions(), st.integers(1, 320), st.sampled_from(CLOSERS))
def test_closed_at_is_the_law_of_the_smaller_of_both(d: LengthDistribution, limit: int, by: ClosedBy) -> None:
    mass = pmf(d)
    expected = mass[: limit + 1].copy()
    if limit < len(mass):
        expected[limit] += mass[limit + 1 :].sum()
    closed = d.closed_at(limit, by)
    assert closed.upper <= max(limit, d.upper if limit >= d.upper else 0)
    assert closed.closed_by == (d.closed_by if limit >= d.upper else by)
    if limit > d.edges[0]:
        assert same_law(closed, expected)
    else:
        assert closed == LengthDistribution.point(limit, by)


@given(st.integers(2, 3 * MAX_BINS))
def test_a_distribution_of_the_most_bins_can_be_closed_anywhere(limit: int) -> None:
    fine = LengthDistribution.from_weights(range(0, 3 * MAX_BINS + 1, 3), [1.0] * MAX_BINS)
    closed = fine.closed_at(limit)
    assert len(closed.probs) <= MAX_BINS
    assert closed.upper == limit
    assert closed.survival(limit - 1) == pytest.approx(fine.survival(limit - 1))
    # At most the two bins before the limit were joined.
    assert closed.survival(limit - 8) == pytest.approx(fine.survival(limit - 8))


def test_a_limit_without_room_is_refused() -> None:
    with pytest.raises(PredictionError, match="no room"):
        LengthDistribution.point(5).closed_at(0)


@given(distributions(), st.floats(1e-4, 5e4))
def test_scaling_keeps_mass_and_order(d: LengthDistribution, factor: float) -> None:
    scaled = d.scaled(factor)
    assert math.fsum(scaled.probs) == pytest.approx(1.0)
    assert scaled.closed_by == d.closed_by
    assert all(a < b for a, b in zip(scaled.edges, scaled.edges[1:], strict=False))
    # Edges move to the next whole number, so that a quantile is off by one token of the scaled length at most,
    # or by what one token of the unscaled length was worth.
    for q in (0.1, 0.5, 0.9):
        low, high = d.quantile(q - 1e-5), d.quantile(q + 1e-5)
        slack = max(2.0, factor) + 1
        assert low * factor - slack <= scaled.quantile(q) <= high * factor + slack


@given(distributions(), st.floats(0.01, 100), st.floats(0.01, 100))
def test_a_larger_factor_never_makes_it_shorter(d: LengthDistribution, a: float, b: float) -> None:
    small, large = sorted((a, b))
    for q in (0.25, 0.5, 0.75):
        assert d.scaled(small).quantile(q - 1e-5) <= d.scaled(large).quantile(q + 1e-5) + 1


@given(distributions(longest=MAX_LENGTH))
def test_scaling_by_one_changes_nothing(d: LengthDistribution) -> None:
    assert d.scaled(1.0).edges[-1] <= d.upper
    assert d.scaled(1.0).probs[:1] == pytest.approx(d.probs[:1], abs=CLOSE)
    assert d.scaled(1.0).edges == d.edges


@pytest.mark.parametrize("factor", [1e300, 1e308, 5e-324])
def test_an_extreme_factor_ends_at_the_bounds(factor: float) -> None:
    scaled = LengthDistribution((0, 10, 300), (0.5, 0.5)).scaled(factor)
    assert scaled.upper == (1 if factor < 1 else MAX_LENGTH)
    assert LengthDistribution.point(300).scaled(factor) == LengthDistribution.point(1 if factor < 1 else MAX_LENGTH)


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_a_factor_that_is_none_is_refused(factor: float) -> None:
    with pytest.raises(PredictionError, match="scaled"):
        LengthDistribution.point(5).scaled(factor)


# -- making one ----------------------------------------------------------------------------------------


@given(st.integers(1, MAX_LENGTH))
def test_a_point_is_certain(n: int) -> None:
    d = LengthDistribution.point(n)
    assert d.mean() == n
    assert d.quantile(0.0) == d.quantile(0.5) == d.quantile(1.0) == n
    assert (d.survival(n - 1), d.survival(n)) == (1.0, 0.0)


@pytest.mark.parametrize("length", [0, -1, MAX_LENGTH + 1])
def test_a_point_where_no_length_is_is_refused(length: int) -> None:
    with pytest.raises(PredictionError):
        LengthDistribution.point(length)


@given(st.floats(1, 5000), st.floats(0.05, 2.0), st.integers(10, 20_000), st.integers(20, MAX_BINS))
def test_a_lognormal_has_its_quantiles_at_its_bin_edges(median: float, sigma: float, upper: int, bins: int) -> None:
    d = LengthDistribution.lognormal(median, sigma, upper, bins)
    assert d.upper == upper
    for e in d.edges[1:-1]:
        exact = 0.5 * math.erfc(math.log(e / median) / sigma / math.sqrt(2))
        assert d.survival(e) == pytest.approx(exact, abs=1e-6)


@pytest.mark.parametrize(
    ("median", "sigma", "upper", "bins"),
    [
        (0.0, 1.0, 10, 40),
        (math.nan, 1.0, 10, 40),
        (math.inf, 1.0, 10, 40),
        (5.0, -1.0, 10, 40),
        (5.0, math.nan, 10, 40),
        (5.0, math.inf, 10, 40),
        (5.0, 1.0, 0, 40),
        (5.0, 1.0, 10, 1),
        (5.0, 1.0, 10, MAX_BINS + 1),
        (5.0, 1.0, MAX_LENGTH + 1, 40),
    ],
)
def test_a_lognormal_of_bad_numbers_is_refused(median: float, sigma: float, upper: int, bins: int) -> None:
    with pytest.raises(PredictionError):
        LengthDistribution.lognormal(median, sigma, upper, bins)


def test_a_lognormal_of_any_width_raises_no_warning() -> None:
    assert LengthDistribution.lognormal(1e6, 1e4, 100).upper == 100
    assert LengthDistribution.lognormal(40, 0.0, 100) == LengthDistribution.point(40, "max_model_len")
    assert LengthDistribution.lognormal(400, 0.0, 100) == LengthDistribution.point(100, "max_model_len")


@given(
    st.lists(st.integers(-3, 500), min_size=1, max_size=300),
    st.integers(1, 600),
    st.integers(2, MAX_BINS),
)
@example(list(range(1, 400)), 600, MAX_BINS)
def test_samples_give_their_own_quantiles(samples: list[int], upper: int, bins: int) -> None:
    d = LengthDistribution.from_samples(samples, upper, bins)
    seen = np.clip(samples, 1, upper)
    assert d.upper == upper
    assert len(d.probs) <= bins
    # One pseudo-count among len + 1: no edge is off by more than its share.
    for e in d.edges:
        assert abs(d.survival(e) - (seen > e).mean()) <= 1.0 / (len(samples) + 1) + 1e-9
    if upper > seen.max():
        assert 0 < d.survival(int(seen.max())) <= 1.0 / (len(samples) + 1)


def test_no_samples_make_no_distribution() -> None:
    with pytest.raises(PredictionError, match="no samples"):
        LengthDistribution.from_samples([], 10)


@given(st.lists(st.floats(0, 1e300), min_size=1, max_size=20))
def test_weights_are_normalised(weights: list[float]) -> None:
    assume(0 < sum(weights) < math.inf)
    d = LengthDistribution.from_weights(range(len(weights) + 1), weights)
    assert math.fsum(d.probs) == pytest.approx(1.0)
    again = LengthDistribution.from_weights(range(len(weights) + 1), np.asarray(weights))
    assert again == d


@pytest.mark.parametrize(
    "weights", [[0.0], [-1.0], [math.nan], [math.inf], [[1.0]], ["a"], [[1.0], [2.0, 3.0]], [None]]
)
def test_weights_that_are_none_are_refused(weights: list[Any]) -> None:
    with pytest.raises(PredictionError):
        LengthDistribution.from_weights(range(len(weights) + 1), weights)


BAD: list[tuple[Any, Any]] = [
    ((0, 1), (math.nan,)),
    ((0, 1), (math.inf,)),
    ((0, 1, 2), (1.5, -0.5)),
    ((0, 1), (0.5,)),
    ((0, 1), (1.00001,)),
    ((0, 1), ("1.0",)),
    ((0, 1), (True,)),
    ((0, 1), ((1.0,),)),
    ((0, 1), (None,)),
    ((0, 1), (1j,)),
    ((0, 1), ()),
    ((0,), ()),
    ((0, 1, 2), (1.0,)),
    ((1, 1), (1.0,)),
    ((2, 1), (1.0,)),
    ((-1, 1), (1.0,)),
    ((0, 1.5), (1.0,)),
    ((0, math.nan), (1.0,)),
    ((0, math.inf), (1.0,)),
    ((0, "1"), (1.0,)),
    ((0, True), (1.0,)),
    ((0, [1]), (1.0,)),
    ((0, None), (1.0,)),
    ((0, MAX_LENGTH + 1), (1.0,)),
    (range(MAX_BINS + 2), (1.0,) + (0.0,) * MAX_BINS),
]


@pytest.mark.parametrize(("edges", "probs"), BAD)
def test_what_is_no_distribution_is_refused(edges: Any, probs: Any) -> None:
    with pytest.raises(PredictionError):
        LengthDistribution(edges, probs)


def test_an_unknown_closer_is_refused() -> None:
    with pytest.raises(PredictionError, match="closed_by"):
        LengthDistribution((0, 1), (1.0,), "eternity")  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    d = LengthDistribution(np.asarray([0, 4, 9]), np.asarray([0.25, 0.75]))  # type: ignore[arg-type]
    assert d == LengthDistribution((0, 4, 9), (0.25, 0.75))
    assert {type(e) for e in d.edges} == {int}
    assert {type(p) for p in d.probs} == {float}


# -- travelling ----------------------------------------------------------------------------------------


@given(distributions(longest=MAX_LENGTH, most_bins=60))
def test_it_comes_back_equal_from_its_flat_list(d: LengthDistribution) -> None:
    wire = d.to_wire()
    assert all(type(v) is float for v in wire)
    assert LengthDistribution.from_wire(wire) == d
    assert LengthDistribution.from_wire(tuple(wire)) == d
    assert LengthDistribution.from_wire(json.loads(json.dumps(wire))) == d


def test_the_largest_distribution_travels_too() -> None:
    d = LengthDistribution.from_weights(range(MAX_BINS + 1), [1.0] * MAX_BINS)
    assert LengthDistribution.from_wire(d.to_wire()) == d


GOOD = LengthDistribution((0, 10, 20), (0.25, 0.75)).to_wire()


def but(index: int, value: Any) -> list[Any]:
    return [*GOOD[:index], value, *GOOD[index + 1 :]]


@pytest.mark.parametrize(
    "wire",
    [
        None,
        3.0,
        "abc",
        {"edges": [0, 1]},
        b"12345",
        [],
        GOOD[:-1],
        [*GOOD, 0.0, 0.0],
        [*GOOD, 1.0],
        [GOOD],
        [1.0] * (2 * MAX_BINS + 5),
        but(0, 2.0),
        but(1, 3.0),
        but(1, 0.5),
        but(1, -1.0),
        but(2, math.nan),
        but(3, 10.5),
        but(3, 25.0),
        but(4, math.inf),
        but(4, 10**400),
        but(4, -(10**400)),
        but(4, float(MAX_LENGTH + 1)),
        but(5, -0.25),
        but(5, 0.5),
        but(5, math.nan),
        but(5, "0.25"),
        but(5, True),
        but(5, None),
        but(5, [0.25]),
        but(5, 1j),
    ],
)
def test_a_flat_list_that_is_none_is_refused(wire: object) -> None:
    with pytest.raises(PredictionError):
        LengthDistribution.from_wire(wire)


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))


@given(st.one_of(SCALARS, st.lists(SCALARS | st.lists(SCALARS, max_size=2), max_size=15), st.just({})))
def test_whatever_a_client_sends_is_refused_or_a_distribution(wire: object) -> None:
    try:
        d = LengthDistribution.from_wire(wire)
    except PredictionError:
        return
    assert LengthDistribution.from_wire(d.to_wire()) == d


@given(st.data())
def test_a_flat_list_with_one_wrong_number_never_gives_a_wrong_law(data: st.DataObject) -> None:
    d = data.draw(distributions())
    wire = d.to_wire()
    index = data.draw(st.integers(0, len(wire) - 1))
    wire[index] = data.draw(st.floats())
    try:
        other = LengthDistribution.from_wire(wire)
    except PredictionError:
        return
    assert math.fsum(other.probs) == pytest.approx(1.0, abs=2e-6)
    assert 0 <= other.edges[0] < other.upper <= MAX_LENGTH


# -- being a value ----------------------------------------------------------------------------------------


@given(distributions())
def test_copies_are_equal_and_hash_alike(d: LengthDistribution) -> None:
    for other in (pickle.loads(pickle.dumps(d)), copy.copy(d), copy.deepcopy(d)):
        assert other == d
        assert hash(other) == hash(d)
        assert other.quantile(0.5) == d.quantile(0.5)


@given(distributions(), distributions())
def test_equal_means_same_bins(a: LengthDistribution, b: LengthDistribution) -> None:
    assert (a == b) == (a.to_wire() == b.to_wire())
    assert a != 5
    assert len({a, copy.copy(a), b}) == 1 + (a != b)


@pytest.mark.parametrize("name", ["edges", "probs", "closed_by", "_cdf", "_mean", "new"])
def test_nothing_can_be_changed(name: str) -> None:
    d = LengthDistribution.point(5)
    with pytest.raises(AttributeError, match="immutable"):
        setattr(d, name, 1)
    with pytest.raises(AttributeError, match="immutable"):
        delattr(d, name)
    assert isinstance(d.edges, tuple)
    assert isinstance(d.probs, tuple)


def test_it_says_what_it_is() -> None:
    assert repr(LengthDistribution((0, 10, 20), (0.5, 0.5))) == (
        "LengthDistribution(2 bins, 10/50/90 % at 2/10/18 of 20 tokens)"
    )
