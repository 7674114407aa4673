"""A workload has the traffic that its file describes, and always the same one."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arrival_statistics import ArrivalStatistics
from scipy import stats

from ecoserve.data import LoadReport, Record, Trace, fingerprint, load_trace, save_trace
from ecoserve.data.laws import Law
from ecoserve.data.workloads import Workload, make_workload, starts
from ecoserve.data.workloads.parts import GivenLength

LENGTHS: dict[str, Any] = {
    "prompt": {"tokens": {"law": "lognormal", "median": 200, "sigma": 1.0}},
    "response": {"tokens": {"law": "gamma", "scale": 100, "shape": 1.5}},
}
EXAMPLES = sorted((Path(__file__).resolve().parents[3] / "workloads").glob("*.yaml"))


def make(requests: int = 4000, limit: int | None = None, base: Path = Path(), **content: Any) -> Trace:
    made = make_workload(Workload.model_validate({"requests": requests, **content}), base=base, limit=limit)
    records = tuple(made.records)
    sources = (made.length_source, LoadReport(), made.prompt_length_source)
    return Trace(records, "workload", "records", fingerprint(records), *sources)


def of(trace: Trace, name: str) -> np.ndarray:
    return np.array([getattr(r, name) for r in trace.records])


# -- what every workload promises --------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_load_and_repeat_byte_for_byte(path: Path, tmp_path: Path) -> None:
    trace = load_trace(path)
    assert trace.format == "records"
    assert trace.report.noted.get("answers cut off", 0) == sum(r.censored for r in trace.records)
    assert trace.source == str(path)
    times = [r.arrival_s for r in trace.records]
    assert None not in times
    assert times == sorted(times)
    assert all(r.response_tokens and r.prompt_tokens for r in trace.records)
    assert len({(r.conversation, r.turn) for r in trace.records}) == len(trace)
    one, two = (save_trace(load_trace(path), tmp_path / f"{i}.jsonl").read_bytes() for i in (1, 2))
    assert one == two
    assert load_trace(tmp_path / "1.jsonl").records == trace.records
    part = load_trace(path, limit=200)
    assert part.records == trace.records[:200]


def test_there_are_examples_for_the_common_cases() -> None:
    assert {path.stem for path in EXAMPLES} >= {"chat", "bursts", "day", "chat_and_code"}


@pytest.mark.parametrize(
    "content",
    [
        LENGTHS,
        {**LENGTHS, "arrivals": {"process": "bursts", "rate": 5, "factor": 4, "burst_s": 5, "calm_s": 9}},
        {**LENGTHS, "arrivals": {"process": "gamma", "rate": 5, "cv": 3}, "conversations": {"turns": 3, "think_s": 5}},
        {**LENGTHS, "classes": {"a": {"weight": 3}, "b": {"conversations": {"turns": 2, "think_s": 1}}}},
        {
            **LENGTHS,
            "classes": {
                "a": {"arrivals": {"process": "poisson", "rate": 2}},
                "b": {"arrivals": {"process": "gamma", "rate": 6, "cv": 2}},
            },
        },
    ],
)
def test_a_longer_workload_begins_with_the_shorter(content: dict[str, Any]) -> None:
    long = make(900, **content).records
    assert make(300, **content).records == long[:300] == make(900, limit=300, **content).records
    assert make(300, seed=1, **content).records != long[:300]


def test_more_rate_changes_nothing_but_times() -> None:
    slow, fast = (make(500, arrivals={"process": "poisson", "rate": rate}, **LENGTHS) for rate in (2.0, 8.0))
    assert of(slow, "arrival_s") == pytest.approx(of(fast, "arrival_s") * 4)
    for name in ("prompt_tokens", "response_tokens", "conversation"):
        assert np.array_equal(of(slow, name), of(fast, name))


def test_another_law_of_answers_leaves_arrivals_and_prompts() -> None:
    arrivals = {"process": "poisson", "rate": 2.0}
    one = make(500, arrivals=arrivals, **LENGTHS)
    two = make(500, arrivals=arrivals, **{**LENGTHS, "response": {"tokens": 128}})
    assert np.array_equal(of(one, "arrival_s"), of(two, "arrival_s"))
    assert np.array_equal(of(one, "prompt_tokens"), of(two, "prompt_tokens"))
    assert set(of(two, "response_tokens").tolist()) == {128}


# -- lengths -----------------------------------------------------------------------------------------


def test_lengths_follow_their_laws_and_nothing_else_is_claimed() -> None:
    trace = make(**LENGTHS)
    for name, law in (
        ("prompt_tokens", Law("lognormal", {"median": 200, "sigma": 1.0})),
        ("response_tokens", Law("gamma", {"scale": 100, "shape": 1.5})),
    ):
        n = np.arange(1, 2000)
        seen = 1 - np.searchsorted(np.sort(of(trace, name)), n, side="right") / len(trace)
        assert np.abs(seen - law.survival_at(n)).max() < 1.63 / np.sqrt(len(trace))
    assert trace.length_source == trace.prompt_length_source == "synthetic"
    assert {r.prompt for r in trace.records} == {r.arrival_s for r in trace.records} == {None}
    assert abs(stats.spearmanr(of(trace, "prompt_tokens"), of(trace, "response_tokens")).statistic) < 0.05


@pytest.mark.parametrize("rho", [-0.7, 0.4])
def test_prompt_and_response_are_tied_as_asked(rho: float) -> None:
    trace = make(correlation=rho, **LENGTHS)
    prompt, response = of(trace, "prompt_tokens"), of(trace, "response_tokens")
    # Rank correlation of a Gaussian copula (Kruskal 1958).
    assert stats.spearmanr(prompt, response).statistic == pytest.approx(6 / np.pi * np.arcsin(rho / 2), abs=0.04)
    free = make(**LENGTHS)
    assert np.array_equal(prompt, of(free, "prompt_tokens"))
    assert stats.ks_2samp(response, of(free, "response_tokens")).pvalue > 0.001


def test_answers_are_cut_off_at_max_tokens_and_say_so() -> None:
    free = make(**LENGTHS)
    cut = make(**{**LENGTHS, "response": {**LENGTHS["response"], "max_tokens": 200}})
    for before, after in zip(free.records, cut.records, strict=True):
        assert before.response_tokens
        assert after.response_tokens == min(200, before.response_tokens)
        assert after.censored == (before.response_tokens > 200) == (after.finish_reason == "length")
        assert after.max_tokens == 200
    share = Law("gamma", {"scale": 100, "shape": 1.5}).survival(200)
    assert sum(r.censored for r in cut.records) / len(cut) == pytest.approx(share, abs=0.03)


def a_trace(path: Path, n: int = 3000, cap: int | None = None) -> Trace:
    """A recorded trace: correlated log-normal lengths, arrivals that double their rate half way, some cut off."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=n)
    prompt = np.maximum(1, np.rint(300 * np.exp(0.9 * common))).astype(int)
    wanted = 150 * np.exp(0.7 * (0.6 * common + 0.8 * rng.normal(size=n)))
    wanted = np.maximum(1, np.rint(wanted)).astype(int)
    gaps = rng.gamma(0.25, 4.0, size=n) / np.where(np.arange(n) < n / 3, 1.0, 2.0)
    times = np.cumsum(gaps)
    records = tuple(
        Record(
            f"c{i}",
            prompt=f"Question {i}?",
            prompt_tokens=int(prompt[i]),
            response_tokens=int(min(wanted[i], cap or 10**6)),
            censored=cap is not None and bool(wanted[i] > cap),
            arrival_s=float(times[i]) + 100.0,
            model="recorded",
        )
        for i in range(n)
    )
    template = make(1, **LENGTHS)
    trace = template.with_records(records)
    save_trace(trace, path)
    return trace


def test_lengths_are_fitted_to_a_trace_beside_the_file(tmp_path: Path) -> None:
    recorded = a_trace(tmp_path / "mine.jsonl", cap=300)
    source = {"trace": "mine.jsonl"}
    trace = make(
        base=tmp_path,
        prompt={"tokens": {"fitted": source}},
        response={"tokens": {"fitted": {**source, "law": "lognormal"}}},
        correlation={"fitted": source},
    )
    for q in (0.2, 0.5, 0.8):
        assert np.quantile(of(trace, "prompt_tokens"), q) == pytest.approx(
            np.quantile(of(recorded, "prompt_tokens"), q), rel=0.1
        )
    # What the recorded answers were cut off from, too.
    assert np.quantile(of(trace, "response_tokens"), 0.95) == pytest.approx(150 * np.exp(0.7 * 1.645), rel=0.1)
    assert stats.spearmanr(of(trace, "prompt_tokens"), of(trace, "response_tokens")).statistic == pytest.approx(
        stats.spearmanr(of(recorded, "prompt_tokens"), of(recorded, "response_tokens")).statistic, abs=0.06
    )


def test_lengths_are_drawn_as_they_occur_in_a_trace(tmp_path: Path) -> None:
    recorded = a_trace(tmp_path / "mine.jsonl", cap=300)
    source = {"trace": "mine.jsonl"}
    trace = make(base=tmp_path, prompt={"tokens": {"empirical": source}}, response={"tokens": {"empirical": source}})
    assert set(of(trace, "prompt_tokens").tolist()) <= set(of(recorded, "prompt_tokens").tolist())
    assert stats.ks_2samp(of(trace, "prompt_tokens"), of(recorded, "prompt_tokens")).pvalue > 0.001
    cut = of(trace, "censored")
    assert cut.mean() == pytest.approx(of(recorded, "censored").mean(), abs=0.03)
    assert set(of(trace, "response_tokens")[cut].tolist()) == {300}
    # A tighter limit cuts off what was cut off later before.
    less = make(base=tmp_path, prompt={"tokens": 5}, response={"tokens": {"empirical": source}, "max_tokens": 100})
    assert of(less, "response_tokens").max() == 100
    assert of(less, "censored").mean() == pytest.approx((of(recorded, "response_tokens") > 100).mean(), abs=0.03)


def test_left_out_lengths_are_left_out(tmp_path: Path) -> None:
    a_trace(tmp_path / "mine.jsonl")
    fitted = {"fitted": {"trace": "mine.jsonl", "law": "lognormal", "longest": 200}}
    trace = make(base=tmp_path, prompt={"tokens": 5}, response={"tokens": fitted})
    assert of(trace, "response_tokens").max() <= 200
    assert not of(trace, "censored").any()


def test_rows_of_a_trace_come_as_they_are(tmp_path: Path) -> None:
    recorded = {r.conversation: r for r in a_trace(tmp_path / "mine.jsonl", n=400).records}
    trace = make(
        1000, base=tmp_path, rows={"trace": "mine.jsonl", "max_tokens": 150}, arrivals={"process": "poisson", "rate": 9}
    )
    for r in trace.records:
        was = recorded[r.conversation.removeprefix("request-").partition("#")[0]]
        assert (r.prompt, r.prompt_tokens, r.model) == (was.prompt, was.prompt_tokens, "recorded")
        assert r.response_tokens == min(150, was.response_tokens or 0)
        assert r.censored == ((was.response_tokens or 0) > 150)
    assert len({r.conversation for r in trace.records}) == 1000
    assert len({r.prompt for r in trace.records[:400]}) == 400
    assert trace.records[0].arrival_s != next(iter(recorded.values())).arrival_s


# -- arrivals ----------------------------------------------------------------------------------------


def test_arrivals_like_those_of_a_trace(tmp_path: Path) -> None:
    recorded = ArrivalStatistics.of(of(a_trace(tmp_path / "mine.jsonl"), "arrival_s"))
    source = {"trace": "mine.jsonl"}
    made = ArrivalStatistics.of(
        of(make(3000, base=tmp_path, arrivals={"process": "fitted", **source}, **LENGTHS), "arrival_s")
    )
    assert made.rate_rps == pytest.approx(recorded.rate_rps, rel=0.05)
    assert made.gap_cv == pytest.approx(recorded.gap_cv, rel=0.1)
    for window in (10.0, 60.0):
        assert made.dispersion[window] == pytest.approx(recorded.dispersion[window], rel=0.4)
    faster = make(3000, base=tmp_path, arrivals={"process": "fitted", "rate": 50, **source}, **LENGTHS)
    assert ArrivalStatistics.of(of(faster, "arrival_s")).rate_rps == pytest.approx(50, rel=0.05)


def test_recorded_arrivals_as_they_were_or_faster(tmp_path: Path) -> None:
    times = of(a_trace(tmp_path / "mine.jsonl"), "arrival_s")
    arrivals = {"process": "recorded", "trace": "mine.jsonl"}
    assert of(make(500, base=tmp_path, arrivals=arrivals, **LENGTHS), "arrival_s") == pytest.approx(
        times[:500] - times[0]
    )
    fast = of(make(3000, base=tmp_path, arrivals={**arrivals, "rate": 40}, **LENGTHS), "arrival_s")
    assert 2999 / fast[-1] == pytest.approx(40)


def test_everything_at_once() -> None:
    assert set(of(make(50, arrivals={"process": "at-once"}, **LENGTHS), "arrival_s").tolist()) == {0.0}


# -- classes and conversations -----------------------------------------------------------------------


def name_of(record: Record) -> str:
    return record.conversation.partition("-")[0]


def test_classes_share_by_weight_and_have_their_own_lengths() -> None:
    trace = make(
        8000,
        arrivals={"process": "poisson", "rate": 10},
        classes={
            "chat": {"weight": 8, **LENGTHS, "model": "big"},
            "code": {"weight": 2, "prompt": {"tokens": 2000}, "response": {"tokens": 10}},
        },
    )
    counts = Counter(map(name_of, trace.records))
    assert counts["chat"] / 8000 == pytest.approx(0.8, abs=0.02)
    assert {(r.prompt_tokens, r.response_tokens) for r in trace.records if name_of(r) == "code"} == {(2000, 10)}
    assert {(name_of(r), r.model) for r in trace.records} == {("chat", "big"), ("code", None)}


def test_a_class_takes_what_it_does_not_say_from_the_file() -> None:
    trace = make(200, **LENGTHS, classes={"a": {}, "b": {"response": {"tokens": 3}}, "c": None})
    assert {name_of(r) for r in trace.records} == {"a", "b", "c"}
    assert {r.response_tokens for r in trace.records if name_of(r) == "b"} == {3}
    assert len({r.response_tokens for r in trace.records if name_of(r) != "b"}) > 50


def test_a_further_class_leaves_the_others_requests_as_they_are() -> None:
    def lengths(trace: Trace) -> list[tuple[int | None, int | None]]:
        return [(r.prompt_tokens, r.response_tokens) for r in trace.records if name_of(r) == "a"]

    alone, both = make(300, **LENGTHS, classes={"a": {}}), make(300, **LENGTHS, classes={"a": {}, "b": {}})
    assert 100 < len(lengths(both)) < 200
    assert lengths(alone)[: len(lengths(both))] == lengths(both)


def test_classes_with_arrivals_of_their_own() -> None:
    trace = make(
        9000,
        **LENGTHS,
        classes={
            "even": {"arrivals": {"process": "gamma", "rate": 6, "cv": 0}},
            "clumps": {"arrivals": {"process": "gamma", "rate": 3, "cv": 4}},
        },
    )
    times = {
        name: np.array([r.arrival_s for r in trace.records if name_of(r) == name], dtype=float)
        for name in ("even", "clumps")
    }
    assert len(times["even"]) / len(times["clumps"]) == pytest.approx(2, rel=0.15)
    assert np.diff(times["even"]) == pytest.approx(1 / 6)
    assert ArrivalStatistics.of(times["clumps"]).gap_cv == pytest.approx(4, rel=0.15)


def test_conversations_carry_their_context_and_keep_the_rate() -> None:
    talks = {"turns": 3, "think_s": 5, "seconds_per_token": 0.01, "max_context_tokens": 100_000}
    trace = make(12_000, **LENGTHS, arrivals={"process": "poisson", "rate": 20}, conversations=talks)
    last: dict[str, Record] = {}
    pauses = []
    for r in trace.records:
        before = last.get(r.conversation)
        if before is None:
            assert r.turn == 0
        else:
            assert r.turn == before.turn + 1
            assert (r.prompt_tokens or 0) > (before.prompt_tokens or 0) + (before.response_tokens or 0)
            pauses.append((r.arrival_s or 0) - (before.arrival_s or 0) - 0.01 * (before.response_tokens or 0))
        last[r.conversation] = r
    assert np.median(pauses) == pytest.approx(5, rel=0.06)
    times = of(trace, "arrival_s")
    assert ((times > 200) & (times < 500)).sum() / 300 == pytest.approx(20, rel=0.06)
    begun_early = Counter(r.conversation for r in trace.records if int(r.conversation.split("-")[1]) < 2000)
    assert np.mean(list(begun_early.values())) == pytest.approx(3, rel=0.06)


def test_a_conversation_ends_before_its_context_is_full() -> None:
    talks = {"turns": 50, "think_s": 1, "max_context_tokens": 3000}
    trace = make(2000, **{**LENGTHS, "prompt": {"tokens": 100}}, conversations=talks)
    assert max((r.prompt_tokens or 0) + (r.response_tokens or 0) for r in trace.records) <= 3000
    assert max(r.turn for r in trace.records) > 5


def test_weights_count_requests_not_conversations() -> None:
    trace = make(
        12_000,
        **LENGTHS,
        arrivals={"process": "poisson", "rate": 30},
        classes={"talk": {"conversations": {"turns": 4, "think_s": 0.5, "seconds_per_token": 0}}, "ask": {}},
    )
    counts = Counter(map(name_of, trace.records))
    assert counts["talk"] / 12_000 == pytest.approx(0.5, abs=0.03)
    times = of(trace, "arrival_s")
    assert ((times > 50) & (times < 350)).sum() / 300 == pytest.approx(30, rel=0.06)


# -- texts -------------------------------------------------------------------------------------------

TEXTS: dict[str, Any] = {
    "prompt": {
        "templates": ["{{ task }} {{ topic }}.", "Please: {{ task | lower }} {{ topic }}!"],
        "words": {"task": {"Explain": 2.0, "Name": 0.5}, "topic": ["tea", "rain", "trains"]},
    },
    "response": {"tokens": {"law": "lognormal", "median": 100, "sigma": 0.3}},
}


def test_prompts_are_written_by_templates_and_say_something_about_the_length() -> None:
    trace = make(**TEXTS)
    assert {r.prompt for r in trace.records} == {
        text.format(task=task, topic=topic)
        for text, tasks in (("{task} {topic}.", ("Explain", "Name")), ("Please: {task} {topic}!", ("explain", "name")))
        for task in tasks
        for topic in ("tea", "rain", "trains")
    }
    assert all(r.prompt_tokens == max(1, round(len(r.prompt or "") / 4)) for r in trace.records)
    assert trace.prompt_length_source == "characters/4.0"
    typical = {
        word: stats.gmean([r.response_tokens or 0 for r in trace.records if word in (r.prompt or "").lower()])
        for word in ("explain", "name", "tea")
    }
    assert typical["explain"] == pytest.approx(200, rel=0.05)
    assert typical["name"] == pytest.approx(50, rel=0.05)
    assert typical["tea"] == pytest.approx(100, rel=0.1)


def test_short_texts_are_filled_up_to_the_length_asked_for() -> None:
    prompt = {**TEXTS["prompt"], "tokens": {"law": "uniform", "low": 20, "high": 3000}}
    trace = make(300, **{**TEXTS, "prompt": prompt})
    plain = make(300, prompt={"tokens": prompt["tokens"]}, response=TEXTS["response"])
    assert of(trace, "prompt_tokens") == pytest.approx(of(plain, "prompt_tokens"), abs=1)
    assert len({(r.prompt or "")[-60:] for r in trace.records}) > 250
    inside = make(
        100, prompt={"tokens": 500, "templates": ["Read: {{ filler }} Now sum it up."]}, response={"tokens": 9}
    )
    assert set(of(inside, "prompt_tokens").tolist()) <= {499, 500, 501}
    assert all(
        (r.prompt or "").startswith("Read: ") and (r.prompt or "").endswith("sum it up.") for r in inside.records
    )


def test_a_conversation_with_texts_is_a_chat() -> None:
    trace = make(400, **TEXTS, conversations={"turns": 3, "think_s": 2})
    by_turn = {(r.conversation, r.turn): r for r in trace.records}
    later = [r for r in trace.records if r.turn]
    assert len(later) > 100
    for r in later:
        before = by_turn[r.conversation, r.turn - 1]
        roles = [m.role for m in r.messages]
        assert roles == ["user", "assistant"] * r.turn + ["user"]
        assert r.messages[-1].content == r.prompt
        assert r.messages[: len(before.chat())] == before.chat()
        assert len(r.messages[-2].content) == pytest.approx(4 * (before.response_tokens or 0), abs=2)
        assert sum(len(m.content) for m in r.messages) / 4 == pytest.approx(r.prompt_tokens or 0, rel=0.05)


# -- how it is made ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        {**LENGTHS, "prompt": {"templates": ["Say {{ w }}"], "words": {"w": {"a": 1, "b": 3}}}},
        {**LENGTHS, "conversations": {"turns": 3, "think_s": 5}, "arrivals": {"process": "at-once"}},
        {
            **LENGTHS,
            "classes": {
                "a": {"arrivals": {"process": "poisson", "rate": 2}, "conversations": {"turns": 4, "think_s": 2}},
                "b": {"arrivals": {"process": "bursts", "rate": 6, "factor": 5, "burst_s": 2, "calm_s": 4}},
            },
        },
    ],
)
def test_how_many_are_drawn_at_once_changes_nothing(content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make(300, **content).records
    monkeypatch.setattr(starts, "_BLOCK", 7)
    assert make(300, **content).records == whole


def test_requests_are_made_as_they_are_read() -> None:
    """The first of a million conversations costs neither the others nor memory for them."""
    content = {"requests": 1_000_000, **LENGTHS, "conversations": {"turns": 5, "think_s": 2}}
    workload = Workload.model_validate({**content, "arrivals": {"process": "poisson", "rate": 9}})
    tracemalloc.start()
    try:
        first = list(itertools.islice(make_workload(workload, base=Path()).records, 20))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert tuple(first) == tuple(make_workload(workload, base=Path(), limit=20).records)
    # Arrivals are drawn at once, 8 bytes each; records would be hundreds of bytes each.
    assert peak < 100 * 2**20


def test_another_process_makes_the_same() -> None:
    """Hashes of texts differ from process to process; nothing may hang on them, nor on the order of a set."""
    code = "import sys; from ecoserve.data import load_trace as w; print(w(sys.argv[1], limit=300).sha256)"
    path = next(path for path in EXAMPLES if path.stem == "chat")
    other = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == load_trace(path, limit=300).sha256


# -- what the file says reaches the processes --------------------------------------------------------


def test_a_day_begins_where_the_file_says() -> None:
    arrivals = {"process": "diurnal", "rate": 40, "day_s": 300, "start_hour": 6}
    wave = [{"amplitude": 0.9, "peak_hour": 18}]
    times = of(make(24_000, arrivals={**arrivals, "waves": wave}, **LENGTHS), "arrival_s")
    # The rate is 1 + 0.9 cos(2 pi (h - 18) / 24), from 6 h on; two whole days.
    assert times[-1] == pytest.approx(600, rel=0.02)
    day = times[times < 300]
    share = 0.25 - 0.9 / (2 * np.pi) * 1.0  # integral over the first quarter of the day, 6 h to 12 h
    assert (day < 75).mean() == pytest.approx(share, abs=0.01)
    hours = make(24_000, arrivals={**arrivals, "hours": [0.0] * 12 + [2.0] * 12, "start_hour": 0, "cv": 0.0}, **LENGTHS)
    in_day = of(hours, "arrival_s") % 300
    assert (in_day < 137).sum() == 0  # silent up to 11 h, where the rate begins to rise


def test_a_burst_is_as_many_times_faster_as_asked() -> None:
    arrivals = {"process": "bursts", "rate": 20, "factor": 8, "burst_s": 200, "calm_s": 200}
    times = of(make(60_000, arrivals=arrivals, **LENGTHS), "arrival_s")
    assert len(times) / times[-1] == pytest.approx(20, rel=0.25)
    counts = np.bincount((times / 5).astype(int))[:-1] / 5
    slow, fast = 20 * 2 / 9, 20 * 16 / 9
    calm, burst = counts[counts < 12], counts[counts > 25]
    assert len(calm) + len(burst) > 0.97 * len(counts)  # little but changes of state lies between
    assert np.median(calm) == pytest.approx(slow, rel=0.05)
    assert np.median(burst) == pytest.approx(fast, rel=0.05)


@pytest.mark.parametrize(
    "law",
    [
        {"law": "lognormal", "median": 200, "sigma": 1.0},
        {"law": "weibull", "scale": 320, "shape": 1.3},
        {"law": "pareto", "scale": 900, "shape": 3.0},
        {"law": "logt", "median": 40, "sigma": 0.6, "df": 4},
        {"law": "gamma", "scale": 150, "shape": 1.4},
        {"law": "exponential", "scale": 250},
        {"law": "uniform", "low": 10, "high": 400},
        {"law": "lognormal", "median": 200, "sigma": 1.0, "longest": 500},
    ],
    ids=lambda law: "-".join(map(str, law.values())),
)
def test_quantiles_of_what_is_made_are_the_laws(law: dict[str, Any]) -> None:
    n = 20_000
    lengths = of(make(n, prompt={"tokens": 5}, response={"tokens": law}, seed=4), "response_tokens")
    known = GivenLength(**law).as_law()
    for q in (0.1, 0.5, 0.9, 0.99):
        # The share that is not longer than the law's quantile: its own, up to four standard errors of n draws.
        want = 1 - known.survival(known.quantile(q))
        seen = (lengths <= known.quantile(q)).mean()
        assert abs(seen - want) < 4 * np.sqrt(want * (1 - want) / n)
