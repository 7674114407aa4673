"""Several answers to one prompt: against random effects whose shares of variance and errors are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from profiled import table_of, trace_of
from scipy import stats

from ecoserve.data.profiling import profile_trace
from ecoserve.data.profiling.same_prompt import MOST, answer_sets, by_others, icc, same_prompt

BETWEEN, WITHIN = 60.0, 40.0


def effects(prompts: int, answers: int, seed: int = 0) -> np.ndarray:
    """Lengths of ``answers`` answers to each of ``prompts`` prompts, shape ``[prompts, answers]``."""
    rng = np.random.default_rng(seed)
    of_prompt = rng.normal(500, BETWEEN, (prompts, 1))
    return np.round(of_prompt + rng.normal(0, WITHIN, (prompts, answers))).astype(np.int64)


def asked(lengths: np.ndarray) -> dict[str, list[str]]:
    """Prompts of the flattened ``lengths``."""
    return {"prompt": [f"question {i}" for i in range(len(lengths)) for _ in range(lengths.shape[1])]}


def test_random_effects_have_the_figures_that_theory_gives() -> None:
    lengths = effects(4000, 4)
    found = profile_trace(trace_of(lengths.ravel(), **asked(lengths))).same_prompt
    assert found is not None
    assert (found.prompts, found.answers) == (4000, 16_000)
    share = BETWEEN**2 / (BETWEEN**2 + WITHIN**2)
    assert found.icc == pytest.approx(share, abs=0.015)
    assert found.icc_low < share < found.icc_high
    assert found.icc_high - found.icc_low < 0.05
    # Mean distance of two normal draws, of a draw from the mean of three others, and from the middle of all.
    assert found.one_other.mae_tokens == pytest.approx(2 * WITHIN / math.sqrt(math.pi), rel=0.02)
    assert found.mean_of_others is not None
    normal = math.sqrt(2 / math.pi)
    assert found.mean_of_others.mae_tokens == pytest.approx(normal * WITHIN * math.sqrt(4 / 3), rel=0.02)
    assert found.constant.mae_tokens == pytest.approx(normal * math.hypot(BETWEEN, WITHIN), rel=0.02)
    # Knowing each prompt's own mean gives this; the bracket holds it.
    assert found.floor_mae_low_tokens < normal * WITHIN < found.floor_mae_high_tokens
    assert found.one_other.within_50 == pytest.approx(1 - 2 * stats.norm.sf(50 / (WITHIN * math.sqrt(2))), abs=0.01)
    # Two draws that share a part of the variance correlate by it; tau of normals is 2 / pi asin(r).
    assert found.one_other.kendall_tau == pytest.approx(2 / math.pi * math.asin(share), abs=0.02)
    assert found.cv_median == pytest.approx(WITHIN / 500, rel=0.15)
    assert found.sd_log_within == pytest.approx(WITHIN / 500, rel=0.1)


def test_intraclass_correlation_is_that_of_the_analysis_of_variance() -> None:
    rng = np.random.default_rng(2)
    groups = [
        rng.normal(mean, 3, size) for mean, size in zip(rng.normal(50, 4, 30), rng.integers(2, 9, 30), strict=True)
    ]
    values = np.concatenate(groups)
    sets = np.repeat(np.arange(30), [len(g) for g in groups])
    f = stats.f_oneway(*groups).statistic
    sizes = np.asarray([len(g) for g in groups])
    n0 = (sizes.sum() - (sizes**2).sum() / sizes.sum()) / 29
    assert icc(values, sets, 0)[0] == pytest.approx((f - 1) / (f - 1 + n0))


def test_the_interval_holds_the_true_share_in_most_traces() -> None:
    true = BETWEEN**2 / (BETWEEN**2 + WITHIN**2)
    hits = 0
    for seed in range(60):
        lengths = effects(200, 3, seed=seed)
        _, low, high = icc(lengths.ravel().astype(float), np.repeat(np.arange(200), 3), seed)
        hits += low <= true <= high
    assert hits >= 53


def test_prompts_that_decide_nothing_and_prompts_that_decide_all() -> None:
    noise = np.random.default_rng(0).integers(100, 900, (2000, 3))
    found = profile_trace(trace_of(noise.ravel(), **asked(noise))).same_prompt
    assert found is not None
    assert found.icc < 0.05
    assert found.floor_mae_high_tokens > 0.9 * found.constant.mae_tokens
    same = np.repeat(np.random.default_rng(0).integers(100, 900, (300, 1)), 3, axis=1)
    sure = profile_trace(trace_of(same.ravel(), **asked(same))).same_prompt
    assert sure is not None
    assert (sure.icc, sure.one_other.mae_tokens, sure.floor_mae_high_tokens, sure.cv_median) == (1.0, 0.0, 0.0, 0.0)
    assert sure.one_other.kendall_tau == pytest.approx(1.0)


def test_samples_that_a_row_brings_along_say_the_same_as_rows() -> None:
    lengths = effects(1500, 4)
    rows = profile_trace(trace_of(lengths.ravel(), **asked(lengths))).same_prompt
    brought = profile_trace(
        trace_of(
            lengths[:, 0],
            prompt=[f"question {i}" for i in range(len(lengths))],
            sample_tokens=[tuple(int(v) for v in others) for others in lengths[:, 1:]],
        )
    ).same_prompt
    assert rows is not None
    assert brought is not None
    assert (brought.prompts, brought.answers) == (rows.prompts, rows.answers)
    assert brought.icc == pytest.approx(rows.icc)
    # Only the row's own answer is a target there.
    assert (rows.one_other.targets, brought.one_other.targets) == (6000, 1500)
    assert brought.one_other.mae_tokens == pytest.approx(rows.one_other.mae_tokens, rel=0.05)


def test_what_is_there_as_rows_and_as_samples_counts_once() -> None:
    """A collected trace has each answer as a row, and as a sample of its siblings."""
    lengths = effects(50, 3)
    others = [tuple(int(v) for v in np.delete(row, i)) for row in lengths for i in range(3)]
    answers = answer_sets(table_of(lengths.ravel(), sample_tokens=others, **asked(lengths)), 0)
    assert answers is not None
    assert len(answers.sets) == 150
    assert answers.targets.all()


def test_answers_without_a_text_belong_together_by_their_row() -> None:
    answers = answer_sets(table_of([10, 20, 30], sample_tokens=[(11, 12), (), (31,)]), 0)
    assert answers is not None
    assert sorted(answers.sizes.tolist()) == [2, 3]
    assert answers.targets.sum() == 2


def test_two_models_answers_are_two_sets() -> None:
    lengths = effects(40, 4)
    models = [m for _ in range(40) for m in ("a", "a", "b", "b")]
    table = table_of(lengths.ravel(), model=models, **asked(lengths))
    answers = answer_sets(table, 0)
    assert answers is not None
    assert answers.sizes.tolist() == [2] * 80
    profile = profile_trace(table)
    assert {s.model for s in profile.same_prompt_by_model} == {"a", "b"}
    assert [s.prompts for s in profile.same_prompt_by_model] == [40, 40]


def test_of_a_prompt_asked_very_often_some_answers_are_looked_at() -> None:
    lengths = np.concatenate((np.arange(1, 101), [5, 6]))
    answers = answer_sets(table_of(lengths, prompt=["often"] * 100 + ["twice"] * 2), 0)
    assert answers is not None
    assert sorted(answers.sizes.tolist()) == [2, MOST]


def test_a_conversations_context_is_part_of_the_prompt() -> None:
    from ecoserve.data.records import Message

    contexts = [
        (Message("user", f"about {i % 2}"), Message("assistant", "yes"), Message("user", "go on")) for i in range(8)
    ]
    answers = answer_sets(table_of(range(1, 9), prompt=["go on"] * 8, messages=contexts), 0)
    assert answers is not None
    assert answers.sizes.tolist() == [4, 4]


def test_every_target_is_predicted_by_each_other_answer() -> None:
    table = table_of([10, 20, 60], prompt=["q"] * 3)
    answers = answer_sets(table, 0)
    assert answers is not None
    found = by_others(answers, 0)
    assert found.by_one.mae_tokens == pytest.approx((10 + 50 + 40) / 3)
    assert found.by_mean is not None
    assert found.by_mean.mae_tokens == pytest.approx((30 + 15 + 45) / 3)
    assert found.own_median == pytest.approx((10 + 0 + 40) / 3)
    assert found.by_one.within_50 == 1.0
    assert found.by_one.within_100 == 1.0


def test_no_prompt_twice_says_nothing() -> None:
    assert answer_sets(table_of([1, 2, 3], prompt=["a", "b", "c"]), 0) is None
    assert answer_sets(table_of([1, 2, 3]), 0) is None
    # Fewer than ten sets are not shown.
    profile = profile_trace(trace_of([5, 6] * 5, prompt=[f"q{i // 2}" for i in range(10)]))
    assert profile.same_prompt is None


def test_same_prompt_names_its_model() -> None:
    lengths = effects(12, 2)
    answers = answer_sets(table_of(lengths.ravel(), **asked(lengths)), 0)
    assert answers is not None
    assert same_prompt(answers, "m", by_others(answers, 0), 0).model == "m"


def test_equal_lengths_explain_nothing() -> None:
    found = profile_trace(trace_of([7] * 40, prompt=[f"q{i // 2}" for i in range(40)])).same_prompt
    assert found is not None
    assert (found.icc, found.icc_high, found.icc_log, found.constant.mae_tokens) == (0.0, 0.0, 0.0, 0.0)
