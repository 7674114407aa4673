"""A mistake in a workload file is named by its key, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ecoserve.data import Record, Trace, fingerprint, load_trace, save_trace, stream_trace
from ecoserve.data.records import LoadReport
from ecoserve.data.workloads import read_workload
from ecoserve.errors import TraceError
from ecoserve.serving.workload import trace_for

GOOD: dict[str, Any] = {
    "requests": 20,
    "arrivals": {"process": "poisson", "rate": 2},
    "prompt": {"tokens": 50},
    "response": {"tokens": {"law": "exponential", "scale": 30}},
}


def written(folder: Path, **changes: Any) -> Path:
    path = folder / "w.yaml"
    content = {key: value for key, value in {**GOOD, **changes}.items() if value is not ...}
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_bare_number_is_a_constant_length(tmp_path: Path) -> None:
    trace = load_trace(written(tmp_path))
    assert {r.prompt_tokens for r in trace.records} == {50}
    assert trace.source.endswith("w.yaml")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"requests": ...}, r"w\.yaml: requests: is missing"),
    ({"requests": 0}, r"requests: input should be greater than or equal to 1, not 0"),
    ({"requests": "many"}, r"requests: input should be a valid integer.*, not 'many'"),
    ({"seed": -1}, r"seed: input should be greater than or equal to 0, not -1"),
    ({"respnse": {}}, r"there is no key 'respnse' here; keys are prompt, response, correlation"),
    ({"response": ...}, r"`response` is missing \(or `rows`"),
    ({"response": 7}, r"response: is 7, but must have keys of its own"),
    ({"response": {"tokens": {"law": "zipf"}}}, r"response\.tokens: 'zipf' is no law of lengths; one of lognormal"),
    (
        {"response": {"tokens": {"law": "weibull", "scale": 3}}},
        r"response\.tokens: law weibull has the parameters scale",
    ),
    (
        {"response": {"tokens": {"law": "gamma", "scale": 3, "shape": -1}}},
        r"tokens: shape of law gamma must be a number",
    ),
    ({"response": {"tokens": {"median": 3}}}, r"response\.tokens\.law: is missing"),
    ({"response": {"tokens": {"fitted": {"law": "best"}}}}, r"response\.tokens\.fitted\.trace: is missing"),
    ({"response": {"tokens": {"fitted": {"trace": "x", "law": "zipf"}}}}, r"fitted\.law: input should be 'lognormal'"),
    ({"response": {"tokens": {"empirical": {"file": "x"}}}}, r"tokens\.empirical: there is no key 'file' here"),
    ({"response": {"tokens": 5, "max_tokens": 0}}, r"response\.max_tokens: input should be greater than or equal to 1"),
    ({"prompt": {}}, r"prompt: give `tokens`, `templates`, or both"),
    ({"prompt": {"tokens": 0}}, r"prompt\.tokens: tokens of law constant must be a number above 0, not 0"),
    ({"prompt": {"templates": []}}, r"prompt\.templates: .*at least 1"),
    (
        {"prompt": {"templates": ["ok", "{{ topc }}"], "words": {"topic": ["a"]}}},
        r"template 2 uses {{ topc }}, but there",
    ),
    ({"prompt": {"templates": ["{% if %}"]}}, r"prompt: template 1 is none"),
    ({"prompt": {"templates": ["x {{ filler }}"]}}, r"template 1 uses {{ filler }}, but there are no words"),
    ({"prompt": {"templates": ["x"], "words": {"topic": ["a"]}}}, r"no template uses the words 'topic'"),
    ({"prompt": {"templates": ["x"], "words": {"topic": []}}}, r"prompt\.words\.topic: .*at least 1"),
    ({"prompt": {"templates": ["{{ t }}"], "words": {"t": {"a": 0}}}}, r"prompt\.words\.t\.a: .*greater than 0, not 0"),
    ({"prompt": {"tokens": 5, "words": {"topic": ["a"]}}}, r"`words` need `templates`"),
    ({"correlation": 1.0}, r"correlation: input should be less than 1, not 1\.0"),
    ({"correlation": 0.3, "prompt": {"templates": ["x"]}}, r"`correlation` needs `prompt\.tokens`"),
    (
        {"arrivals": {"process": "possion", "rate": 1}},
        r"arrivals: process 'possion' is none of poisson, gamma, diurnal",
    ),
    ({"arrivals": {"rate": 1}}, r"arrivals: process is missing: poisson, gamma"),
    ({"arrivals": {"process": "poisson"}}, r"arrivals\.rate: is missing"),
    ({"arrivals": {"process": "poisson", "rate": 0}}, r"arrivals\.rate: input should be greater than 0, not 0"),
    ({"arrivals": {"process": "poisson", "rate": float("nan")}}, r"arrivals\.rate: input should be a finite number"),
    (
        {"arrivals": {"process": "poisson", "rate": 1, "cv": 2}},
        r"arrivals: there is no key 'cv' here; keys are process",
    ),
    ({"arrivals": {"process": "diurnal", "rate": 1}}, r"arrivals: a day's rate is given by `waves` or by `hours`"),
    (
        {"arrivals": {"process": "diurnal", "rate": 1, "hours": [1, 2]}},
        r"arrivals: a day has 24 hours, 2 rates are given",
    ),
    (
        {"arrivals": {"process": "diurnal", "rate": 1, "waves": [{"amplitude": 2, "peak_hour": 3}]}},
        r"arrivals: the waves make the rate negative at 15\.0 h",
    ),
    (
        {"arrivals": {"process": "diurnal", "rate": 1, "waves": [{"amplitude": 0.2, "peak_hour": 30}]}},
        r"arrivals\.waves\.1\.peak_hour: input should be less than or equal to 24, not 30",
    ),
    ({"arrivals": {"process": "bursts", "rate": 1, "factor": 2, "burst_s": 1}}, r"arrivals\.calm_s: is missing"),
    ({"rows": {"trace": "x"}}, r"`rows` stand for whole requests: they go without `prompt`"),
    ({"classes": {}}, r"classes: .*at least 1"),
    ({"classes": {"a b": {}}}, r"classes\.a b"),
    ({"classes": {"a": 5}}, r"classes\.a: is 5, but must have keys of its own"),
    ({"classes": {"a": {"weight": 0}}}, r"classes\.a\.weight: input should be greater than 0, not 0"),
    ({"classes": {"a": {"response": {"tokens": {"law": "x"}}}}}, r"classes\.a\.response\.tokens: 'x' is no law"),
    ({"classes": {"a": {}, "b": {"arrivals": GOOD["arrivals"]}}}, r"class b has its own `arrivals`, class a has none"),
    ({"classes": {"a": {"arrivals": GOOD["arrivals"]}}}, r"`arrivals` of the file would not be used"),
    (
        {"classes": {"a": {"arrivals": GOOD["arrivals"], "weight": 2}}},
        r"classes\.a: a class with its own `arrivals` has",
    ),
    ({"prompt": {"tokens": "many"}, "classes": {"a": {}}}, r"prompt\.tokens: is 'many', but must have keys"),
    (
        {"conversations": {"turns": 0.5, "think_s": 1}},
        r"conversations\.turns: input should be greater than or equal to 1",
    ),
    ({"conversations": {"turns": 2}}, r"conversations\.think_s: is missing"),
]


@pytest.mark.parametrize(("changes", "said"), BAD, ids=[said[:50] for _, said in BAD])
def test_a_mistake_is_named_by_its_key(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TraceError, match=said) as refused:
        read_workload(written(tmp_path, **changes))
    line = str(refused.value)
    assert "\n" not in line
    assert line.startswith(str(tmp_path / "w.yaml: "))
    assert "pydantic" not in line
    assert "length:" not in line


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a workload: it has no keys"),
        ("- 1\n- 2", "is not a workload"),
        ("requests: 5\nrequests: 6", r"is not YAML \(line 2: 'requests' is there twice\)"),
        ("classes:\n  a: {weight: 1}\n  a: {weight: 2}", r"line 3: 'a' is there twice"),
        ("a: [1", r"is not YAML \(line 1: .*\)|is not YAML \(line 2"),
        ("requests: !!python/object/apply:os.system [echo]", "is not YAML"),
    ],
)
def test_what_is_no_workload_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(text)
    with pytest.raises(TraceError, match=said):
        read_workload(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="there is no such file"):
        read_workload(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9")
    with pytest.raises(TraceError, match="cannot be read"):
        read_workload(tmp_path / "latin.yaml")
    with pytest.raises(TraceError, match="cannot be read"):
        read_workload(tmp_path)


def saved(folder: Path, *records: Record) -> None:
    save_trace(Trace(records, "x", "records", fingerprint(records), "trace", LoadReport()), folder / "t.jsonl")


def source(**more: Any) -> dict[str, Any]:
    return {"trace": "t.jsonl", **more}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": {"tokens": {"fitted": source()}}}, r"t\.jsonl: the trace has no prompt lengths; name a tokenizer"),
        (
            {"response": {"tokens": {"fitted": source()}}},
            r"w\.yaml: response lengths of t\.jsonl: 4 lengths are too few",
        ),
        ({"response": {"tokens": {"fitted": source(longest=1)}}}, r"0 lengths are too few"),
        ({"arrivals": {"process": "recorded", **source()}}, r"t\.jsonl: the trace has no recorded arrivals to go by"),
        ({"arrivals": {"process": "fitted", **source()}}, r"t\.jsonl: the trace has no recorded arrivals to go by"),
        (
            {"correlation": {"fitted": source()}},
            r"w\.yaml: the trace's prompt and response lengths have no correlation",
        ),
        ({"prompt": {"tokens": {"fitted": {"trace": "w.yaml"}}}}, r"cannot be made of the workload .*w\.yaml"),
        ({"prompt": {"tokens": {"fitted": {"trace": "${NO_SUCH}/t"}}}}, r"the environment variable NO_SUCH is not set"),
        (
            {"rows": {"trace": "none.jsonl"}, "prompt": ..., "response": ...},
            r"w\.yaml: trace none\.jsonl: no such file; check the path",
        ),
        ({"prompt": {"templates": ["{{ 1 // 0 }}"]}}, r"template 1 cannot be rendered"),
        ({"prompt": {"templates": ["{{ '' }}"]}}, r"template 1 gives an empty text"),
    ],
)
def test_what_a_trace_does_not_have_is_said(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    saved(tmp_path, *(Record(f"c{i}", response_tokens=i + 3, response="x") for i in range(4)))
    with pytest.raises(TraceError, match=said):
        load_trace(written(tmp_path, **changes))


def test_more_arrivals_than_were_recorded(tmp_path: Path) -> None:
    saved(tmp_path, *(Record(f"c{i}", response_tokens=5, response="x", arrival_s=float(i)) for i in range(4)))
    with pytest.raises(TraceError, match=r"20 arrivals are wanted, t\.jsonl has 4; lower requests"):
        load_trace(written(tmp_path, arrivals={"process": "recorded", **source()}))


def test_parts_may_be_merged_and_said_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    path.write_text(
        "requests: 5\nprompt: {tokens: 9}\nclasses:\n  a: &a {weight: 1, response: {tokens: 5}}\n"
        "  b: &b {<<: *a, weight: 2}\n  c: {<<: *b, response: {tokens: 6}}\n"
    )
    classes = read_workload(path).traffic()
    assert [each.weight for each in classes.values()] == [1, 2, 2]


def test_the_suffix_may_be_written_large(tmp_path: Path) -> None:
    large = tmp_path / "W.YAML"
    large.write_bytes(written(tmp_path).read_bytes())
    assert load_trace(large).records == load_trace(tmp_path / "w.yaml").records


def test_variables_and_the_files_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    saved(
        tmp_path / "data", *(Record(f"c{i}", response_tokens=i + 3, prompt_tokens=9, response="x") for i in range(40))
    )
    monkeypatch.setenv("MY_TRACES", str(tmp_path / "data"))
    by_variable = written(tmp_path, response={"tokens": {"empirical": {"trace": "${MY_TRACES}/t.jsonl"}}})
    one = load_trace(by_variable).records
    by_path = written(tmp_path, response={"tokens": {"empirical": {"trace": "data/t.jsonl"}}})
    assert load_trace(by_path).records == one


def test_every_command_that_takes_a_trace_takes_the_file(tmp_path: Path, tiny_model: Path) -> None:
    path = written(tmp_path, prompt={"templates": ["Say {{ word }}"], "words": {"word": ["yes", "no"]}})
    trace = load_trace(path)
    assert trace.records == load_trace(str(path)).records
    assert trace.records[:7] == load_trace(path, limit=7).records
    named = load_trace(path, model="tiny", tokenizer=str(tiny_model))
    assert {r.model for r in named.records} == {"tiny"}
    assert named.prompt_length_source == f"tokenizer:{tiny_model}"
    assert named.records[0].prompt_tokens != trace.records[0].prompt_tokens
    assert [r.response_tokens for r in named.records] == [r.response_tokens for r in trace.records]
    assert trace_for(str(path), None, None, None).records == trace.records


def test_a_workload_streams_and_can_be_sampled(tmp_path: Path) -> None:
    path = written(tmp_path)
    trace = load_trace(path)
    stream = stream_trace(path)
    assert [r for batch in stream.batches() for r in batch] == list(trace.records)
    assert (stream.length_source, stream.prompt_length_source, stream.sha256) == (
        "synthetic",
        "synthetic",
        trace.sha256,
    )
    some = load_trace(path, sample=5, seed=3).records
    assert len(some) == 5
    assert set(some) < set(trace.records)


def test_what_is_wrong_with_a_workload_is_said_by_whatever_reads_traces(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"w\.yaml: requests: is missing"):
        load_trace(written(tmp_path, requests=...))
    with pytest.raises(TraceError, match=r"none\.yaml: there is no such file"):
        load_trace(tmp_path / "none.yaml")
    with pytest.raises(TraceError, match="a limit of 0 records"):
        load_trace(written(tmp_path), limit=0)
