"""The same prompts answered by several models: shares of variance and ratios that were put in."""

from __future__ import annotations

import numpy as np
import pytest
from profiled import table_of, trace_of

from ecoserve.data.profiling import profile_trace
from ecoserve.data.profiling.same_prompt import across_models, variance_shares


def crossed(prompts: int, models: int, seed: int = 0) -> np.ndarray:
    """Log lengths, shape ``[prompts, models]``: variance 0.36 of prompts, 0.04 of chance; models 1.5 times apart."""
    rng = np.random.default_rng(seed)
    return np.asarray(
        6 + rng.normal(0, 0.6, (prompts, 1)) + np.log(1.5) * np.arange(models) + rng.normal(0, 0.2, (prompts, models))
    )


def test_shares_of_variance_are_those_put_in() -> None:
    logs = crossed(3000, 3)
    of_models = np.var(np.log(1.5) * np.arange(3), ddof=1)
    total = 0.36 + 0.04 + of_models
    assert variance_shares(logs) == pytest.approx((0.36 / total, of_models / total, 0.04 / total), abs=0.02)
    assert variance_shares(np.full((30, 3), 5.0)) == (0.0, 0.0, 1.0)
    noise = variance_shares(np.random.default_rng(0).normal(size=(2000, 4)))
    assert noise == pytest.approx((0, 0, 1), abs=0.03)


def test_models_are_compared_on_the_prompts_they_share() -> None:
    lengths = np.exp(crossed(500, 2)).round().astype(int)
    names = [f"question {i}" for i in range(500)]
    trace = trace_of(
        np.concatenate((lengths.ravel(), [9] * 50)),
        prompt=[n for n in names for _ in range(2)] + [f"only a {i}" for i in range(50)],
        model=["a", "b"] * 500 + ["a"] * 50,
    )
    found = across_models(
        table_of(lengths.ravel(), prompt=[n for n in names for _ in range(2)], model=["a", "b"] * 500), 0
    )
    profiled = profile_trace(trace).across_models
    assert profiled == found
    assert found is not None
    assert (found.models, found.prompts) == (2, 500)
    pair = found.pairs[0]
    assert (pair.a, pair.b, pair.prompts) == ("a", "b", 500)
    assert pair.ratio_low < 1.5 < pair.ratio_high
    assert pair.ratio_high / pair.ratio_low < 1.06
    assert pair.sd_log_ratio == pytest.approx(0.2 * 2**0.5, rel=0.1)
    assert pair.kendall_tau == pytest.approx(2 / np.pi * np.arcsin(0.9), abs=0.04)


def test_one_model_or_few_shared_prompts_are_not_compared() -> None:
    assert across_models(table_of([1, 2, 3]), 0) is None
    few = table_of([5, 6] * 19, prompt=[f"q{i // 2}" for i in range(38)], model=["a", "b"] * 19)
    assert across_models(few, 0) is None
