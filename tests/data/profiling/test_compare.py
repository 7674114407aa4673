"""Two traces: equal ones are equal, a shift that was put in is found with its size, distances are SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
from profiled import skewed, trace_of
from scipy import stats

from ecoserve.data.profiling import Comparison, compare_traces
from ecoserve.data.profiling.compare import Pair, psi, quantile_changes, stretch, wasserstein_log
from ecoserve.data.profiling.summaries import count


def pair_of(a: np.ndarray, b: np.ndarray) -> Pair:
    return Pair.of(count(a), count(b), 1.0, 1.0)


def change(c: Comparison, q: float) -> tuple[float, float, float]:
    found = next(x for x in c.quantiles if x.q == q)
    return found.low, float(found.difference), found.high


def test_a_trace_and_itself_do_not_differ() -> None:
    trace = trace_of(skewed(3000), prompt_tokens=[50] * 3000)
    c = compare_traces(trace, trace)
    assert (c.verdict, c.ks, c.psi, c.wasserstein_log, c.shift_log) == ("same", 0, pytest.approx(0), 0, 0)
    assert (c.scale, c.power, c.aligned_ks) == (pytest.approx(1), pytest.approx(1), pytest.approx(0))
    assert c.ks_p == pytest.approx(1.0)
    assert all(x.difference == 0 and x.low <= 0 <= x.high for x in c.quantiles)
    assert "no difference is shown" in c.answer[-1]


def test_two_halves_of_the_same_traffic_are_the_same() -> None:
    """Chance alone is called a difference as rarely as it should be."""
    same = sum(
        compare_traces(trace_of(skewed(800, seed=2 * i)), trace_of(skewed(800, seed=2 * i + 1))).verdict == "same"
        for i in range(30)
    )
    assert same >= 26


def test_a_tenth_longer_is_a_difference_of_a_tenth() -> None:
    a, b = skewed(20_000, 400, 0.4, seed=1), (skewed(20_000, 400, 0.4, seed=2) * 1.1).round().astype(int)
    c = compare_traces(trace_of(a), trace_of(b))
    assert c.verdict != "same"
    assert c.ks_p < 1e-6
    assert c.ks_low > c.ks_by_chance
    low, difference, high = change(c, 0.5)
    assert 0 < low < 40 < high
    assert difference == pytest.approx(40, abs=8)
    assert np.exp(c.shift_log) == pytest.approx(1.1, abs=0.01)
    assert c.scale * 400**c.power == pytest.approx(440, rel=0.02)
    assert c.aligned_ks < 0.02


def test_the_interval_of_a_quantile_holds_its_true_change() -> None:
    hits = 0
    for seed in range(60):
        a, b = skewed(400, 400, 0.4, seed=seed), skewed(400, 440, 0.4, seed=1000 + seed)
        pair = pair_of(a, b)
        median = next(found for found in quantile_changes(pair, pair.drawn(seed)) if found.q == 0.5)
        hits += median.low <= 40 <= median.high
    assert hits >= 53


def test_distances_are_scipys() -> None:
    a, b = skewed(700, 200, seed=1), skewed(500, 320, 0.4, seed=2)
    c = compare_traces(trace_of(a), trace_of(b))
    assert c.ks == pytest.approx(stats.ks_2samp(a, b).statistic)
    assert c.ks_p == pytest.approx(stats.ks_2samp(a, b, method="asymp").pvalue, rel=0.3)
    assert wasserstein_log(pair_of(a, b)) == pytest.approx(stats.wasserstein_distance(np.log(a), np.log(b)))
    assert c.ks_low <= c.ks <= c.ks_high


def test_stability_index_by_hand() -> None:
    """Each of ten lengths a tenth of A; of B half have the shortest."""
    a, b = np.repeat(np.arange(1, 11), 1000), np.concatenate((np.full(5500, 1), np.repeat(np.arange(2, 11), 500)))
    expected = 0.45 * np.log(5.5) + 9 * 0.05 * np.log(2)
    assert psi(pair_of(a, b)) == pytest.approx(expected, rel=0.01)


def test_a_stretch_is_undone() -> None:
    logs = np.random.default_rng(0).normal(5, 0.5, 20_000)
    a, b = np.exp(logs).round().astype(int), (0.5 * np.exp(logs) ** 1.4).round().astype(int)
    scale, power, left = stretch(pair_of(np.maximum(a, 1), np.maximum(b, 1)))
    assert power == pytest.approx(1.4, abs=0.03)
    assert scale == pytest.approx(0.5, rel=0.15)
    assert left < 0.01


def test_another_shape_wants_a_new_predictor() -> None:
    two = np.concatenate((skewed(1500, 30, 0.2, seed=1), skewed(1500, 900, 0.2, seed=2)))
    c = compare_traces(trace_of(skewed(3000)), trace_of(two))
    assert c.verdict == "retrain"
    assert c.aligned_ks > 0.1


def test_other_requests_are_no_harm_to_a_predictor_that_sees_them() -> None:
    """Short prompts have answers of about 50 tokens, long ones of 500; B has more long ones."""

    def side(share: float, seed: int) -> object:
        long = np.random.default_rng(seed).random(4000) < share
        lengths = np.where(long, skewed(4000, 500, 0.3, seed=seed), skewed(4000, 50, 0.3, seed=seed + 1))
        return trace_of(lengths, prompt_tokens=np.where(long, 1000, 10))

    c = compare_traces(side(0.3, 10), side(0.5, 20))  # type: ignore[arg-type]
    assert c.mix_log is not None
    assert c.within_log is not None
    assert c.mix_log == pytest.approx(0.2 * np.log(10), abs=0.08)
    assert abs(c.within_log) < 0.05
    assert c.mix_log + c.within_log == pytest.approx(c.shift_log)
    assert c.new_prompt_lengths == 0.0


@pytest.mark.parametrize(("noise", "verdict"), [(0.1, "recalibrate"), (3.0, "retrain")])
def test_the_same_prompts_tell_best(noise: float, verdict: str) -> None:
    """B answers twice as long: to the same prompts in the same order, or to others."""
    rng = np.random.default_rng(0)
    a = skewed(1000, 300, 0.6, seed=1)
    b = np.maximum(1, np.exp(np.log(2 * a) + rng.normal(0, noise, 1000))).round().astype(int)
    prompts = [f"question {i}" for i in range(1000)]
    c = compare_traces(trace_of(a, prompt=prompts), trace_of(np.minimum(b, 100_000), prompt=prompts))
    assert c.verdict == verdict
    shared = c.shared_prompts[0]
    assert shared.prompts == 1000
    if verdict == "recalibrate":
        assert shared.ratio_low < 2 < shared.ratio_high
        assert shared.kendall_tau > 0.8
        assert "1.99 times as long" in c.answer[-1]


def test_shared_prompts_show_what_distributions_do_not() -> None:
    """Three per cent longer on the same 500 prompts: too little for the distributions, plain on pairs."""
    a = skewed(500, 1000, 0.6, seed=1)
    prompts = [f"question {i}" for i in range(500)]
    c = compare_traces(trace_of(a, prompt=prompts), trace_of((a * 1.03).round().astype(int), prompt=prompts))
    assert c.ks_p > 0.05
    assert c.shared_prompts[0].ratio_low > 1
    assert c.verdict == "small"


def test_groups_of_both_sides_stand_side_by_side() -> None:
    c = compare_traces(
        trace_of([10] * 60 + [50] * 40, turn=[0] * 60 + [1] * 40), trace_of([20] * 99 + [9], turn=[0] * 99 + [20])
    )
    groups = {g.name: g for g in c.groups if g.by == "turn"}
    assert (groups["turn 1"].share_a, groups["turn 1"].share_b) == (0.6, 0.99)
    assert (groups["turn 1"].p50_a, groups["turn 1"].p50_b) == (10, 20)
    assert (groups["turn 2"].p50_a, groups["turn 2"].p50_b) == (50, None)
    assert groups["turn 17 and later"].share_a == 0.0


def test_a_language_that_is_new() -> None:
    english = [f"Please write a short story about the history of number {i} and its friends." for i in range(200)]
    german = [f"Bitte schreibe mir eine kurze Geschichte über die Zahl {i} und ihre Freunde." for i in range(100)]
    lengths = skewed(200)
    c = compare_traces(trace_of(lengths, prompt=english), trace_of(lengths * 3, prompt=english[:100] + german))
    assert c.new_languages == pytest.approx(0.5)
    assert c.verdict == "retrain"
    assert any("in languages that A hardly has" in reason for reason in c.reasons)


def test_what_one_side_has_only_one_of_is_still_a_group() -> None:
    """All of A are first turns, by one model, in a narrow band: a hundred per cent of it, not none."""
    rng = np.random.default_rng(0)
    a = trace_of(skewed(500), prompt_tokens=[20] * 500, model=["m"] * 500)
    prompts, models = rng.choice([20, 200, 3000], 500), rng.choice(["m", "n"], 500)
    b = trace_of(skewed(500), prompt_tokens=prompts, model=models, turn=rng.integers(0, 3, 500))
    groups = {(g.by, g.name): g for g in compare_traces(a, b).groups}
    assert groups["turn", "turn 1"].share_a == 1.0
    assert groups["model", "m"].share_a == 1.0
    assert groups["prompt_band", "up to 32"].share_a == 1.0
    assert groups["prompt_band", "over 2,048"].share_b == pytest.approx(np.mean(prompts == 3000))
    for by in ("turn", "model", "prompt_band"):
        for side in ("share_a", "share_b"):
            assert sum(getattr(g, side) for (b, _), g in groups.items() if b == by) == pytest.approx(1.0)


def test_a_rare_language_has_the_same_name_on_both_sides() -> None:
    english = [f"Please write a short story about the history of number {i} and its friends." for i in range(100)]
    german = [f"Bitte schreibe mir eine kurze Geschichte über die Zahl {i} und ihre Freunde." for i in range(60)]
    a, b = trace_of(skewed(110), prompt=english + german[:10]), trace_of(skewed(160), prompt=english + german)
    groups = {g.name: g for g in compare_traces(a, b).groups if g.by == "language"}
    assert groups["de"].share_a == pytest.approx(10 / 110)
    assert groups["de"].share_b == pytest.approx(60 / 160)
