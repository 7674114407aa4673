"""Bodies: what they ask, and that nothing but our values changes in them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter import bodies
from ecoserve.serving.core import keys

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
OBJECTS = st.dictionaries(st.text(max_size=8), JSON, max_size=5)
XARGS = st.dictionaries(st.sampled_from(["top", "session_id", *keys.ALL]), st.integers() | st.text(max_size=5))
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"])


@given(OBJECTS, st.none() | XARGS, ENCODINGS, st.booleans(), st.sampled_from([None, 2]))
@settings(deadline=None)
def test_only_our_values_change(
    body: dict[str, Any], xargs: dict[str, Any] | None, encoding: str, ascii_only: bool, indent: int | None
) -> None:
    if xargs is not None:
        body = {**body, bodies.XARGS: xargs}
    text = json.dumps(body, ensure_ascii=ascii_only, indent=indent)
    try:
        raw = text.encode(encoding)
    except UnicodeEncodeError:  # a lone surrogate that is not escaped is no text in any encoding
        return
    parsed = bodies.parse(raw)
    assert parsed == body
    add = {keys.LENGTHS: [1.0, 0.5]}
    new = bodies.rewrite(raw, parsed, bodies.foreign_keys(parsed, ()), add)
    assert new is not None
    kept = {k: v for k, v in (xargs or {}).items() if k not in keys.ALL}
    assert json.loads(new) == {**body, bodies.XARGS: {**kept, **add}}


@given(st.binary(max_size=200) | JSON.filter(lambda v: not isinstance(v, dict)).map(lambda v: json.dumps(v).encode()))
def test_what_is_no_json_object_is_not_parsed(raw: bytes) -> None:
    parsed = bodies.parse(raw)
    assert parsed is None or isinstance(parsed, dict)


def test_a_body_without_xargs_keeps_every_byte() -> None:
    raw = b'{ "model":"m",\n "prompt" : "\\u00e9 \xc3\xa9", "temperature": 1.0e0, "seed": 12345678901234567890 } \n'
    new = bodies.rewrite(raw, json.loads(raw), [], {keys.LENGTHS: [1.0]})
    assert new == raw[:-3] + b',"vllm_xargs":{"ecoserve_lengths":[1.0]}' + raw[-3:]
    assert bodies.rewrite(b"{}", {}, [], {"a": 1}) == b'{"vllm_xargs":{"a":1}}'


def test_too_deep_json_is_no_json() -> None:
    assert bodies.parse(b"[" * 200_000) is None
    assert bodies.parse(b'{"a":' * 200_000 + b"1" + b"}" * 200_000) is None


def test_nothing_to_do_leaves_the_body_alone() -> None:
    assert bodies.rewrite(b'{"a":1}', {"a": 1}, [], {}) is None


def test_xargs_that_are_no_object_are_left_to_vllm() -> None:
    raw = b'{"vllm_xargs": 5}'
    assert bodies.rewrite(raw, json.loads(raw), [], {keys.LENGTHS: [1.0]}) is None


def test_foreign_keys_are_found_wherever_vllm_reads_them() -> None:
    body = {
        "vllm_xargs": {keys.LENGTHS: [1.0], "top": 1},
        "sampling_params": {"n": 1, "extra_args": {keys.REPLAY_TOKENS: 5, "x": 2}},
    }
    paths = bodies.foreign_keys(body, allowed=())
    new = json.loads(bodies.rewrite(json.dumps(body).encode(), body, paths, {}) or b"")
    assert new == {"vllm_xargs": {"top": 1}, "sampling_params": {"n": 1, "extra_args": {"x": 2}}}
    assert bodies.foreign_keys(body, allowed=keys.ALL) == []
    assert body["vllm_xargs"] == {keys.LENGTHS: [1.0], "top": 1}, "the parsed body itself is not changed"


@pytest.mark.parametrize(
    "raw",
    [b'{"vllm_xargs":{"ecoserve_lengths":1}}', b'{"\\u0065coserve_lengths":1}', '{"ecoserve_x":1}'.encode("utf-16")],
)
def test_a_body_that_may_carry_keys_is_never_missed(raw: bytes) -> None:
    assert bodies.may_carry_keys(raw)
    assert not bodies.may_carry_keys(b'{"prompt": "ecoserve"}')


def test_what_a_chat_asks() -> None:
    ask = bodies.ask_chat(
        {
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "what is"}, {"type": "image_url"}, "this?"]},
                {"role": "assistant", "content": None},
                "nonsense",
                {"content": "no role"},
            ],
            "max_tokens": 7,
            "max_completion_tokens": 9,
        }
    )
    assert ask is not None
    assert [(m.role, m.content) for m in ask.chats[0]] == [
        ("system", "be brief"),
        ("user", "what is\nthis?"),
        ("assistant", ""),
    ]
    assert (ask.limit, ask.batch) == (9, False)


@pytest.mark.parametrize("messages", [None, [], "text", [1, 2], {"role": "user"}])
def test_a_chat_without_messages_asks_nothing(messages: Any) -> None:
    assert bodies.ask_chat({"messages": messages}) is None


def test_what_a_completion_asks() -> None:
    assert bodies.ask_completion({"prompt": "a b"}).limit == 16  # type: ignore[union-attr]
    many = bodies.ask_completion({"prompt": ["a", "b c"], "max_tokens": 3})
    assert many is not None
    assert many.batch
    assert len(many.chats) == 2
    assert many.limit == 3
    for prompt in ([1, 2, 3], [[1], [2]], ["a", [1]], [], None, 5, ["a"] * (bodies.BATCH_PROMPTS + 1)):
        assert bodies.ask_completion({"prompt": prompt}) is None
    assert bodies.ask_completion({"prompt": "a", "use_beam_search": True}) is None


def test_what_responses_and_messages_ask() -> None:
    ask = bodies.ask_responses({"input": "hello", "instructions": "be brief", "max_output_tokens": 5})
    assert ask is not None
    assert [m.role for m in ask.chats[0]] == ["system", "user"]
    assert ask.limit == 5
    parts = {"role": "user", "content": [{"type": "input_text", "text": "hi"}]}
    ask = bodies.ask_responses({"input": [{"type": "reasoning"}, parts]})
    assert ask is not None
    assert ask.chats[0][0].content == "hi"
    assert ask.limit is None
    ask = bodies.ask_anthropic({"system": [{"type": "text", "text": "s"}], "messages": [parts], "max_tokens": 4})
    assert ask is not None
    assert [m.content for m in ask.chats[0]] == ["s", "hi"]
    assert ask.limit == 4


@pytest.mark.parametrize("limit", [True, 0, -3, "5", 2.5, None])
def test_a_limit_that_is_none_closes_nothing(limit: Any) -> None:
    ask = bodies.ask_chat({"messages": [{"role": "user", "content": "x"}], "max_tokens": limit})
    assert ask is not None
    assert ask.limit is None


def test_lengths_are_closed_at_the_limit() -> None:
    ask = bodies.Ask(((),), limit=10)
    wire = bodies.wire_args(ask, [LengthDistribution.lognormal(50, 0.5, 500)])[keys.LENGTHS]
    sent = LengthDistribution.from_wire(wire)
    assert sent.upper == 10
    assert sent.closed_by == "max_tokens"


@given(st.integers(1, bodies.BATCH_PROMPTS))
@settings(max_examples=25, deadline=None)
def test_a_batch_stays_small_and_every_prompt_finds_its_own(count: int) -> None:
    lengths = [LengthDistribution.lognormal(10 + i, 0.6, 4000) for i in range(count)]
    flat = bodies.wire_args(bodies.Ask(((),) * count, batch=True), lengths)[keys.LENGTHS_BATCH]
    assert len(flat) <= bodies.BATCH_NUMBERS + 1
    sent_all, at = [], 1
    while at < len(flat):
        size = int(flat[at])
        sent_all.append(LengthDistribution.from_wire(flat[at + 1 : at + 1 + size]))
        at += 1 + size
    assert len(sent_all) == flat[0] == count
    for i, sent in enumerate(sent_all):
        assert sent.upper == lengths[i].upper
        assert abs(sent.mean() - lengths[i].mean()) <= 0.1 * lengths[i].mean() + 1


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=60).filter(lambda w: sum(w) > 0),
    st.integers(1, 64),
)
def test_coarser_keeps_ends_mass_and_the_cdf_at_its_edges(weights: list[float], bins: int) -> None:
    fine = LengthDistribution.from_weights(range(len(weights) + 1), weights)
    coarse = bodies.coarser(fine, bins)
    assert 1 <= len(coarse.probs) <= max(bins, 1) or coarse is fine
    assert (coarse.edges[0], coarse.upper) == (fine.edges[0], fine.upper)
    for edge in coarse.edges:
        assert coarse.survival(edge) == pytest.approx(fine.survival(edge), abs=1e-9)
