"""A law is one distribution, whichever way it is asked."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ecoserve.data.laws import GIVEN_LAWS, LAWS, LONGEST, Law
from ecoserve.data.laws.law import continuous
from ecoserve.data.workloads.parts import GivenLength
from ecoserve.errors import TraceError

EXAMPLES = [
    Law("lognormal", {"median": 120, "sigma": 0.9}),
    Law("weibull", {"scale": 300, "shape": 0.7}),
    Law("pareto", {"scale": 200, "shape": 2.5}),
    Law("logt", {"median": 80, "sigma": 0.6, "df": 3.0}),
    Law("gamma", {"scale": 90, "shape": 1.6}),
    Law("exponential", {"scale": 40}),
    Law("constant", {"tokens": 128}),
    Law("uniform", {"low": 3, "high": 9}),
    Law("lognormal", {"median": 900, "sigma": 1.5}, longest=1024),
    Law("uniform", {"low": 3, "high": 9}, longest=5),
]


def mean(law: Law, upper: int = LONGEST) -> float:
    """E[min(N, upper)]."""
    return 1.0 + float(law.survival_at(np.arange(1, upper)).sum())


each = pytest.mark.parametrize("law", EXAMPLES, ids=lambda law: f"{law.name}-{law.longest}")


def laws() -> st.SearchStrategy[Law]:
    size, shape = st.floats(0.5, 5000.0), st.floats(0.3, 8.0)
    of = {"median": size, "scale": size, "sigma": st.floats(0.05, 2.5), "shape": shape, "df": st.floats(0.5, 50.0)}
    return st.sampled_from(sorted(LAWS)).flatmap(
        lambda name: st.builds(
            Law,
            st.just(name),
            st.fixed_dictionaries({p: of[p] for p in LAWS[name]}),
            st.none() | st.integers(5000, LONGEST),
        )
    )


def test_all_laws_have_an_example() -> None:
    assert {law.name for law in EXAMPLES} == {*LAWS, *GIVEN_LAWS}


@settings(max_examples=150, deadline=None)
@given(laws(), st.floats(1e-6, 1 - 1e-6))
def test_the_quantile_is_the_least_length_with_that_share(law: Law, q: float) -> None:
    n = law.quantile(q)
    assert 1 <= n <= LONGEST
    slack = 1e-9
    if n < LONGEST:
        assert 1.0 - law.survival(n) >= q - slack
    if n > 1:
        assert 1.0 - law.survival(n - 1) < q + slack


@each
def test_survival_falls_from_one_and_is_a_step_function(law: Law) -> None:
    n = np.arange(0, 3000)
    above = law.survival_at(n)
    assert above[0] == 1.0
    assert np.all(np.diff(above) <= 0.0)
    assert np.array_equal(law.survival_at(n + 0.99), above)
    assert law.survival(LONGEST) == 0.0


SCIPYS = {
    "lognormal": lambda p: stats.lognorm(p["sigma"], scale=p["median"]),
    "weibull": lambda p: stats.weibull_min(p["shape"], scale=p["scale"]),
    "pareto": lambda p: stats.lomax(p["shape"], scale=p["scale"]),
    "gamma": lambda p: stats.gamma(p["shape"], scale=p["scale"]),
    "exponential": lambda p: stats.expon(scale=p["scale"]),
}


@pytest.mark.parametrize("law", [law for law in EXAMPLES if law.name in SCIPYS], ids=lambda law: law.name)
def test_the_law_behind_is_scipys(law: Law) -> None:
    ours, theirs = continuous(law.name, law.parameters), SCIPYS[law.name](law.parameters)
    x, q = np.geomspace(0.01, 5000, 40), np.linspace(0.001, 0.999, 40)
    for name, at in (("sf", x), ("cdf", x), ("logpdf", x), ("isf", q)):
        assert getattr(ours, name)(at) == pytest.approx(getattr(theirs, name)(at), rel=1e-9), name


def test_the_log_t_law_is_students_t_of_the_log() -> None:
    ours, t = continuous("logt", {"median": 80, "sigma": 0.6, "df": 3.0}), stats.t(3.0, loc=math.log(80), scale=0.6)
    x, q = np.geomspace(0.01, 5000, 40), np.linspace(0.001, 0.999, 40)
    assert ours.sf(x) == pytest.approx(t.sf(np.log(x)), rel=1e-9)
    assert ours.cdf(x) == pytest.approx(t.cdf(np.log(x)), rel=1e-9)
    assert ours.logpdf(x) == pytest.approx(t.logpdf(np.log(x)) - np.log(x), rel=1e-9)
    assert np.log(ours.isf(q)) == pytest.approx(t.isf(q), rel=1e-9)


@each
def test_samples_follow_the_law(law: Law) -> None:
    drawn = law.sample(np.random.default_rng(4), 20_000)
    assert drawn.dtype == np.int64
    assert drawn.min() >= 1
    n = np.arange(1, 4000)
    seen = 1.0 - np.searchsorted(np.sort(drawn), n, side="right") / len(drawn)
    # Kolmogorov's bound at 0.1 %; for whole numbers it is wider than needed.
    assert np.abs(seen - law.survival_at(n)).max() < 1.95 / math.sqrt(len(drawn))
    assert np.minimum(drawn, 2000).mean() == pytest.approx(mean(law, 2000), rel=0.03)


def test_the_seed_decides_and_ranks_are_shared_among_laws() -> None:
    one = EXAMPLES[0].sample(np.random.default_rng(1), 500)
    assert np.array_equal(one, EXAMPLES[0].sample(np.random.default_rng(1), 500))
    assert not np.array_equal(one, EXAMPLES[0].sample(np.random.default_rng(2), 500))
    other = EXAMPLES[1].sample(np.random.default_rng(1), 500)
    assert np.all(np.diff(other[np.argsort(one, kind="stable")][np.diff(np.sort(one), prepend=0) > 0]) >= 0)


def test_laws_without_a_mean_have_one_up_to_a_limit() -> None:
    heavy = Law("pareto", {"scale": 100, "shape": 0.8})
    assert mean(heavy, 1000) < mean(heavy, 100_000) < mean(heavy) < LONGEST
    assert heavy.sample(np.random.default_rng(0), 200_000).max() == LONGEST


def test_what_parameters_mean() -> None:
    assert Law("lognormal", {"median": 120, "sigma": 0.9}).quantile(0.5) == 120
    assert Law("logt", {"median": 120, "sigma": 0.9, "df": 2}).quantile(0.5) == 120
    assert Law("weibull", {"scale": 300, "shape": 2}).survival(300) == pytest.approx(math.exp(-((300.5 / 300) ** 2)))
    assert Law("pareto", {"scale": 300, "shape": 2}).survival(300) == pytest.approx((1 + 300.5 / 300) ** -2)
    # Rounding moves the mean by nothing, X < 0.5 becoming 1 by a little.
    assert mean(Law("gamma", {"scale": 90, "shape": 1.6})) == pytest.approx(144, rel=1e-3)
    assert mean(Law("exponential", {"scale": 40})) == pytest.approx(40, rel=1e-3)
    assert mean(Law("constant", {"tokens": 128})) == 128
    assert mean(Law("uniform", {"low": 3, "high": 9})) == pytest.approx(6)
    assert set(Law("uniform", {"low": 3, "high": 9}).sample(np.random.default_rng(0), 500).tolist()) == set(
        range(3, 10)
    )


def test_a_longest_length_conditions_the_law() -> None:
    free = Law("weibull", {"scale": 400, "shape": 0.9})
    bound = Law("weibull", {"scale": 400, "shape": 0.9}, longest=600)
    inside = 1.0 - free.survival(600)
    for n in (1, 50, 300, 599):
        assert 1.0 - bound.survival(n) == pytest.approx((1.0 - free.survival(n)) / inside)
    assert bound.survival(600) == 0.0
    assert bound.sample(np.random.default_rng(0), 100_000).max() == 600
    kept = free.sample(np.random.default_rng(1), 200_000)
    assert mean(bound) == pytest.approx(kept[kept <= 600].mean(), rel=0.01)


@each
def test_a_law_travels_as_json(law: Law) -> None:
    assert GivenLength(**json.loads(json.dumps(law.as_dict()))).as_law() == law


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"law": "zipf", "scale": 1}, r"'zipf' is no law of lengths; one of lognormal, weibull"),
        ({"law": "weibull", "scale": 1}, r"law weibull has the parameters scale, shape, given are scale"),
        ({"law": "weibull"}, r"given are none"),
        ({"law": "exponential", "scale": -1}, r"scale of law exponential must be a number above 0, not -1"),
        ({"law": "exponential", "scale": math.nan}, r"must be a number above 0"),
        ({"law": "exponential", "scale": True}, r"must be a number above 0, not True"),
        ({"law": "exponential", "scale": "40"}, r"must be a number above 0, not '40'"),
        ({"law": "constant", "tokens": 2.5}, r"must be a whole number up to 1048576, not 2.5"),
        ({"law": "uniform", "low": 9, "high": 3}, r"low 9 of law uniform is above high 3"),
        ({"law": "constant", "tokens": 7, "longest": 5}, r"law constant with these parameters has no length up to"),
        ({"law": "constant", "tokens": 7, "longest": 0}, r"longest must be a whole number from 1 to 1048576, not 0"),
    ],
)
def test_what_is_no_law_is_refused_in_one_line(content: dict[str, Any], said: str) -> None:
    parameters = {key: value for key, value in content.items() if key not in ("law", "longest")}
    with pytest.raises(TraceError, match=said):
        Law(content["law"], parameters, content.get("longest"))


@pytest.mark.parametrize("q", [0.0, 1.0, -0.5, math.nan])
def test_impossible_quantiles_are_refused(q: float) -> None:
    with pytest.raises(TraceError, match="between 0 and 1"):
        EXAMPLES[0].quantile(q)
