"""The real files, where they are: what is kept of them is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecoserve.data import load_trace, record_groups, save_trace, split_trace
from ecoserve.errors import TraceError

LLAMA = "vllm_logs/rtxpro6000_llama-3.1-8b"
QWEN = "vllm_logs/rtxpro6000_qwen3-30b-a3b-instruct-2507"

#: Files of lengths: format, rows (all of them kept), tokens of all answers, tokens of all prompts, seconds of arrivals.
LENGTHS: dict[str, tuple[str, int, int, int, float | None]] = {
    "cases/bailian_like.jsonl": ("bailian", 14, 1_939, 8_750, 6.5),
    "cases/mooncake_sessions_timestamps.jsonl": ("mooncake", 14, 819, 16_891, 1.3),
    "cases/mooncake_sessions_delay.jsonl": ("mooncake", 14, 819, 16_891, None),
    "cases/langfuse_generations.csv": ("plain", 12, 666, 1_200, 11.0),
    "cases/langfuse_observations_v2.jsonl": ("plain", 12, 666, 1_200, 11.0),
    "cases/litellm_spend_logs.csv": ("plain", 12, 666, 1_200, 11.0),
    "traces/azure_2023_conv.csv": ("azure", 14_176, 2_856_415, 16_942_346, 2399.964630),
    "traces/azure_2023_code.csv": ("azure", 7_491, 206_626, 15_282_456, 2392.555564),
    "traces/mooncake_synthetic.jsonl.gz": ("mooncake", 3_993, 595_432, 61_194_628, 1022.025),
    "traces/sharegpt_lengths_llama2.csv.gz": ("plain", 30_731, 13_481_988, 71_911_571, None),
    "traces/arxiv_summarization_lengths_llama2.csv.gz": ("plain", 28_257, 8_234_948, 73_131_321, None),
    "traces/lmsys_vicuna13b_bert_predictions.csv.gz": ("plain", 85_482, 15_110_268, 0, None),
    f"{LLAMA}/workload.jsonl.gz": ("vllm", 300, 195_753, 257_239, 29.136836),
    # The same load as it arrived.
    f"{LLAMA}/requests.jsonl": ("vllm", 300, 195_753, 257_239, 29.121193),
    f"{QWEN}/workload.jsonl.gz": ("vllm", 300, 199_486, 258_691, 29.136836),
    f"{QWEN}/requests.jsonl": ("vllm", 300, 199_486, 258_691, 29.117272),
}
#: Files with texts: they have tests of their own.
TEXTS = {
    *("alpaca.json.gz", "sharegpt.json.gz", "alpaca_eval.json.gz", "reasoning_gym_answers.json.gz"),
    *("thinking_lengths.jsonl.gz", "traces/coding_agent_sessions.jsonl.gz", "cases/genai_perf_profile_export.json"),
}
#: Files that are no traces.
NO_TRACES = {f"{run}/{name}" for run in (LLAMA, QWEN) for name in ("config.json", "meta.json", "timeseries.csv")}


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


def test_alpaca_eval(shared_data: Path, tmp_path: Path) -> None:
    trace = load_trace(shared_data / "alpaca_eval.json.gz")
    assert trace.format == "model_outputs"
    assert (trace.report.rows_in, trace.report.kept, trace.report.dropped) == (6_102, 6_102, {})
    assert len({r.conversation for r in trace.records}) == len({r.prompt for r in trace.records}) == 678
    assert len({r.model for r in trace.records}) == 9
    parts = split_trace(trace)
    assert {r.prompt for r in parts["train"].records}.isdisjoint(r.prompt for r in parts["dev"].records)
    assert load_trace(save_trace(trace, tmp_path / "t.jsonl.gz")).records == trace.records


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_and_arrivals(shared_data: Path, tmp_path: Path, name: str) -> None:
    trace = load_trace(shared_data / name)
    answers = sum(r.response_tokens or 0 for r in trace.records)
    prompts = sum(r.prompt_tokens or 0 for r in trace.records)
    *expected, seconds = LENGTHS[name]
    assert [trace.format, trace.report.rows_in, answers, prompts] == expected
    assert (trace.report.kept, trace.report.dropped) == (trace.report.rows_in, {})
    assert (trace.length_source, trace.prompt_length_source) == ("trace", "trace")
    assert trace.report.warnings == []
    times = [r.arrival_s for r in trace.records if r.arrival_s is not None]
    assert len(times) == (0 if seconds is None else len(trace))
    if seconds is not None:
        assert max(times) - min(times) == pytest.approx(seconds, abs=1e-5)
    # Of the longest files every tenth row: rows of one file are alike.
    part = trace.with_records(trace.records[:: 10 if len(trace) > 20_000 else 1])
    assert load_trace(save_trace(part, tmp_path / "t.jsonl.gz")).records == part.records


@pytest.mark.parametrize(
    ("name", "turns", "waits"),
    [
        ("cases/bailian_like.jsonl", [2] * 7, None),
        ("cases/mooncake_sessions_timestamps.jsonl", [4, 4, 4, 2], None),
        ("cases/mooncake_sessions_delay.jsonl", [4, 4, 4, 2], 0.5),
        ("cases/langfuse_observations_v2.jsonl", [12], None),
        ("cases/litellm_spend_logs.csv", [3] * 4, None),
    ],
)
def test_sessions_are_whole(shared_data: Path, name: str, turns: list[int], waits: float | None) -> None:
    records = load_trace(shared_data / name).records
    seen: dict[str, list[int]] = {}
    for r in records:
        seen.setdefault(r.conversation, []).append(r.turn)
    assert list(seen.values()) == [list(range(n)) for n in turns]
    assert {r.think_s for r in records} == {waits}


def test_coding_agents(shared_data: Path) -> None:
    trace = load_trace(shared_data / "traces/coding_agent_sessions.jsonl.gz")
    records = trace.records
    # Two of the 109 sessions have a subagent.
    assert (trace.format, len(records), len({r.conversation for r in records})) == ("agent-sessions", 4_846, 111)
    assert trace.report.dropped == {"failed request (no answer tokens)": 1}
    assert sum(r.response_tokens or 0 for r in records) == 2_009_777
    assert sum(r.prompt_tokens or 0 for r in records) == 455_827_661
    assert sum(r.arrival_s or 0.0 for r in records) == 14_416_482.0
    assert sum(r.think_s or 0.0 for r in records) == 624_300.0
    assert (sum(len(r.prefix_hashes) for r in records), {r.prefix_block_tokens for r in records}) == (7_119_932, {64})
    parts = split_trace(trace)
    sides = [{r.conversation for r in part.records} for part in parts.values()]
    assert sides[0].isdisjoint(sides[1])


def test_answers_and_thinking_by_characters(shared_data: Path) -> None:
    gym = load_trace(shared_data / "reasoning_gym_answers.json.gz")
    assert gym.report.rows_in == 10_214
    assert gym.report.kept + sum(gym.report.dropped.values()) == 3 * 10_214
    assert gym.length_source == "characters/4.0 of response_chars"
    riddles = load_trace(shared_data / "thinking_lengths.jsonl.gz")
    assert (len(riddles), riddles.report.dropped) == (4_919, {"failed request (no answer tokens)": 3})
    assert sum(r.thinking_tokens is not None for r in riddles.records) == 1_507
    assert all((r.thinking_tokens or 0) <= (r.response_tokens or 0) for r in riddles.records)


def test_genai_perf(shared_data: Path) -> None:
    trace = load_trace(shared_data / "cases/genai_perf_profile_export.json")
    assert [(r.arrival_s, r.response_tokens, r.prompt) for r in trace.records] == [
        (1 + i / 1e9, 1, f"hi {i}") for i in range(12)
    ]
    assert "tokens of answers are their chunks" in trace.report.warnings[0]


@pytest.mark.parametrize("name", sorted(NO_TRACES))
def test_what_is_no_trace_is_refused_in_one_line(shared_data: Path, name: str) -> None:
    with pytest.raises(TraceError, match="unknown trace format, it has fields") as caught:
        load_trace(shared_data / name)
    assert "\n" not in str(caught.value)


def loaded(path: Path) -> int | str:
    """How many records a file holds, or why it cannot be loaded."""
    try:
        return len(load_trace(path))
    except TraceError as e:
        return str(e)


def test_a_file_not_named_here_loads_or_says_why_not(shared_data: Path) -> None:
    named = {shared_data / name for name in (*LENGTHS, *TEXTS, *NO_TRACES)}
    for path in sorted(p for p in shared_data.rglob("*") if p.is_file() and p not in named):
        outcome = loaded(path)
        assert outcome if isinstance(outcome, int) else outcome.startswith(f"{path}: ")
