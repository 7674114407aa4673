"""SLOs in the API server: what clients may ask for, what operators allow, and what goes on to the engine."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from front_helpers import ByWords, Recorder, with_client
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ecoserve.errors import ConfigError
from ecoserve.options import to_environment
from ecoserve.serving.adapter import deadlines
from ecoserve.serving.adapter.metrics import middleware_metrics
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
from ecoserve.serving.core import keys

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "one two"}]}
TOKEN_IDS: dict[str, Any] = {"model": "m", "prompt": [5, 6, 7]}
BODIES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": TOKEN_IDS,
    "/v1/responses": {"model": "m", "input": "one two"},
    "/v1/messages": {**CHAT, "max_tokens": 9},
}


def ask(
    body: Any,
    headers: Any = (),
    path: str = "/v1/chat/completions",
    predictor: ByWords | None = None,
    **settings: Any,
) -> tuple[httpx.Response, Recorder]:
    """One request through the middleware; the answer, and what came out behind it."""
    answers = []

    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        answers.append(await client.post(path, json=body, headers=headers))

    seen = with_client(use, predictor, **settings)
    return answers[0], seen


def slo(seen: Recorder) -> dict[str, float]:
    found: dict[str, float] = seen.last.get("vllm_xargs", {})
    return {key: found[key] for key in (keys.SLO_TTFT, keys.SLO_TPOT) if key in found}


def became(outcome: str) -> float:
    return float(middleware_metrics().slo_values.labels(outcome)._value.get())


def stated(source: str) -> float:
    return float(middleware_metrics().slos_stated.labels(source)._value.get())


@pytest.mark.parametrize("path", BODIES)
def test_headers_reach_the_engine_whatever_is_asked(path: str) -> None:
    before = became("accepted"), stated("client")
    answer, seen = ask(BODIES[path], {"x-slo-ttft-ms": "800", "X-SLO-TPOT-ms": " 62.5 "}, path)
    assert answer.status_code == 200
    assert slo(seen) == {keys.SLO_TTFT: 0.8, keys.SLO_TPOT: 0.0625}
    assert {k: v for k, v in seen.last.items() if k != "vllm_xargs"} == BODIES[path]
    assert int(seen.headers[-1]["content-length"]) == len(seen.bodies[-1])
    assert (became("accepted"), stated("client")) == (before[0] + 2, before[1] + 1)


def test_the_bodys_field_says_the_same_and_is_taken_out() -> None:
    _, seen = ask({**CHAT, "slo": {"ttft_ms": 800, "tpot_ms": None}, "vllm_xargs": {"session_id": "s"}})
    assert seen.last == {**CHAT, "vllm_xargs": {"session_id": "s", keys.SLO_TTFT: 0.8}}


def test_headers_go_before_the_field() -> None:
    _, seen = ask({**CHAT, "slo": {"ttft_ms": 800, "tpot_ms": 40}}, {"x-slo-ttft-ms": "300"})
    assert slo(seen) == {keys.SLO_TTFT: 0.3, keys.SLO_TPOT: 0.04}


def test_predictions_and_deadlines_travel_together() -> None:
    _, seen = ask(CHAT, {"x-slo-ttft-ms": "800"}, predictor=ByWords())
    assert set(seen.last["vllm_xargs"]) == {keys.LENGTHS, keys.SLO_TTFT}


def test_no_client_asks_for_less_than_the_operators_least() -> None:
    before = became("clamped")
    _, seen = ask(CHAT, {"x-slo-ttft-ms": "0.001", "x-slo-tpot-ms": "1"}, slo_min_ttft_ms=200, slo_min_tpot_ms=10)
    assert slo(seen) == {keys.SLO_TTFT: 0.2, keys.SLO_TPOT: 0.01}
    assert became("clamped") == before + 2


BAD_HEADERS = ["", "0", "-1", "nan", "inf", "1e3", "1_000", "fast", "500ms", "500, 500", "9" * 30, "86400001", "٣"]


@pytest.mark.parametrize("value", BAD_HEADERS)
@pytest.mark.parametrize("name", ["x-slo-ttft-ms", "x-slo-tpot-ms"])
def test_headers_that_are_no_duration_are_refused_in_one_line(name: str, value: str) -> None:
    before = became("refused")
    predictor = ByWords()
    answer, seen = ask(CHAT, [(name.encode(), value.encode())], predictor=predictor)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["message"].startswith(f"{name}: ")
    assert "\n" not in error["message"]
    assert (error["param"], error["code"]) == (name, 400)
    assert seen.bodies == []
    assert predictor.calls == []
    assert became("refused") == before + 1


BAD_FIELDS = [
    500,
    [500],
    {"ttft_ms": "500"},
    {"ttft_ms": True},
    {"tpot_ms": -1},
    {"tpot_ms": 0},
    {"tpot_ms": [5]},
    {"ttft_ms": 10**300},
    {"ttft": 500},
]


@pytest.mark.parametrize("field", BAD_FIELDS, ids=str)
def test_fields_that_are_no_durations_are_refused_in_one_line(field: Any) -> None:
    answer, seen = ask({**CHAT, "slo": field})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("slo")
    assert seen.bodies == []


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_json_should_not_have_are_refused(number: str) -> None:
    answers = []

    async def use(client: httpx.AsyncClient, app: Recorder) -> None:
        raw = json.dumps(CHAT)[:-1] + f', "slo": {{"ttft_ms": {number}}}}}'
        head = {"content-type": "application/json"}
        answers.append(await client.post("/v1/chat/completions", content=raw, headers=head))

    assert with_client(use).bodies == []
    assert answers[0].status_code == 400


def test_a_header_given_twice_is_refused() -> None:
    answer, _ = ask(CHAT, [("x-slo-ttft-ms", "500"), ("x-slo-ttft-ms", "900")])
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "x-slo-ttft-ms: is given twice"


def test_the_refusal_has_the_shape_of_the_api_that_was_called() -> None:
    answer, _ = ask(BODIES["/v1/messages"], {"x-slo-ttft-ms": "soon"}, "/v1/messages")
    assert answer.status_code == 400
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "invalid_request_error"


@given(st.one_of(st.binary(max_size=40), st.from_regex(rb"[0-9.eE+-]{1,12}", fullmatch=True)))
@hypothesis_settings(max_examples=200, deadline=None)
def test_any_header_is_a_duration_within_bounds_or_refused(value: bytes) -> None:
    try:
        found = deadlines.asked_ms([(b"x-slo-ttft-ms", value)], {})
    except deadlines.BadDeadline as error:
        line = str(error)
    else:
        assert 0 < found[keys.SLO_TTFT] <= deadlines.LONGEST_MS
        return
    assert "\n" not in line
    assert len(line) < 250


def test_off_looks_at_nothing() -> None:
    before = became("ignored"), became("refused")
    body = {**CHAT, "slo": {"ttft_ms": "x"}}
    answer, seen = ask(body, {"x-slo-ttft-ms": "soon"}, client_slos="off")
    assert answer.status_code == 200
    assert seen.last == body
    assert (became("ignored"), became("refused")) == (before[0] + 1, before[1])


# -- the operator's own SLO -----------------------------------------------------------------------------------------


def test_who_says_nothing_gets_the_operators_slo() -> None:
    before = stated("default")
    _, seen = ask(CHAT, unloaded_ttft_ms=90, unloaded_tpot_ms=12)
    assert slo(seen) == {keys.SLO_TTFT: pytest.approx(0.18), keys.SLO_TPOT: pytest.approx(0.024)}
    assert stated("default") == before + 1
    _, seen = ask(CHAT, {"x-slo-ttft-ms": "5000"}, unloaded_ttft_ms=90, unloaded_tpot_ms=12, slo_scale=0.5)
    assert slo(seen) == {keys.SLO_TTFT: 5.0, keys.SLO_TPOT: pytest.approx(0.006)}
    _, seen = ask(CHAT, {"x-slo-ttft-ms": "5000"}, unloaded_ttft_ms=90, client_slos="off")
    assert slo(seen) == {keys.SLO_TTFT: pytest.approx(0.18)}


def test_without_a_rule_nothing_is_added() -> None:
    _, seen = ask(CHAT)
    assert seen.last == CHAT


def test_a_scale_of_nothing_is_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ECOSERVE_SLO_SCALE", "2")
    with pytest.raises(ConfigError, match="ECOSERVE_SLO_SCALE: a scale needs unloaded times"):
        MiddlewareSettings.read()


@pytest.mark.parametrize(
    "wrong", [{"client_slos": "maybe"}, {"slo_min_ttft_ms": 0}, {"slo_min_tpot_ms": float("nan")}, {"slo_scale": -1}]
)
def test_wrong_settings_are_refused_at_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(wrong)).replace('_', '-')}: "):
        MiddlewareSettings.read({}, {"unloaded_ttft_ms": 5, **wrong})


def test_settings_survive_the_environment() -> None:
    made = MiddlewareSettings(client_slos="off", slo_min_ttft_ms=7, slo_scale=1.5, unloaded_tpot_ms=3)
    assert MiddlewareSettings.read(to_environment(made)) == made


# -- clients that speak our own language ---------------------------------------------------------------------------


def test_our_keys_from_clients_are_stripped_and_replaced() -> None:
    own = {keys.SLO_TTFT: 0.001, keys.SLO_TPOT: 0.001, keys.DEADLINE: 0.1}
    _, seen = ask({**CHAT, "vllm_xargs": own})
    assert seen.last == {**CHAT, "vllm_xargs": {}}
    _, seen = ask({**CHAT, "vllm_xargs": own}, {"x-slo-ttft-ms": "700"})
    assert seen.last["vllm_xargs"] == {keys.SLO_TTFT: 0.7}


def test_trusted_clients_keep_their_own_keys() -> None:
    own = {keys.DEADLINE: 3.0}
    _, seen = ask({**CHAT, "vllm_xargs": own}, trust_client=True, unloaded_ttft_ms=90)
    assert seen.last["vllm_xargs"] == own


def test_deadlines_are_kept_from_who_has_no_key() -> None:
    """Without the API key nothing is looked at: vLLM says 401."""
    answer, seen = ask(CHAT, {"x-slo-ttft-ms": "soon"}, api_key="secret")
    assert answer.status_code == 200
    assert seen.last == CHAT
