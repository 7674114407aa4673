from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from ecoserve.data import Record, synthetic_trace, true_distribution
from ecoserve.errors import TraceError
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor import ConstantMedian, PromptLength, evaluate_predictor
from ecoserve.predictor.evaluation import score
from ecoserve.predictor.examples import Examples
from ecoserve.predictor.text import Request

KEYS = {
    *("rows", "mae_tokens", "within_50", "within_100", "kendall_tau", "bin_accuracy", "pinball_loss"),
    *("coverage_50", "coverage_80", "coverage_90", "coverage_95", "latency_p50_ms", "latency_p99_ms"),
}


class Oracle:
    """Knows the synthetic law, or the very lengths."""

    def __init__(self, records: Sequence[Record], *, exact: bool) -> None:
        self.answers = {
            r.prompt: LengthDistribution.point(r.response_tokens or 1) if exact else true_distribution(r)
            for r in records
        }

    def predict(self, requests: Sequence[Request], /) -> list[LengthDistribution]:
        return [self.answers[r if isinstance(r, str) else r[-1].content] for r in requests]


def test_figures_by_hand() -> None:
    bins = (0, 100, 200, 400)
    predicted = [
        LengthDistribution(bins, (1.0, 0.0, 0.0)),  # median 50
        LengthDistribution(bins, (0.0, 1.0, 0.0)),  # median 150
        LengthDistribution(bins, (0.0, 0.0, 1.0)),  # median 300
    ]
    scored = score(predicted, [60, 210, 390])
    assert scored["rows"] == 3
    assert scored["mae_tokens"] == pytest.approx((10 + 60 + 90) / 3)
    assert scored["within_50"] == pytest.approx(1 / 3)
    assert scored["within_100"] == 1.0
    assert scored["kendall_tau"] == 1.0
    assert scored["bin_accuracy"] == pytest.approx(2 / 3)
    assert scored["coverage_50"] == 0.0
    assert scored["coverage_80"] == pytest.approx(1 / 3)  # 60 <= 80, 210 > 180, 390 > 360
    assert scored["coverage_95"] == pytest.approx(2 / 3)  # 390 <= 390


def test_pinball_loss_is_least_for_the_truth() -> None:
    y = np.random.default_rng(0).integers(1, 401, 5000)
    right = LengthDistribution((0, 400), (1.0,))
    for wrong in (
        LengthDistribution((0, 200), (1.0,)),
        LengthDistribution((0, 800), (1.0,)),
        right.given_longer_than(100),
    ):
        assert score([right] * len(y), y)["pinball_loss"] < score([wrong] * len(y), y)["pinball_loss"]


def test_the_law_itself_is_covered_as_it_says_and_ranks_well() -> None:
    records = synthetic_trace(3000, seed=1).records
    figures = evaluate_predictor(Oracle(records, exact=False), records)
    assert set(figures) == KEYS
    for q in (50, 80, 90, 95):
        assert figures[f"coverage_{q}"] == pytest.approx(q / 100, abs=0.03)
    assert figures["kendall_tau"] > 0.5


def test_the_oracle_is_perfect_and_a_constant_ranks_nothing() -> None:
    trace = synthetic_trace(400, seed=2)
    # Only the first answer to each prompt, so that one prompt has one length.
    first = list({r.prompt: r for r in reversed(trace.records)}.values())
    perfect = evaluate_predictor(Oracle(first, exact=True), first)
    assert perfect["mae_tokens"] == 0
    assert perfect["kendall_tau"] == pytest.approx(1.0)
    assert perfect["bin_accuracy"] == 1.0
    constant = evaluate_predictor(ConstantMedian.fit(Examples.of(trace.records)), first)
    assert constant["kendall_tau"] == 0.0
    assert constant["mae_tokens"] > 50


def test_prompt_length_says_more_than_a_constant_where_it_matters() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 200, 2000)
    records = [
        Record(str(i), prompt="x" * int(n), response_tokens=int(max(1, rng.normal(3 * n, 20))))
        for i, n in enumerate(sizes)
    ]
    fit, rest = Examples.of(records[:1500]), records[1500:]
    by_length = evaluate_predictor(PromptLength.fit(fit), rest)
    assert by_length["mae_tokens"] < 0.4 * evaluate_predictor(ConstantMedian.fit(fit), rest)["mae_tokens"]
    assert by_length["kendall_tau"] > 0.8


def test_rows_without_text_or_length_do_not_count() -> None:
    records = [
        Record("a", prompt="hi", response_tokens=5),
        Record("b", response_tokens=5),
        Record("c", prompt="no length"),
    ]
    constant = ConstantMedian(LengthDistribution((0, 10), (1.0,)))
    assert evaluate_predictor(constant, records)["rows"] == 1
    with pytest.raises(TraceError, match="no record has both"):
        evaluate_predictor(constant, records[1:])
