"""Laws and tail indices: what was drawn from a known law is found to be of that law."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from profiled import trace_of

from ecoserve.data.profiling import profile_trace
from ecoserve.data.profiling.model import Tail
from ecoserve.data.profiling.summaries import count
from ecoserve.data.profiling.tails import tail

N = 20_000


def tail_of(drawn: np.ndarray, cap: int | None = None) -> Tail:
    lengths = np.maximum(1, np.ceil(drawn)).astype(np.int64)
    if cap is None:
        return tail(count(lengths), None)[0]
    lengths = np.minimum(lengths, cap)
    return tail(count(lengths, lengths == cap), cap)[0]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("lognormal", {"median": 200.0, "sigma": 0.8}),
        ("weibull", {"scale": 300.0, "shape": 1.6}),
        ("gamma", {"scale": 120.0, "shape": 2.5}),
        ("pareto", {"scale": 300.0, "shape": 2.5}),
    ],
)
@pytest.mark.parametrize("cap", [None, 400])
def test_the_law_that_was_drawn_from_is_found(name: str, parameters: dict[str, float], cap: int | None) -> None:
    rng = np.random.default_rng(1)
    drawn = {
        "lognormal": lambda: rng.lognormal(np.log(200), 0.8, N),
        "weibull": lambda: 300 * rng.weibull(1.6, N),
        "gamma": lambda: rng.gamma(2.5, 120, N),
        "pareto": lambda: 300 * rng.pareto(2.5, N),
    }[name]()
    found = tail_of(drawn, cap)
    assert found.laws[0].name == name
    for key, value in parameters.items():
        assert found.laws[0].parameters[key] == pytest.approx(value, rel=0.12 if cap else 0.06), key
    assert found.ks_by_chance is not None
    assert found.laws[0].ks < 1.5 * found.ks_by_chance
    assert found.ends_at == cap
    assert [law.aic for law in found.laws] == sorted(law.aic for law in found.laws)
    if cap:
        assert "cut off at 400 tokens" in found.verdict


@pytest.mark.parametrize(
    ("drawn", "index", "kind"),
    [
        (lambda rng: 300 * rng.pareto(2.0, N), 0.5, "heavy"),
        (lambda rng: rng.exponential(200, 5 * N), 0.0, "light"),
        (lambda rng: rng.uniform(0, 1000, N), -1.0, "ends"),
    ],
)
def test_the_tail_index_is_found(drawn: Callable[[np.random.Generator], np.ndarray], index: float, kind: str) -> None:
    found = tail_of(drawn(np.random.default_rng(5)))
    assert found.kind == kind
    main = found.indices[1]
    assert main.index == pytest.approx(index, abs=0.1)
    if main.low is not None:
        assert main.high is not None
        assert main.low <= index <= main.high


def test_few_answers_do_not_tell_the_tail() -> None:
    assert tail_of(np.random.default_rng(0).exponential(200, 300)).kind in ("open", "unknown")
    assert tail_of(np.random.default_rng(0).exponential(200, 20)).kind == "unknown"


def test_shares_of_the_longest_by_hand() -> None:
    found = tail_of(np.arange(1, 11))
    assert found.top10_token_share == pytest.approx(10 / 55)
    # The longest hundredth of ten answers is a tenth of the longest one.
    assert found.top1_token_share == pytest.approx(1 / 55)
    assert found.p99_over_p50 == 2.0


def test_where_no_law_fits_the_advice_is_to_draw_from_the_record() -> None:
    rng = np.random.default_rng(2)
    found = tail_of(np.concatenate((rng.normal(50, 3, N), rng.normal(900, 20, N))))
    assert "no simple law fits" in found.verdict


def test_equal_lengths_have_no_law() -> None:
    found = profile_trace(trace_of([7] * 300)).tail
    assert (found.laws, found.indices, found.kind) == ([], [], "unknown")


def test_a_mixture_contradicts_itself_or_is_not_called_light() -> None:
    """A thin body and a few answers from a power law far out: no single index describes it."""
    rng = np.random.default_rng(7)
    drawn = np.concatenate((rng.uniform(100, 300, 9700), np.minimum(300 + 3000 * rng.pareto(1.2, 300), 900_000)))
    assert tail_of(drawn).kind in ("mixed", "heavy")
