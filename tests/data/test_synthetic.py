"""The synthetic workload has the law it says it has, and can be learned."""

from __future__ import annotations

import re

import numpy as np
import pytest

from ecoserve.data import (
    SYNTHETIC_MODEL,
    Record,
    bayes_optimal_mae,
    load_trace,
    save_trace,
    split_trace,
    synthetic,
    synthetic_trace,
    true_distribution,
)
from ecoserve.data.synthetic import STYLES, TASKS, TOPICS
from ecoserve.errors import TraceError

TRACE = synthetic_trace(4000, seed=11)


def test_it_says_what_it_is() -> None:
    assert TRACE.format == "synthetic"
    assert TRACE.length_source == "synthetic"
    assert {r.model for r in TRACE.records} == {SYNTHETIC_MODEL}
    assert "synthetic" in SYNTHETIC_MODEL
    assert "synthetic" in TRACE.source
    assert (TRACE.report.rows_in, TRACE.report.kept) == (4000, 4000)


def test_every_record_is_complete() -> None:
    for r in TRACE.records:
        assert r.prompt
        assert r.response_tokens
        assert r.prompt_tokens
        assert len(r.sample_tokens) == 3
        assert r.censored == (r.response_tokens >= synthetic.LONGEST)
    assert len({r.conversation for r in TRACE.records}) == 4000
    assert len({r.prompt for r in TRACE.records}) > 3900


def test_the_seed_decides_and_a_longer_trace_begins_with_the_shorter() -> None:
    assert synthetic_trace(50, seed=11).records == TRACE.records[:50]
    assert synthetic_trace(50, seed=12).records != TRACE.records[:50]


def test_lengths_follow_the_law() -> None:
    """Probability integral transform: where each length lies in its law is uniform (Kolmogorov-Smirnov, 1 %)."""
    rng = np.random.default_rng(0)
    ranks = []
    for r in TRACE.records:
        law = true_distribution(r)
        for n in (r.response_tokens or 0, *r.sample_tokens):
            above, at = law.survival(n), law.survival(n - 1) - law.survival(n)
            ranks.append(above + rng.random() * at)
    ranks.sort()
    gap = np.abs(np.asarray(ranks) - (np.arange(len(ranks)) + 0.5) / len(ranks)).max()
    assert gap < 1.63 / np.sqrt(len(ranks))


def test_the_law_is_the_stated_one() -> None:
    def law(prompt: str) -> tuple[int, float]:
        d = true_distribution(Record("x", prompt=prompt))
        return d.quantile(0.5), float(np.log(d.quantile(0.841) / d.quantile(0.159)) / 2)

    task = next(t for t in TASKS if t.wordings[0] == "List {n} facts about {topic}")
    plain = (task.fixed + 5 * task.per_item) * TOPICS["owls"]
    median, sigma = law("List 5 facts about owls.")
    assert median == pytest.approx(plain, abs=2)
    assert sigma == pytest.approx(task.sigma, abs=0.02)
    assert law("Hello! Give me 5 facts on owls. Be brief.")[0] == pytest.approx(plain * STYLES["Be brief."], abs=2)
    assert law("List 5 facts about justice.")[0] == pytest.approx(plain / 0.95 * TOPICS["justice"], abs=2)
    assert law("List 10 facts about owls.")[0] > 1.8 * plain


def test_each_prompt_is_read_as_one_task_only() -> None:
    for r in TRACE.records[:1000]:
        tasks = {task for pattern, task in synthetic._PATTERNS if pattern.fullmatch(r.prompt or "")}
        assert len(tasks) == 1


def test_every_task_topic_and_style_occurs() -> None:
    text = "\n".join(r.prompt or "" for r in TRACE.records)
    assert all(topic in text for topic in TOPICS)
    assert all(style in text for style in STYLES)
    seen = {task for r in TRACE.records for pattern, task in synthetic._PATTERNS if pattern.fullmatch(r.prompt or "")}
    assert seen == set(range(len(TASKS)))
    assert len(TASKS) >= 30


@pytest.mark.parametrize("prompt", [None, "", "List 5 facts about unicorns.", "List 5 facts about owls", "owls"])
def test_the_law_of_another_prompt_is_not_known(prompt: str | None) -> None:
    with pytest.raises(TraceError):
        true_distribution(Record("x", prompt=prompt))


def test_no_prediction_is_better_than_the_best_and_the_best_is_as_stated() -> None:
    lengths = np.asarray([r.response_tokens for r in TRACE.records])
    best = np.asarray([true_distribution(r).quantile(0.5) for r in TRACE.records])
    expected = bayes_optimal_mae(TRACE.records)
    error = np.abs(lengths - best)
    assert error.mean() == pytest.approx(expected, abs=4 * error.std() / np.sqrt(len(error)))
    means = np.asarray([true_distribution(r).mean() for r in TRACE.records])
    assert expected < np.abs(lengths - means).mean()
    # Much can be learned, and much cannot.
    constant = np.abs(lengths - np.median(lengths)).mean()
    assert 0.25 * constant < expected < 0.5 * constant


def test_the_error_of_one_record_is_the_sum_over_lengths() -> None:
    record = TRACE.records[0]
    law = true_distribution(record)
    n = np.arange(1, law.upper + 1)
    mass = law.survival_at(n - 1) - law.survival_at(n)
    assert bayes_optimal_mae([record]) == pytest.approx((mass * np.abs(n - law.quantile(0.5))).sum(), rel=1e-9)


def test_the_docstring_states_the_computed_figures() -> None:
    records = synthetic_trace(2000, seed=0).records
    best, constant = map(
        int, re.findall(r"error below (\d+).*costs (\d+)\.", " ".join((synthetic.__doc__ or "").split()))[0]
    )
    lengths = np.asarray([r.response_tokens for r in records])
    assert best == round(bayes_optimal_mae(records))
    assert constant == round(float(np.abs(lengths - np.median(lengths)).mean()))


def test_what_is_held_out_are_pairs_of_task_and_topic() -> None:
    parts = split_trace(TRACE, dev=0.5)
    assert len(parts["dev"]) / len(TRACE) == pytest.approx(0.2, abs=0.03)
    other = split_trace(synthetic_trace(3000, seed=99))

    def pairs(records: tuple[Record, ...]) -> set[tuple[int, str]]:
        found = set()
        for r in records:
            for pattern, task in synthetic._PATTERNS:
                if match := pattern.fullmatch(r.prompt or ""):
                    found.add((task, match["topic"]))
        return found

    dev = pairs(parts["dev"].records) | pairs(other["dev"].records)
    assert dev.isdisjoint(pairs(parts["train"].records) | pairs(other["train"].records))


def test_it_survives_being_saved(tmp_path: object) -> None:
    from pathlib import Path

    again = load_trace(save_trace(TRACE, Path(str(tmp_path)) / "t.jsonl.gz"))
    assert again.records == TRACE.records
    assert again.length_source == "synthetic"
    assert bayes_optimal_mae(again.records) == bayes_optimal_mae(TRACE.records)


@pytest.mark.parametrize("n", [0, -1])
def test_a_trace_of_nothing_is_refused(n: int) -> None:
    with pytest.raises(TraceError, match="nothing in it"):
        synthetic_trace(n)


def test_no_records_have_no_error() -> None:
    with pytest.raises(TraceError, match="no records"):
        bayes_optimal_mae([])
