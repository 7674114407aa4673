"""Fits find the law that lengths came from, cut off or not, and say how far off they are."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ecoserve.data.laws import LAWS, FittedLaw, Histogram, KaplanMeier, Law, fitting
from ecoserve.errors import TraceError

TRUE = [
    Law("lognormal", {"median": 150, "sigma": 0.8}),
    Law("weibull", {"scale": 250, "shape": 0.8}),
    Law("pareto", {"scale": 400, "shape": 2.2}),
    Law("logt", {"median": 120, "sigma": 0.5, "df": 3}),
    Law("gamma", {"scale": 80, "shape": 2.5}),
    Law("exponential", {"scale": 90}),
]
each = pytest.mark.parametrize("law", TRUE, ids=lambda law: law.name)


def fit_law(
    name: str, lengths: npt.ArrayLike, cut: npt.ArrayLike | None = None, *, longest: int | None = None
) -> FittedLaw:
    return fitting.fit_law(name, Histogram.of(lengths, cut), longest=longest)


def cut_at(lengths: np.ndarray, limit: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    return np.minimum(lengths, limit), lengths > limit


@each
def test_parameters_are_found_again(law: Law) -> None:
    fit = fit_law(law.name, law.sample(np.random.default_rng(7), 40_000))
    for name, value in law.parameters.items():
        assert fit.law.parameters[name] == pytest.approx(value, rel=0.12 if name == "df" else 0.06), name
    assert fit.ks < fit.chance_ks
    assert fit.n == 40_000
    assert fit.censored == 0


@each
def test_cutting_answers_off_does_not_bias(law: Law) -> None:
    """Half of the requests have a limit at the median, the others one at the 80 % quantile."""
    rng = np.random.default_rng(8)
    wanted = law.sample(rng, 60_000)
    limit = np.where(rng.random(60_000) < 0.5, law.quantile(0.5), law.quantile(0.8))
    seen, cut = cut_at(wanted, limit)
    fit = fit_law(law.name, seen, cut)
    for q in (0.2, 0.5, 0.9):
        assert fit.law.quantile(q) == pytest.approx(law.quantile(q), rel=0.06), q
    ignored = fit_law(law.name, seen)
    assert abs(ignored.law.quantile(0.9) / law.quantile(0.9) - 1) > 0.1
    assert fit.ks < 0.01
    assert fit.censored == int(cut.sum())


@pytest.mark.parametrize("name", ["lognormal", "weibull", "gamma"])
def test_lengths_that_were_left_out_do_not_bias(name: str) -> None:
    """Of a data set without answers beyond the 70 % quantile, some of the rest cut off, the law is still found."""
    law = next(law for law in TRUE if law.name == name)
    rng = np.random.default_rng(10)
    longest = law.quantile(0.7)
    wanted = law.sample(rng, 150_000)
    wanted = wanted[wanted <= longest]
    seen, cut = cut_at(wanted, np.where(rng.random(len(wanted)) < 0.3, law.quantile(0.4), longest))
    fit = fit_law(name, seen, cut, longest=longest)
    free = Law(name, fit.law.parameters)
    for q in (0.3, 0.6, 0.9):
        assert free.quantile(q) == pytest.approx(law.quantile(q), rel=0.08), q
    assert fit.law.longest == longest
    assert fit.ks < 0.01 < fit_law(name, seen, cut).ks


@each
def test_the_true_law_wins(law: Law) -> None:
    fits = fitting.fit_laws(Histogram.of(law.sample(np.random.default_rng(9), 30_000)))
    assert [f.aic for f in fits] == sorted(f.aic for f in fits)
    assert {f.law.name for f in fits} == set(LAWS)
    # Laws that hold it as a special case may come within their one parameter more.
    true = next(f for f in fits if f.law.name == law.name)
    assert true.aic - fits[0].aic < 4
    assert max(f.ks for f in fits) > 3 * true.ks


@settings(max_examples=20, deadline=None)
@given(st.floats(0.3, 1.5), st.floats(20.0, 2000.0), st.integers(0, 1000))
def test_lognormal_agrees_with_the_closed_form(sigma: float, median: float, seed: int) -> None:
    """For lengths well above 1, whole numbers hardly matter: the estimates are mean and deviation of the logs."""
    lengths = np.maximum(
        1, Law("lognormal", {"median": median, "sigma": sigma}).sample(np.random.default_rng(seed), 400)
    )
    fit = fit_law("lognormal", lengths)
    if lengths.min() >= 10:
        logs = np.log(lengths)
        assert fit.law.parameters["median"] == pytest.approx(np.exp(logs.mean()), rel=2e-3)
        assert fit.law.parameters["sigma"] == pytest.approx(logs.std(), rel=5e-3)
    # Nothing near it is likelier.
    counts = Histogram.of(lengths)
    for key, by in (("median", 1.02), ("median", 0.98), ("sigma", 1.02), ("sigma", 0.98)):
        other = Law("lognormal", {**fit.law.parameters, key: fit.law.parameters[key] * by})
        assert fitting.judge(other, counts).log_likelihood < fit.log_likelihood + 1e-6


def test_a_censored_fit_agrees_with_scipys() -> None:
    """SciPy's own censored fit of the continuous law, for lengths so long that rounding does not matter."""
    rng = np.random.default_rng(3)
    wanted = np.round(stats.weibull_min(1.4, scale=3000).rvs(400, random_state=rng)).astype(int) + 1
    seen, cut = cut_at(wanted, 3500)
    data = stats.CensoredData(uncensored=seen[~cut], right=seen[cut])
    shape, _, scale = stats.weibull_min.fit(data, floc=0)
    fit = fit_law("weibull", seen, cut)
    assert fit.law.parameters["shape"] == pytest.approx(shape, rel=2e-3)
    assert fit.law.parameters["scale"] == pytest.approx(scale, rel=2e-3)


def test_whole_numbers_matter_for_short_answers() -> None:
    """Of a law with most of its mass on 1 to 5 tokens, the density at n would be a wrong likelihood."""
    law = Law("exponential", {"scale": 1.5})
    fit = fit_law("exponential", law.sample(np.random.default_rng(2), 50_000))
    assert fit.law.parameters["scale"] == pytest.approx(1.5, rel=0.02)
    total = sum(law.survival(n - 1) - law.survival(n) for n in range(1, 200))
    assert total == pytest.approx(1.0)


def test_kaplan_meier_is_scipys() -> None:
    rng = np.random.default_rng(5)
    seen, cut = cut_at(rng.geometric(0.05, 300), rng.integers(5, 60, 300))
    ours = KaplanMeier.of(Histogram.of(seen, cut))
    theirs = stats.ecdf(stats.CensoredData(uncensored=seen[~cut], right=seen[cut])).sf
    n = np.arange(1, 60)
    assert ours.survival_at(n) == pytest.approx(theirs.evaluate(n))


def test_what_nearly_all_were_cut_off_before_is_not_compared() -> None:
    rng = np.random.default_rng(5)
    wanted = Law("exponential", {"scale": 200}).sample(rng, 5000)
    assert KaplanMeier.of(Histogram.of(wanted)).reach == wanted.max()
    seen, cut = cut_at(wanted, np.where(rng.random(5000) < 0.98, 300, 5000))
    ours = KaplanMeier.of(Histogram.of(seen, cut))
    assert ours.reach == 300
    assert fit_law("exponential", seen, cut).ks < 0.03


def test_kaplan_meier_by_hand() -> None:
    # 6 answers: 2, 3, 3+, 5, 7+, 9: S(2) = 5/6, S(3) = 5/6 * 4/5, S(5) = 2/3 * 2/3, S(9) = 0.
    ours = KaplanMeier.of(Histogram.of([2, 3, 3, 5, 7, 9], [0, 0, 1, 0, 1, 0]))
    assert ours.survival_at([1, 2, 3, 4, 5, 8, 9]) == pytest.approx([1, 5 / 6, 2 / 3, 2 / 3, 4 / 9, 4 / 9, 0])
    assert [ours.quantile(q) for q in (0.1, 0.3, 0.5, 0.99)] == [2, 3, 5, 9]
    assert KaplanMeier.of(Histogram.of([5, 8, 8], [0, 1, 1])).quantile(0.5) is None


def test_quantiles_stand_beside_what_was_seen() -> None:
    law = Law("lognormal", {"median": 100, "sigma": 1.0})
    wanted = law.sample(np.random.default_rng(1), 20_000)
    seen, cut = cut_at(wanted, 400)
    at = {q.q: q for q in fit_law("lognormal", seen, cut).quantiles}
    assert at[0.5].seen == np.quantile(wanted, 0.5, method="inverted_cdf")
    assert at[0.5].fitted == pytest.approx(law.quantile(0.5), abs=2)
    assert at[0.99].seen is None
    assert at[0.99].fitted == pytest.approx(law.quantile(0.99), rel=0.05)


def test_distances_grow_with_what_is_wrong_and_not_with_n() -> None:
    law = Law("gamma", {"scale": 100, "shape": 0.5})
    few, many = (fit_law("lognormal", law.sample(np.random.default_rng(n), n)) for n in (3000, 60_000))
    assert many.ks == pytest.approx(few.ks, rel=0.15)
    assert many.anderson_darling == pytest.approx(few.anderson_darling, rel=0.25)
    assert few.ks > few.chance_ks
    right = fit_law("gamma", law.sample(np.random.default_rng(0), 3000))
    assert right.anderson_darling < few.anderson_darling / 10


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 2**20), st.booleans()), min_size=10, max_size=40).filter(
        lambda rows: len({n for n, cut in rows if not cut}) > 1
    )
)
def test_whatever_the_lengths_a_fit_is_finite(rows: list[tuple[int, bool]]) -> None:
    for name in ("lognormal", "weibull", "pareto", "gamma"):
        fit = fit_law(name, [n for n, _ in rows], [cut for _, cut in rows])
        assert np.isfinite([fit.aic, fit.bic, fit.ks, fit.anderson_darling]).all()
        assert 0 <= fit.ks <= 1


@pytest.mark.parametrize(
    ("lengths", "cut", "said"),
    [
        ([3, 4, 5], None, r"3 lengths are too few to fit a law; give 10 or more"),
        ([], None, r"0 lengths are too few"),
        ([7] * 50, None, r"all lengths are 7: there is no law to fit; describe them as constant, 7 tokens"),
        ([7] * 50 + [9], [False] * 50 + [True], r"all answers that were not cut off are 7"),
        ([7, 8] * 50, [True] * 100, r"all 100 answers were cut off"),
        ([0, 1] * 50, None, r"whole numbers from 1 to"),
        ([1.5, 2] * 50, None, r"whole numbers from 1 to"),
        ([float("nan"), 2] * 50, None, r"whole numbers from 1 to"),
        (["a", "b"] * 50, None, r"flat list of whole numbers"),
        ([3, 4] * 50, [True], r"100 lengths and 1 marks"),
    ],
)
def test_lengths_without_a_law_are_refused_in_one_line(lengths: list[int], cut: list[bool] | None, said: str) -> None:
    with pytest.raises(TraceError, match=said) as refused:
        fit_law("lognormal", lengths, cut)
    assert "\n" not in str(refused.value)


def test_a_length_above_the_longest_is_refused() -> None:
    with pytest.raises(TraceError, match=r"a length of 99 is above the longest, 50; raise longest"):
        fit_law("gamma", range(1, 100), longest=50)


def test_an_unknown_law_is_refused() -> None:
    with pytest.raises(TraceError, match=r"'constant' is no law that can be fitted; one of lognormal"):
        fit_law("constant", range(1, 100))
