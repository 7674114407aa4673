"""What clients send as predictions is untrusted: anything may come, and nothing but PredictionError comes back."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
from core_rig import distributions
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.errors import PredictionError
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter.predictions import batch_item, prediction_of, prompt_index, response_limit, task_of
from ecoserve.serving.core import keys
from ecoserve.serving.core.counters import Counters
from ecoserve.serving.core.history import LengthHistory

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


def flat(wires: list[list[float]]) -> list[float]:
    return [float(len(wires)), *(v for w in wires for v in (float(len(w)), *w))]


# -- which prompt of a batch ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("cmpl-abc-3-9f8e7d6c", 3),
        ("cmpl-abc-0-12345678", 0),
        ("cmpl-abc-3", 3),
        ("3", 3),
        ("x-12", 12),
        ("cmpl-a1b2-7-deadbeef", 7),
    ],
)
def test_the_id_says_which_prompt_it_is(name: str, index: int) -> None:
    assert prompt_index(name) == index


@pytest.mark.parametrize("name", ["", "cmpl-abc", "cmpl-abc-x-9f8e", "-", "a-1234567", "٣٣٣٣٣٣٣٣"])
def test_an_id_that_does_not_say_is_refused(name: str) -> None:
    with pytest.raises(PredictionError, match="does not say which prompt"):
        prompt_index(name)


@given(st.text(max_size=30))
def test_any_id_gives_an_index_or_an_error(name: str) -> None:
    with contextlib.suppress(PredictionError):
        assert 0 <= prompt_index(name) < 10**6


# -- one item of a batch -------------------------------------------------------------------------------------------


@given(st.lists(distributions(), min_size=1, max_size=8))
def test_every_item_of_a_batch_comes_back(batch: list[LengthDistribution]) -> None:
    values = flat([d.to_wire() for d in batch])
    for i, lengths in enumerate(batch):
        back = prediction_of(f"cmpl-x-{i}-abcd1234", {keys.LENGTHS_BATCH: values})
        assert back is not None
        assert back.to_wire() == lengths.to_wire()
    with pytest.raises(PredictionError, match=f"no item {len(batch)}"):
        batch_item(values, len(batch))


@given(st.lists(distributions(), min_size=1, max_size=4), st.data())
def test_a_batch_that_was_cut_or_bent_gives_an_item_or_an_error(
    batch: list[LengthDistribution], data: st.DataObject
) -> None:
    values: list[Any] = flat([d.to_wire() for d in batch])
    values = values[: data.draw(st.integers(0, len(values)))]
    for _ in range(data.draw(st.integers(0, 3))):
        if values:
            at = data.draw(st.integers(0, len(values) - 1))
            values[at] = data.draw(st.sampled_from([-1, 0, 1e300, float("nan"), float("inf"), None, "7", [1], 2**70]))
    for i in range(5):
        try:
            item = batch_item(values, i)
        except PredictionError:
            continue
        assert len(item) <= len(values)


def test_a_batch_that_claims_to_be_endless_is_answered_at_once() -> None:
    with pytest.raises(PredictionError):
        batch_item([1e15, *([0.0] * 1000)], 5000)


@given(ANYTHING, st.sampled_from([keys.LENGTHS, keys.LENGTHS_BATCH]))
def test_anything_at_all_is_a_distribution_or_an_error(value: Any, key: str) -> None:
    try:
        found = prediction_of("cmpl-x-0-abcd", {key: value})
    except PredictionError:
        return
    assert isinstance(found, LengthDistribution)


def test_nothing_sent_is_no_prediction() -> None:
    assert prediction_of("x", None) is None
    assert prediction_of("x", {}) is None
    assert prediction_of("x", {"other": 1, keys.REPLAY_TOKENS: 5}) is None


def test_a_request_of_its_own_goes_before_the_batch() -> None:
    one, two = LengthDistribution.point(3), LengthDistribution.point(9)
    sent = {keys.LENGTHS: one.to_wire(), keys.LENGTHS_BATCH: flat([two.to_wire()])}
    found = prediction_of("x-0-abc", sent)
    assert found is not None
    assert found.quantile(0.5) == 3


# -- the task --------------------------------------------------------------------------------------------------------


def a_request(extra: Any = None, max_tokens: int = 100, prompt: int = 10) -> Any:
    return SimpleNamespace(
        request_id="cmpl-x-0-abcd",
        num_prompt_tokens=prompt,
        max_tokens=max_tokens,
        sampling_params=SimpleNamespace(extra_args=extra),
        arrival_time=5.0,
        priority=2,
    )


def a_task(request: Any, max_model_len: int = 200) -> tuple[Any, Counters]:
    counters = Counters()
    return task_of(request, max_model_len, LengthHistory(100, max_model_len), counters), counters


def test_a_prediction_is_used_and_ends_at_the_limit() -> None:
    task, counters = a_task(a_request({keys.LENGTHS: LengthDistribution((0, 400), (1.0,)).to_wire()}))
    assert (task.limit, task.predicted, task.arrival_s, task.priority) == (100, True, 5.0, 2)
    assert task.lengths.quantile(1.0) == 100
    assert (counters.predictions_used, counters.predictions_missing, counters.predictions_refused) == (1, 0, 0)


@pytest.mark.parametrize("extra", [None, {}, {"other": 1}])
def test_without_one_history_serves(extra: Any) -> None:
    task, counters = a_task(a_request(extra))
    assert not task.predicted
    assert task.lengths.upper <= 100
    assert (counters.predictions_used, counters.predictions_missing, counters.predictions_refused) == (0, 1, 0)


@given(ANYTHING)
def test_a_bad_one_is_counted_and_history_serves(value: Any) -> None:
    task, counters = a_task(a_request({keys.LENGTHS: value}))
    assert task.predicted is bool(counters.predictions_used)
    assert counters.predictions_used + counters.predictions_missing == 1
    assert counters.predictions_refused == counters.predictions_missing
    assert 1 <= task.lengths.quantile(0.5) <= task.limit


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "limit"), [(10, 100, 100), (150, 100, 50), (199, 100, 1), (200, 100, 1), (10, 1, 1)]
)
def test_the_limit_is_the_smaller_of_what_is_asked_and_what_fits(prompt: int, max_tokens: int, limit: int) -> None:
    assert response_limit(a_request(max_tokens=max_tokens, prompt=prompt), 200) == limit


def test_a_request_without_sampling_parameters_is_no_error() -> None:
    request = a_request()
    request.sampling_params = None
    assert not a_task(request)[0].predicted
