"""What is learned while serving: when it is used, when it is not, what raises the alarm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ecoserve.serving.online.model import ALARM_ROWS, OnlineModel, answers_from
from ecoserve.serving.online.refit import Refit, fit, packed_rows, read_result, unpack, unpacked_rows

Lengths = Callable[[np.random.Generator, bool], int]


def by_topic(rng: np.random.Generator, long: bool) -> int:
    return max(1, round((400 if long else 40) * np.exp(0.3 * rng.standard_normal())))


def by_topic_weakly(rng: np.random.Generator, long: bool) -> int:
    return max(1, round((90 if long else 40) * np.exp(0.75 * rng.standard_normal())))


def served(model: OnlineModel, count: int, lengths: Lengths, seed: int = 0) -> list[bool]:
    """Requests one after the other; whether each got a prediction."""
    rng = np.random.default_rng(seed)
    used = []
    for i in range(count):
        long = bool(rng.integers(2))
        note = model.predict([f"{'essay' if long else 'word'} about thing{i % 20}"])[0]
        used.append(note.lengths is not None)
        model.observe(note, lengths(rng, long), ended=True)
    return used


def refit(model: OnlineModel) -> Refit:
    answers, scores, added = model.newest()
    about = {"base": None, "base_calibration": None, "served_model": None}
    found = read_result(fit(packed_rows(answers, about, scores=np.asarray(scores).reshape(-1, 3))), None)
    assert isinstance(found, Refit)
    model.learned(found.model, found.gains, found.order, found.since, added)
    return found


def test_history_serves_until_a_model_is_better_and_again_after_it_is_not() -> None:
    model = OnlineModel()
    assert not any(served(model, 100, by_topic))
    refit(model)
    assert all(served(model, 100, by_topic))
    # The same lengths without the topics: the model's order means nothing any more, and history is right.
    used = served(model, 300, lambda rng, _: by_topic(rng, bool(rng.integers(2))), seed=1)
    assert not any(used[-100:])
    # What it then says of these is no better than history.
    refit(model)
    assert not any(served(model, 60, lambda rng, _: by_topic(rng, bool(rng.integers(2))), seed=2))


def test_nothing_to_learn_never_serves() -> None:
    model = OnlineModel()
    for seed in range(6):
        assert not any(served(model, 80, lambda rng, _: 1 + int(rng.exponential(100)), seed))
        refit(model)


def test_a_model_that_is_right_but_orders_poorly_is_not_used() -> None:
    """Its pinball loss is below that of history; history orders by what was generated, and serves better."""
    model = OnlineModel()
    for seed in range(4):
        served(model, 150, by_topic_weakly, seed)
        found = refit(model)
    assert found.order < 0.55
    assert np.mean(found.gains) > 0.0
    assert not any(served(model, 100, by_topic_weakly, 9))


def test_the_alarm_and_how_many_answers_until_it_is_right_again() -> None:
    model = OnlineModel()
    served(model, 400, by_topic)
    refit(model)
    assert all(served(model, 200, by_topic, 1))
    assert model.alarms == 0

    def longer(rng: np.random.Generator, long: bool) -> int:
        return 3 * by_topic(rng, long)

    used = served(model, ALARM_ROWS, longer, 2)
    assert model.alarms == 1
    assert not used[-1]
    found = refit(model)
    assert found.factor == pytest.approx(3.0, rel=0.2)
    served(model, 40, longer, 3)
    assert all(served(model, 200, longer, 4))
    assert model.alarms == 1


def test_a_job_from_before_the_alarm_does_not_end_it() -> None:
    model = OnlineModel()
    served(model, 300, by_topic)
    refit(model)
    served(model, 60, by_topic, 1)
    answers, _, added = model.newest()
    old = refit(model)
    served(model, ALARM_ROWS, lambda rng, long: 5 * by_topic(rng, long), 2)
    assert model.alarmed
    model.learned(old.model, old.gains, old.order, len(answers), added)
    assert model.alarmed
    assert not model.serving


def test_a_limit_closes_the_distribution_that_is_compared() -> None:
    """Responses cut off by their limit are as predicted: no alarm, and the model goes on serving."""
    model = OnlineModel()
    served(model, 400, by_topic)
    refit(model)
    rng = np.random.default_rng(5)
    for i in range(200):
        long = bool(rng.integers(2))
        note = model.predict([f"{'essay' if long else 'word'} about thing{i % 20}"])[0]
        length = by_topic(rng, long)
        model.observe(note, min(length, 60), ended=length <= 60, limit=60)
    assert model.alarms == 0
    assert model.serving


def test_what_is_kept_is_bounded_and_holds_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecoserve.serving.online.model.MOST_ROWS", 50)
    model = OnlineModel()
    for i in range(70):
        note = model.predict([f"confidential{i}"])[0]
        model.observe(note, 1 + i, ended=True)
    answers, _, added = model.newest()
    assert (len(answers), added) == (50, 70)
    content = packed_rows(answers, {"x": 1})
    assert b"confidential" not in content
    again = answers_from(unpacked_rows(unpack(content)[0]))
    assert [a.length for a in again] == list(range(21, 71))
    for a, b in zip(again, answers, strict=True):
        assert np.array_equal(a.row.places, b.row.places)
        assert np.array_equal(a.row.dense, b.row.dense)


@pytest.mark.parametrize("spoil", [{"lengths": slice(1)}, {"places": slice(3)}, {"starts": slice(None, None, -1)}])
def test_rows_that_do_not_fit_together_are_refused(spoil: dict[str, slice]) -> None:
    model = OnlineModel()
    served(model, 5, by_topic)
    arrays, _ = unpack(packed_rows(model.newest()[0], {}))
    with pytest.raises(ValueError, match=r"different lengths|do not fit"):
        unpacked_rows({n: a[spoil[n]] if n in spoil else a for n, a in arrays.items()})
