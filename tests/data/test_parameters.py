"""What requests say beside their text: read from any API's bodies, kept small, carried by records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.data import Record, load_trace, save_trace
from ecoserve.data.parameters import (
    LARGEST_LIMIT,
    MOST_TOOLS,
    NO_PARAMETERS,
    STOP_CHARACTERS,
    STOP_STRINGS,
    RequestParameters,
    parameters_of,
)

TOOL = {"type": "function", "function": {"name": "f"}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=40),
    lambda inner: st.lists(inner, max_size=9) | st.dictionaries(st.sampled_from(["type", "effort", "a"]), inner),
    max_leaves=12,
)
KEYS = st.sampled_from(
    [
        *("max_tokens", "max_completion_tokens", "stop", "stop_sequences", "tools", "functions", "tool_choice"),
        *("thinking", "reasoning", "reasoning_effort", "chat_template_kwargs", "text", "response_format"),
        *("structured_outputs", "guided_json", "guided_choice"),
    ]
)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, NO_PARAMETERS),
        ({"max_tokens": 7, "max_completion_tokens": 9}, RequestParameters(9)),
        ({"max_output_tokens": 9, "reasoning": {"effort": "low"}}, RequestParameters(9, thinking="low")),
        ({"max_tokens": True, "stop": 3, "tools": "x", "thinking": 1, "response_format": 4}, NO_PARAMETERS),
        ({"max_tokens": 0, "stop": ["", None, 1], "tools": [], "response_format": {"type": "text"}}, NO_PARAMETERS),
        ({"stop": "\n"}, RequestParameters(stop=("\n",))),
        ({"stop_sequences": ["a", "b", "a"]}, RequestParameters(stop=("a", "b"))),
        ({"tools": [TOOL] * 3}, RequestParameters(tools=3)),
        ({"tools": [TOOL], "tool_choice": "none"}, NO_PARAMETERS),
        ({"functions": [TOOL]}, RequestParameters(tools=1)),
        ({"chat_template_kwargs": {"enable_thinking": False}}, RequestParameters(thinking="off")),
        ({"thinking": {"type": "enabled", "budget_tokens": 99}}, RequestParameters(thinking="99")),
        ({"thinking": {"type": "disabled", "budget_tokens": 99}}, RequestParameters(thinking="off")),
        ({"reasoning": {"max_tokens": 2000}, "max_tokens": 9}, RequestParameters(9, thinking="2000")),
        ({"thinking_token_budget": 0}, RequestParameters(thinking="off")),
        (
            {"chat_template_kwargs": {"enable_thinking": True, "thinking_budget": 10**9}},
            RequestParameters(thinking="1000000"),
        ),
        ({"reasoning_effort": "high", "thinking": False}, RequestParameters(thinking="high")),
        ({"response_format": {"type": "json_schema"}}, RequestParameters(response_format="json_schema")),
        ({"text": {"format": {"type": "json_object"}}}, RequestParameters(response_format="json_object")),
        ({"guided_json": {"a": 1}}, RequestParameters(response_format="json_schema")),
        ({"structured_outputs": {"choice": ["a"]}}, RequestParameters(response_format="choice")),
    ],
)
def test_bodies_of_any_api(body: dict[str, Any], expected: RequestParameters) -> None:
    assert parameters_of(body) == expected
    assert bool(expected) == (expected != NO_PARAMETERS)


@given(st.dictionaries(KEYS, JSON, max_size=8))
def test_whatever_a_body_holds_what_is_kept_is_small_text(body: dict[str, Any]) -> None:
    said = parameters_of(body)
    assert said.max_tokens is None or 1 <= said.max_tokens <= LARGEST_LIMIT
    assert len(said.stop) <= STOP_STRINGS
    assert all(0 < len(s.encode().decode()) <= STOP_CHARACTERS for s in said.stop)
    assert 0 <= said.tools <= MOST_TOOLS
    for word in (said.thinking, said.response_format):
        assert word is None or len(word) < 24


def test_large_bodies_are_cut() -> None:
    said = parameters_of({"max_tokens": 10**30, "stop": ["x" * 10**6] * 10**5, "tools": [TOOL] * 10**5})
    assert said == RequestParameters(LARGEST_LIMIT, ("x" * STOP_CHARACTERS,), MOST_TOOLS)


def test_logs_keep_them_and_our_own_files_give_them_back(tmp_path: Path) -> None:
    request = {
        "model": "m",
        "messages": [{"role": "user", "content": "Q"}],
        "max_tokens": 64,
        "stop": ["\n\n", "END"],
        "tools": [TOOL, TOOL],
        "reasoning_effort": "low",
        "response_format": {"type": "json_object"},
    }
    plain = {"model": "m", "messages": [{"role": "user", "content": "Another question"}]}
    answer = {"choices": [{"message": {"role": "assistant", "content": "A"}}], "usage": {"completion_tokens": 5}}
    file = tmp_path / "log.jsonl"
    file.write_text("".join(json.dumps({"request": r, "response": answer}) + "\n" for r in (request, plain)))
    trace = load_trace(file)
    full, bare = trace.records
    assert full.parameters == RequestParameters(64, ("\n\n", "END"), 2, "low", "json_object")
    assert not bare.parameters
    assert not {"stop", "tools", "thinking", "response_format"} & bare.as_row().keys()
    again = load_trace(save_trace(trace, tmp_path / "own.jsonl"))
    assert again.records == trace.records
    assert again.sha256 == trace.sha256


def test_a_record_without_them_has_the_row_it_always_had() -> None:
    record = Record("c", prompt="p", response_tokens=3, max_tokens=9)
    assert record.as_row() == {"conversation": "c", "turn": 0, "prompt": "p", "response_tokens": 3, "max_tokens": 9}
