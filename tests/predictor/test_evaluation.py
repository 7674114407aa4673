from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.data import Record, synthetic_trace, true_distribution
from ecoserve.errors import TraceError
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor import ConstantMedian, PromptLength, evaluate_predictor
from ecoserve.predictor.evaluation import crps, expected_calibration_error, score
from ecoserve.predictor.examples import Examples
from ecoserve.predictor.text import Request

KEYS = {
    *("rows", "mae_tokens", "within_50", "within_100", "kendall_tau", "bin_accuracy", "pinball_loss"),
    *("coverage_50", "coverage_80", "coverage_90", "coverage_95", "latency_p50_ms", "latency_p99_ms", "crps", "ece"),
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
    y = np.random.default_rng(0).integers(1, 401, 2000)
    right = LengthDistribution((0, 400), (1.0,))
    for wrong in (
        LengthDistribution((0, 200), (1.0,)),
        LengthDistribution((0, 800), (1.0,)),
        right.given_longer_than(100),
    ):
        assert score([right] * len(y), y)["pinball_loss"] < score([wrong] * len(y), y)["pinball_loss"]


lengths_of_any_kind = st.builds(
    lambda first, widths, weights: LengthDistribution.from_weights(
        np.cumsum([first, *widths]).tolist(), [*weights[: len(widths) - 1], 1.0]
    ),
    st.integers(0, 30),
    st.lists(st.integers(1, 40), min_size=1, max_size=6),
    st.lists(st.floats(0.0, 1.0), min_size=6, max_size=6),
)


@given(lengths_of_any_kind, st.integers(1, 400))
def test_crps_is_the_sum_over_all_tokens(distribution: LengthDistribution, length: int) -> None:
    by_hand = sum((1.0 - distribution.survival(n) - (length <= n)) ** 2 for n in range(500))
    assert crps(distribution, length) == pytest.approx(by_hand, abs=1e-9)


def test_crps_of_a_point_is_its_error() -> None:
    assert [crps(LengthDistribution.point(100), n) for n in (1, 99, 100, 101, 4000)] == [99, 1, 0, 1, 3900]


def test_calibration_error_of_the_truth_of_a_shift_and_of_certainty() -> None:
    rng = np.random.default_rng(0)
    centres = rng.integers(100, 900, 4000)
    y = centres + rng.integers(-99, 101, 4000)
    right = [LengthDistribution((c - 100, c + 100), (1.0,)) for c in centres.tolist()]
    assert expected_calibration_error(right, y) < 0.01
    assert expected_calibration_error([LengthDistribution.point(n) for n in y.tolist()], y) == 0.0
    # Certain where it cannot be: half of what it says within 100 tokens of the centre comes out otherwise.
    certain = [LengthDistribution.point(c) for c in centres.tolist()]
    vague = [LengthDistribution((0, c + 400), (1.0,)) for c in centres.tolist()]
    assert expected_calibration_error(certain, y) > 0.03
    assert expected_calibration_error(vague, y) > 0.1
    # A constant is calibrated, however little it says.
    constant = LengthDistribution.from_samples(y.tolist(), 1000, bins=200)
    assert expected_calibration_error([constant] * len(y), y) < 0.02


def test_calibration_error_by_hand() -> None:
    # Asked about are 100 tokens (ten of the 19 levels) and 200 (nine). Both are sure of the wrong half, and of 200.
    early, late = LengthDistribution((0, 100, 200), (0.9, 0.1)), LengthDistribution((0, 100, 200), (0.2, 0.8))
    wrong = 10 * 0.9 + 10 * (1.0 - 0.2)
    assert expected_calibration_error([early, late], [200, 100]) == pytest.approx(wrong / 38)


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
