"""What a body says beside its text reaches the predictor, whatever the body."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from front_helpers import ByWords, Recorder, with_client

from ecoserve.data.parameters import LARGEST_LIMIT, RequestParameters
from ecoserve.predictor.text import ChatRequest
from ecoserve.serving.adapter import bodies

TOOL = {"type": "function", "function": {"name": "f"}}
CHAT = {"messages": [{"role": "user", "content": "one two three"}]}


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/v1/chat/completions", CHAT, RequestParameters()),
        (
            "/v1/chat/completions",
            {**CHAT, "max_completion_tokens": 9, "max_tokens": 4, "stop": "END", "tools": [TOOL]},
            RequestParameters(9, ("END",), 1),
        ),
        (
            "/v1/chat/completions",
            {**CHAT, "chat_template_kwargs": {"enable_thinking": True}, "response_format": {"type": "json_object"}},
            RequestParameters(thinking="on", response_format="json_object"),
        ),
        ("/v1/chat/completions", {**CHAT, "max_tokens": 10**40}, RequestParameters(LARGEST_LIMIT)),
        ("/v1/completions", {"prompt": "a b", "stop": ["\n"]}, RequestParameters(16, ("\n",))),
        ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 99}, RequestParameters(99)),
        (
            "/v1/responses",
            {"input": "a", "max_output_tokens": 7, "reasoning": {"effort": "low"}},
            RequestParameters(7, thinking="low"),
        ),
        (
            "/v1/messages",
            {**CHAT, "max_tokens": 5, "stop_sequences": ["x"], "thinking": {"type": "disabled"}},
            RequestParameters(5, ("x",), thinking="off"),
        ),
    ],
)
def test_every_context_comes_with_them(path: str, body: dict[str, Any], expected: RequestParameters) -> None:
    predictor = ByWords()

    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        await client.post(path, json=body)

    sent = with_client(use, predictor).last
    assert {k: v for k, v in sent.items() if k != "vllm_xargs"} == body
    [asked] = predictor.calls
    assert asked
    for request in asked:
        assert isinstance(request, ChatRequest)
        assert request.parameters == expected


def test_of_large_parameters_little_is_kept() -> None:
    body = {**CHAT, "stop": ["s" * 1000] * 5000, "tools": [{}] * 50_000, "response_format": {"type": {"a": [1] * 9999}}}
    ask = bodies.ask_chat(json.loads(json.dumps(body)))
    assert ask is not None
    [request] = ask.requests()
    assert len(repr(request.parameters)) < 500
