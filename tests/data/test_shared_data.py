"""The real files, where they are: what is kept of them is known."""

from __future__ import annotations

from pathlib import Path

from ecoserve.data import load_trace, record_groups, save_trace, split_trace


def test_alpaca_as_it_is(shared_data: Path) -> None:
    trace = load_trace(shared_data / "alpaca.json.gz")
    assert trace.format == "alpaca"
    assert (trace.report.rows_in, trace.report.kept) == (47_076, 47_033)
    assert trace.report.dropped == {"empty answer": 43}
    parts = split_trace(trace)
    assert len(parts["dev"]) == round(0.2 * 47_033)
    # Some rows of this file are dev by its own words.
    assert "dev" not in {r.split for r in parts["train"].records}


def test_alpaca_with_vicunas_lengths(shared_data: Path, tmp_path: Path) -> None:
    trace = load_trace(
        shared_data / "alpaca.json.gz", length_field="vicuna_7b_tokens[3]", sample_field="vicuna_7b_tokens"
    )
    assert trace.report.dropped == {"no vicuna_7b_tokens[3]": 32_002}
    assert trace.report.noted == {"answers cut off": 105}
    assert min(r.response_tokens or 0 for r in trace.records if r.censored) == 512
    assert {len(r.sample_tokens) for r in trace.records} == {3}
    assert trace.records[0].response_tokens == 61
    assert trace.records[0].sample_tokens == (115, 126, 53)
    parts = split_trace(trace)
    assert {k: len(v) for k, v in parts.items()} == {"train": 10_000, "dev": 5_074}
    assert load_trace(save_trace(trace, tmp_path / "t.jsonl.gz")).records == trace.records


def test_sharegpt(shared_data: Path, tmp_path: Path) -> None:
    trace = load_trace(shared_data / "sharegpt.json.gz")
    assert trace.format == "sharegpt"
    assert (trace.report.rows_in, trace.report.kept) == (705, 2_529)
    assert trace.report.dropped == {"duplicate": 12, "no question with an answer": 6, "empty prompt": 4}
    assert trace.report.noted == {"conversation starts with an answer": 234}
    assert all(r.messages[-1].content == r.prompt for r in trace.records)
    parts = split_trace(trace, seed=3)
    stems = [{r.conversation.split("_")[0] for r in p.records} for p in parts.values()]
    assert stems[0].isdisjoint(stems[1])
    assert len(set(record_groups(trace.records).tolist())) > 600
    assert load_trace(save_trace(trace, tmp_path / "t.jsonl")).records == trace.records
