"""A load: the same for the same seed, and no recorded length is predicted unless that is asked for."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ecoserve.data import Message, Record, Trace, synthetic_trace
from ecoserve.errors import InputError, TraceError
from ecoserve.lengths import LengthDistribution
from ecoserve.serving import length_source
from ecoserve.serving.length_source import LengthSource
from ecoserve.serving.workload import LoadRequest, make_load, prompt_length, trace_for


def load(trace: Trace | None = None, **changes: Any) -> list[LoadRequest]:
    known: dict[str, Any] = {
        "requests": 50,
        "rate_rps": 10.0,
        "seed": 0,
        "lengths": LengthSource.parse("none"),
        "max_tokens": 500,
        "max_prompt_tokens": 1000,
    }
    return make_load(trace or synthetic_trace(300, seed=0), **(known | changes))


def changed(record: Record, **fields: Any) -> Record:
    names = Record.__dataclass_fields__
    return Record(**({n: getattr(record, n) for n in names} | fields))


# -- what is predicted ------------------------------------------------------------------------------------------


def test_predicted_asks_the_predictor_with_the_prompt_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Fake:
        def predict(self, texts: list[str]) -> list[LengthDistribution]:
            asked.extend(texts)
            return [LengthDistribution.point(len(t)) for t in texts]

    monkeypatch.setattr(length_source, "_predictor", lambda checkpoint: Fake())
    length_source._predictions.cache_clear()
    made = load(lengths=LengthSource.parse("predicted:somewhere"))
    assert asked == [r.record.prompt for r in made]
    assert all(r.lengths is not None and r.lengths.quantile(0.5) == len(r.record.prompt or "") for r in made)
    length_source._predictions.cache_clear()


def test_predicting_needs_prompts() -> None:
    trace = synthetic_trace(20, seed=0)
    bare = trace.with_records([changed(r, prompt=None, messages=()) for r in trace.records])
    with pytest.raises(TraceError, match="predicted lengths need prompt texts"):
        load(bare, requests=5, lengths=LengthSource.parse("predicted:somewhere"))


# -- which requests ----------------------------------------------------------------------------------------


def test_a_load_is_the_same_for_the_same_seed() -> None:
    assert load() == load()
    assert load(seed=1) != load()
    assert [r.name for r in load()] == [f"r{i:05d}" for i in range(50)]


def test_predictions_change_nothing_else() -> None:
    for a, b in zip(load(), load(lengths=LengthSource.parse("noise:1")), strict=True):
        assert (a.arrival_s, a.record, a.prompt_tokens, a.response_tokens) == (
            b.arrival_s,
            b.record,
            b.prompt_tokens,
            b.response_tokens,
        )


def test_arrivals_come_at_the_rate_and_in_order() -> None:
    times = [r.arrival_s for r in load(requests=200, rate_rps=10.0)]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(20.0, rel=0.3)
    assert {r.arrival_s for r in load(rate_rps=math.inf)} == {0.0}


def test_no_row_twice_while_there_are_enough() -> None:
    assert len({r.record.conversation for r in load(requests=300)}) == 300
    assert len(load(requests=900)) == 900


def test_lengths_are_cut_where_the_engine_would() -> None:
    assert max(r.response_tokens for r in load(max_tokens=40)) == 40
    assert min(r.response_tokens for r in load(max_tokens=1)) == 1
    assert max(r.prompt_tokens for r in load(max_prompt_tokens=20)) <= 20


def test_rows_that_cannot_be_used_are_passed_over_or_refused() -> None:
    trace = synthetic_trace(50, seed=0)
    half = [changed(r, response_tokens=None) if i % 2 else r for i, r in enumerate(trace.records)]
    assert all(r.record.response_tokens for r in load(trace.with_records(half), requests=20))
    without = trace.with_records([changed(r, response_tokens=None) for r in trace.records])
    with pytest.raises(TraceError, match="no row has a response length"):
        load(without)
    with pytest.raises(TraceError, match="at most 0 prompt tokens"):
        load(max_prompt_tokens=0)


def test_recorded_arrivals_are_kept_from_the_first_on() -> None:
    trace = synthetic_trace(10, seed=0)
    timed = trace.with_records([changed(r, arrival_s=100.0 - 3 * i) for i, r in enumerate(trace.records)])
    assert [r.arrival_s for r in load(timed, rate_rps=None, requests=4)] == [0.0, 3.0, 6.0, 9.0]
    with pytest.raises(TraceError, match="no recorded arrivals; give --rate"):
        load(rate_rps=None)


def test_prompt_lengths_are_the_recorded_ones_else_a_quarter_of_the_characters() -> None:
    record = synthetic_trace(1, seed=0).records[0]
    assert prompt_length(changed(record, prompt_tokens=17)) == 17
    text = changed(record, prompt_tokens=None, messages=(Message("user", "x" * 10),), prompt="ignored")
    assert prompt_length(text) == 3
    assert prompt_length(changed(text, messages=(), prompt="y" * 9)) == 3
    assert prompt_length(changed(text, messages=(), prompt=None)) == 1


# -- which trace -------------------------------------------------------------------------------------------


def test_synthetic_traces_by_name() -> None:
    assert len(trace_for("synthetic:30", None, None, None).records) == 30
    assert trace_for("synthetic:30", None, None, None) is trace_for("synthetic:30", None, None, None)
    for wrong in ("synthetic:0", "synthetic:x", "synthetic:-4", "synthetic:2000000"):
        with pytest.raises(InputError, match="not a number of rows"):
            trace_for(wrong, None, None, None)


def test_a_part_of_a_trace_is_taken() -> None:
    whole = {r.conversation for r in trace_for("synthetic:200", None, None, None).records}
    train, dev = ({r.conversation for r in trace_for("synthetic:200", None, None, s).records} for s in ("train", "dev"))
    assert train | dev <= whole
    assert not train & dev
    assert len(dev) < len(train)
