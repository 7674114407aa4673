"""Whatever stands in a row, a format makes exchanges and rejects of it, and never raises."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoserve.data import Record, known_fields
from ecoserve.data.formats import FORMATS, Exchange, Format, Reject

#: Names that some format looks for.
NAMES = [
    *("conversation", "turn", "prompt", "response", "response_tokens", "arrival_s", "sample_tokens", "prefix_hashes"),
    *("conversations", "messages", "from", "value", "role", "content", "id", "model", "split", "timestamp", "usage"),
    *("type", "text", "tool_calls", "function_call", "function", "name", "arguments", "reasoning", "thinking"),
    *("instruction", "input", "output", "generator", "finish_reason", "max_tokens", "created", "completion_tokens"),
    *("request", "body", "choices", "message", "index", "status", "status_code", "error", "custom_id", "metadata"),
    *("instructions", "system", "object", "incomplete_details", "stop_reason", "token_ids", "n", "session_id"),
    *("total_input_tokens", "request_throughput", "input_lens", "output_lens", "start_times", "errors", "model_id"),
    *("input_toks", "output_toks", "arrival_time_ns", "input_tok_ids", "arrival_time", "request_id"),
    *("TIMESTAMP", "ContextTokens", "GeneratedTokens", "input_length", "output_length", "hash_ids"),
    *("Timestamp", "Session ID", "Model", "Request tokens", "Response tokens", "generated_texts"),
    *("requests", "successful", "turns", "token_len", "replies", "hash_ids", "block_size", "think_time", "in", "out"),
    *("experiments", "response_outputs", "benchmarks", "info", "timings", "sessionId", "parent_id", "usage_details"),
    *(names[0] for names in known_fields.NAMES.values()),
]
WORDS = ["user", "assistant", "tool", "system", "text", "tool_use", "tool_result", "response", "length", "reasoning"]

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-5, 2**40)
    | st.just(10**400)
    | st.floats()
    | st.sampled_from(WORDS)
    | st.sampled_from(
        ["", " ", "5", "-1", "nan", "1e999", "2024-05-01", "0001-01-01", '{"messages": [', '{"body": {}}']
    )
    | st.text(max_size=5)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(WORDS[:4])}, optional={"content": VALUES, "tool_calls": VALUES}),
    max_size=5,
)
ROWS = st.dictionaries(st.sampled_from(NAMES), VALUES | MESSAGES, max_size=8)

#: What each format asks a row for, so that the rows below get past its first look.
NEEDED = {
    "records": ("conversation", "turn"),
    "sharegpt": ("id", "conversations"),
    "claude-code": ("type", "sessionId", "message", "timestamp"),
    "arena": ("question_id", "choices"),
    "openai": ("request", "response"),
    "chat": ("messages",),
    "model_outputs": ("instruction", "output", "generator"),
    "alpaca": ("instruction", "output"),
    "openassistant": ("message_tree_id", "prompt", "parent_id", "role", "text"),
    "agent-sessions": ("id", "requests"),
    "guidellm": ("benchmarks",),
    "aiperf": ("metadata", "metrics"),
    "genai-perf": ("experiments",),
    "vllm-bench": ("total_input_tokens", "request_throughput", "input_lens", "output_lens"),
    "vllm": ("input_toks", "output_toks"),
    "azure": ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    "bailian": ("chat_id", "parent_chat_id", "timestamp", "input_length", "output_length", "hash_ids"),
    "mooncake": ("timestamp", "input_length", "output_length", "hash_ids"),
    "burstgpt": ("Timestamp", "Request tokens", "Response tokens"),
    "plain": ("response_tokens",),
}


def check(form: Format, row: dict[str, Any]) -> None:
    assert form.matches(row) in (True, False)
    for item in form.read(row, 3):
        if isinstance(item, Reject):
            assert item.reason
            continue
        assert isinstance(item, Exchange)
        sound(item.record)


def sound(record: Record) -> None:
    """What the rest of the code takes for granted."""
    assert isinstance(record.conversation, str)
    assert record.conversation
    assert record.turn >= 0
    assert record.sample >= 0
    assert all(isinstance(m.role, str) and isinstance(m.content, str) for m in record.messages)
    assert record.prompt is None or record.prompt.strip()
    for count in (record.response_tokens, record.prompt_tokens, record.max_tokens, record.thinking_tokens):
        assert count is None or type(count) is int
    assert record.max_tokens is None or record.max_tokens >= 1
    assert record.arrival_s is None or (type(record.arrival_s) is float and 0 <= record.arrival_s < float("inf"))
    for name in (record.model, record.split, record.finish_reason):
        assert name is None or (isinstance(name, str) and name)
    assert all(type(h) is int for h in record.prefix_hashes)
    assert record.prefix_block_tokens >= 1
    assert record.think_s is None or 0 <= record.think_s < float("inf")


@pytest.mark.parametrize("form", FORMATS, ids=lambda f: f.name)
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_a_format_never_raises(form: Format, data: st.DataObject) -> None:
    row = data.draw(ROWS)
    check(form, row)
    row |= {name: data.draw(VALUES | MESSAGES) for name in NEEDED[form.name]}
    check(form, row)
