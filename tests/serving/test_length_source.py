"""Sources of predicted lengths: each kind of error has the stated size and states its distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau

from ecoserve.data import Record
from ecoserve.data.records import Message
from ecoserve.errors import InputError
from ecoserve.lengths import LengthDistribution
from ecoserve.serving import length_source
from ecoserve.serving.length_source import LengthSource

#: Like answers of a chat model: most are short, a few long.
TRUE = np.maximum(1, np.random.default_rng(5).lognormal(5.0, 1.0, 3000).astype(int)).clip(max=2000).tolist()


def predictions(text: str, true: list[int] = TRUE, seed: int = 0) -> list[LengthDistribution]:
    records: Any = [None] * len(true)
    return [d for d in LengthSource.parse(text).distributions(records, true, 2000, seed) if d is not None]


@pytest.mark.parametrize(
    "text",
    [
        "true",
        "none",
        "random",
        "inverted",
        "noise:0.6",
        "noise:0",
        "tau:0.5",
        "bins:0.75",
        "bias:0.5",
        "constant:32768",
        "predicted:some/dir",
        "predicted:hub/id:x",
    ],
)
def test_a_form_is_written_as_it_is_read(text: str) -> None:
    assert str(LengthSource.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "True", "true:1", "random:1", "predicted", "predicted:"),
        *("noise", "noise:", "noise:-1", "noise:nan", "noise:6", "tau:1", "tau:-0.1", "bins:0", "bins:1.1"),
        *("bias:0", "bias:inf", "constant:0", "constant:x"),
    ],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        LengthSource.parse(text)


def test_the_oracle_is_certain_and_none_predicts_nothing() -> None:
    records: Any = [None] * 2
    predicted = LengthSource.parse("true").distributions(records, [3, 9], 100, 0)
    assert [d.quantile(0.5) for d in predicted if d] == [3, 9]
    assert [d.quantile(0.99) for d in predicted if d] == [3, 9]
    assert LengthSource.parse("none").distributions(records, [5, 5], 100, 0) == [None, None]


def test_noise_is_as_large_as_it_says_and_states_it() -> None:
    true = [200] * 3000
    records: Any = [None] * len(true)
    predicted = LengthSource.parse("noise:0.6").distributions(records, true, 4096, 0)
    errors = np.log([d.quantile(0.5) / 200 for d in predicted if d])
    assert errors.std() == pytest.approx(0.6, abs=0.03)
    assert errors.mean() == pytest.approx(0.0, abs=0.05)
    inside = np.mean([d.quantile(0.05) < 200 <= d.quantile(0.95) for d in predicted if d])
    assert inside == pytest.approx(0.9, abs=0.03), "its 90 % interval holds the truth nine times out of ten"


@pytest.mark.parametrize("text", ["noise:0.6", "tau:0.5", "bins:0.5", "random"])
def test_an_error_is_the_same_for_the_same_seed(text: str) -> None:
    first, again, other = ([d.to_wire() for d in predictions(text, TRUE[:40], seed)] for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("tau", [0.2, 0.5, 0.9])
def test_a_rank_correlation_is_what_was_asked_for_and_its_quantiles_cover(tau: float) -> None:
    predicted = predictions(f"tau:{tau}")
    assert kendalltau([d.mean() for d in predicted], TRUE).statistic == pytest.approx(tau, abs=0.03)
    for q in (0.1, 0.5, 0.9):
        covered = np.mean([n <= d.quantile(q) for n, d in zip(TRUE, predicted, strict=True)])
        assert covered == pytest.approx(q, abs=0.03), q


@pytest.mark.parametrize("accuracy", [0.1, 0.5, 0.8, 1.0])
def test_a_classifier_is_right_as_often_as_it_says(accuracy: float) -> None:
    predicted = predictions(f"bins:{accuracy}")
    right = 0
    for n, d in zip(TRUE, predicted, strict=True):
        k = int(np.argmax(d.probs)) if accuracy > 0.1 else None
        # At a tenth all bins are alike: nothing is said.
        right += d.edges[k] < n <= d.edges[k + 1] if k is not None else len(set(np.round(d.probs, 9))) == 1
    assert right / len(TRUE) == pytest.approx(accuracy if accuracy > 0.1 else 1.0, abs=0.03)


def test_lengths_that_are_all_equal_have_one_bin() -> None:
    assert {d.quantile(0.5) for d in predictions("tau:0.5", [7] * 20)} == {7}
    assert all(d.upper >= 7 for d in predictions("bins:0.5", [7] * 20))


def test_the_worst_kinds_are_certain_and_wrong() -> None:
    true = [10, 500, 30, 200]
    assert [d.quantile(0.5) for d in predictions("constant:1", true)] == [1] * 4
    assert [d.quantile(0.5) for d in predictions("constant:32768", true)] == [32768] * 4
    assert [d.quantile(0.5) for d in predictions("bias:0.5", true)] == [5, 250, 15, 100]
    assert [d.quantile(0.5) for d in predictions("inverted", true)] == [500, 10, 200, 30]
    shuffled = [d.quantile(0.5) for d in predictions("random", TRUE)]
    assert sorted(shuffled) == sorted(TRUE) != shuffled
    assert abs(kendalltau(shuffled, TRUE).statistic) < 0.05
    assert all(
        len(d.probs) == 1 for kind in ("constant:9", "bias:2", "random", "inverted") for d in predictions(kind, true)
    )


@pytest.mark.parametrize("text", ["true", "noise:0.5", "tau:0.5", "bins:0.5", "bias:2", "random", "inverted"])
def test_no_request_no_prediction(text: str) -> None:
    assert predictions(text, []) == []


def test_a_predictor_reads_earlier_turns_and_parameters_and_no_length(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    class Reader:
        def predict(self, requests: list[Any]) -> list[LengthDistribution]:
            seen.extend(requests)
            return [LengthDistribution.point(1 + len(seen))] * len(requests)

    monkeypatch.setattr(length_source, "_predictor", lambda checkpoint: Reader())
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    plain = Record("0", prompt="c", response_tokens=7)
    chat = Record("1", prompt="c", messages=turns, response_tokens=8)
    bounded = Record("2", prompt="c", messages=turns, response_tokens=8, max_tokens=50)
    kind = LengthSource.parse("predicted:somewhere")
    answers = [kind.distributions([record], [99], 100, 0) for record in (plain, chat, bounded)]
    assert seen[0] == "c"
    assert seen[1] == turns
    assert seen[2].parameters.max_tokens == 50
    assert answers[1] != answers[2], "equal messages, other parameters: not the same question"
    with pytest.raises(InputError, match="lengths only"):
        kind.distributions([Record("3", response_tokens=7)], [7], 100, 0)
