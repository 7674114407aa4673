"""Collecting from servers that misbehave: what is repeated, what is not, what ends the run, and what is never said."""

from __future__ import annotations

import email.utils
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from stand_in import Behaviour, Reply, StandIn, answer, fails, journaled, prompts_file, rows_of, settings
from tenacity import AsyncRetrying, RetryCallState

from ecoserve.errors import ConfigError, RunError
from ecoserve.serving.collect import CollectProgress, CollectResult, collect
from ecoserve.serving.collect.collector import backoff
from ecoserve.serving.collect.endpoint import error_message, retry_after
from ecoserve.serving.collect.journal import journal_of


def first_time(reply: Reply) -> Behaviour:
    """Every sample's first attempt gets ``reply``, the second one an answer."""
    return lambda body, n: reply if n == 0 else answer(body)


@pytest.mark.parametrize(
    "reply",
    [
        fails(500),
        fails(503, headers={"retry-after": "0"}),
        fails(429, headers={"retry-after": email.utils.formatdate(0)}),
        fails(408),
        Reply(0),
        Reply(200, b'{"choices": [{"message": {"content": "cut', cut=20),
        Reply(200, b"<html>hello</html>"),
        Reply(200, b"[]"),
        Reply(200, b'{"choices": [], "usage": {"completion_tokens": 3}}'),
        Reply(200, b'{"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}'),
        Reply(200, b'{"choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": "3"}}'),
        Reply(200, b'{"choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": 99999999}}'),
        Reply(200, b'{"choices": [{"finish_reason": "abort"}], "usage": {"completion_tokens": 3}}'),
        Reply(200, b'{"choices": [{"finish_reason": null}], "usage": {"completion_tokens": 3}}'),
        Reply(200, b"{}", headers={"content-encoding": "gzip"}),
    ],
    ids=lambda reply: f"{reply.status} {reply.body[:60].decode()}",
)
def test_what_may_go_well_later_is_repeated(tmp_path: Path, reply: Reply) -> None:
    out = tmp_path / "out.jsonl"
    with StandIn(first_time(reply)) as server:
        result = collect(settings(prompts_file(tmp_path, 3), out, server.url, samples=2))
    assert (result.rows, result.retries, result.requests_sent) == (6, 6, 12)
    assert set(server.asked.values()) == {2}
    assert len(rows_of(out)) == 6


def test_a_request_without_an_answer_in_time_is_repeated(tmp_path: Path) -> None:
    with StandIn(first_time(Reply(once=lambda: False))) as server:
        result = collect(settings(prompts_file(tmp_path, 3), tmp_path / "out.jsonl", server.url, timeout_s=2))
    # On a busy machine a proper answer may be late too.
    assert result.rows == 3
    assert result.retries >= 3
    assert min(server.asked.values()) >= 2


def test_retry_after_holds_all_requests_back(tmp_path: Path) -> None:
    def behave(body: dict[str, Any], n: int) -> Reply:
        return fails(429, headers={"retry-after": "1"}) if len(server.times) == 1 else answer(body)

    with StandIn(behave) as server:
        collect(settings(prompts_file(tmp_path, 6), tmp_path / "out.jsonl", server.url, concurrency=1))
    assert len(server.times) == 7
    assert server.times[1] - server.times[0] >= 1.0


def test_the_rate_is_kept(tmp_path: Path) -> None:
    with StandIn() as server:
        s = settings(prompts_file(tmp_path, 9), tmp_path / "out.jsonl", server.url, rate=20, concurrency=9)
        began = time.monotonic()
        collect(s)
        assert time.monotonic() - began >= 8 / 20


def test_what_fails_for_good_is_said_kept_and_asked_again(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 6), tmp_path / "out.jsonl"
    broken = {"question 2", "question 4"}

    def behave(body: dict[str, Any], n: int) -> Reply:
        return fails(500, "boom") if body["messages"][0]["content"] in broken else answer(body)

    with StandIn(behave) as server:
        s = settings(source, out, server.url, samples=2, retries=3)
        with pytest.raises(RunError, match=r"4 of 12 requests failed; the last: HTTP 500: boom; the same command"):
            collect(s)
        assert not out.exists()
        assert {n for (text, _), n in server.asked.items() if text in broken} == {4}
        assert journaled(out) == {"answered": 8, "failed": 4}
        before = server.asked.copy()
        broken.remove("question 4")
        with pytest.raises(RunError, match="2 of 12 requests failed"):
            collect(s)
        asked = server.asked - before
        assert {text for text, _ in asked} == {"question 2", "question 4"}
        result = collect(s.model_copy(update={"allow_missing": True}))
    assert (result.rows, result.rows_earlier, result.missing) == (10, 10, 2)
    assert {r["conversation"] for r in rows_of(out)} == {"c0", "c1", "c3", "c4", "c5"}
    assert not journal_of(out).exists()


def test_what_is_there_can_be_written_without_a_server(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 3), tmp_path / "out.jsonl"

    def behave(body: dict[str, Any], n: int) -> Reply:
        return fails(500) if body["messages"][0]["content"] == "question 1" else answer(body)

    with StandIn(behave) as server, pytest.raises(RunError):
        collect(settings(source, out, server.url, retries=0))
    with pytest.raises(RunError, match="1 of 3 answers are missing; give --url or --model"):
        collect(settings(source, out, None))
    assert collect(settings(source, out, None, allow_missing=True)).rows == 2


def test_a_refused_prompt_is_counted_and_not_asked_again(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 4), tmp_path / "out.jsonl"
    broken = True

    def behave(body: dict[str, Any], n: int) -> Reply:
        text = body["messages"][0]["content"]
        if text == "question 0":
            return fails(400, "the prompt is too long")
        return fails(500) if text == "question 3" and broken else answer(body)

    with StandIn(behave) as server:
        s = settings(source, out, server.url, samples=2, retries=0)
        with pytest.raises(RunError, match="2 of 8"):
            collect(s)
        broken = False
        result = collect(s)
    assert (result.rows, result.refused, result.requests_sent) == (6, 2, 2)
    assert {n for (text, _), n in server.asked.items() if text == "question 0"} == {1}


def test_refusing_everything_ends_the_run(tmp_path: Path) -> None:
    words = r"all refused; the last: HTTP 422: unknown field top_k"
    with StandIn(lambda body, n: fails(422, "unknown field top_k")) as server, pytest.raises(RunError, match=words):
        collect(settings(prompts_file(tmp_path, 300), tmp_path / "out.jsonl", server.url))
    assert len(server.bodies) < 200


def test_failing_always_ends_the_run(tmp_path: Path) -> None:
    words = r"25 requests in a row failed; the last: HTTP 500: sick"
    with StandIn(lambda body, n: fails(500, "sick")) as server, pytest.raises(RunError, match=words):
        collect(settings(prompts_file(tmp_path, 300), tmp_path / "out.jsonl", server.url, retries=1))
    assert len(server.bodies) < 200
    assert [p.name for p in tmp_path.iterdir()] == ["prompts.jsonl"]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (fails(401, "bad key"), "another API key"),
        (fails(403, "not yours"), "HTTP 403: not yours"),
        (fails(404, "no such model"), "no such model; check the URL"),
        (fails(402, "pay first"), "HTTP 402: pay first; what was answered is kept"),
        (Reply(307, headers={"location": "http://127.0.0.1:9/elsewhere"}), "the server redirects"),
        (Reply(429, b'{"error": {"code": "insufficient_quota", "message": "no money"}}'), "HTTP 429: no money"),
        (fails(429, "tomorrow", headers={"retry-after": "86400"}), "asks us to wait 86400 s"),
    ],
)
def test_what_concerns_every_request_ends_the_run_and_keeps_the_answers(
    tmp_path: Path, reply: Reply, words: str
) -> None:
    source, out = prompts_file(tmp_path, 40), tmp_path / "out.jsonl"
    with StandIn(lambda body, n: reply if len(server.bodies) > 10 else answer(body)) as server:
        with pytest.raises(RunError, match=words):
            collect(settings(source, out, server.url, concurrency=1))
        assert len(server.bodies) == 11
        assert journaled(out) == {"answered": 10}
        server.behave = lambda body, n: answer(body)
        assert collect(settings(source, out, server.url)).rows_earlier == 10


def test_a_key_is_used_and_never_written(tmp_path: Path) -> None:
    source, out, key = prompts_file(tmp_path, 3), tmp_path / "out.jsonl", "sk-very-secret"
    with StandIn(key=key) as server:
        with pytest.raises(ConfigError, match="refuses the API key") as refused:
            collect(settings(source, out, server.url))
        with pytest.raises(ConfigError, match="refuses the API key") as wrong:
            collect(settings(source, out, server.url, api_key="sk-other-secret"))
        s = settings(source, out, server.url, api_key=key, retries=0)
        server.behave = lambda body, n: fails(500, f"the key {key} is fine") if n == 0 else answer(body)
        with pytest.raises(RunError, match=r"the key \*\*\* is fine") as failed:
            collect(s)
        written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file())
        collect(s)
    said = f"{refused.value} {wrong.value} {failed.value} {s!r}"
    assert b"secret" not in written + out.read_bytes()
    assert "secret" not in said


def test_a_server_that_does_not_list_models_needs_the_name(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 1), tmp_path / "out.jsonl"
    with StandIn(models=fails(404, "nothing here")) as server:
        with pytest.raises(ConfigError, match=r"does not say which models.*nothing here.*--served-model"):
            collect(settings(source, out, server.url))
        assert collect(settings(source, out, server.url, served_model="mine")).model == "mine"
    assert server.bodies[0]["model"] == "mine"
    with StandIn(models=Reply(200, b"<html>")) as server, pytest.raises(ConfigError, match="no OpenAI-compatible"):
        collect(settings(source, tmp_path / "other.jsonl", server.url))


def test_a_reply_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecoserve.serving.collect.endpoint.LONGEST_REPLY", 2**20)
    words = "1 of 1 requests failed; the last: an answer of more than 1 MiB"
    with StandIn(lambda body, n: Reply(200, b" " * (2**20 + 1))) as server, pytest.raises(RunError, match=words):
        collect(settings(prompts_file(tmp_path, 1), tmp_path / "out.jsonl", server.url))
    assert len(server.bodies) == 1


def test_a_server_that_comes_back_is_waited_for(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 60), tmp_path / "out.jsonl"
    result: list[CollectResult] = []
    unreachable = threading.Event()

    def progress(state: CollectProgress) -> None:
        if state.note.startswith("the server is unreachable"):
            unreachable.set()

    with StandIn() as server:
        server.behave = lambda body, n: Reply(once=lambda: False) if len(server.bodies) > 20 else answer(body)
        s = settings(source, out, server.url, samples=2, concurrency=4, retries=1)
        run = threading.Thread(target=lambda: result.append(collect(s, progress)))
        run.start()
        while server.open < 4:
            time.sleep(0.01)
    # It is gone now, in the middle of four requests; their repetitions cannot reach it.
    assert unreachable.wait(300)
    with StandIn(port=server.port) as again:
        run.join(300)
    assert result[0].rows == 120
    assert result[0].retries == 4
    assert len(rows_of(out)) == 120
    assert sum(again.asked.values()) == 100


def test_a_server_that_stays_away_ends_the_run(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 40), tmp_path / "out.jsonl"
    caught: list[RunError] = []
    with StandIn() as server:
        server.behave = lambda body, n: Reply(once=lambda: False) if len(server.bodies) > 20 else answer(body)

        def run() -> None:
            try:
                collect(settings(source, out, server.url, concurrency=2, patience_s=0.5))
            except RunError as error:
                caught.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        while server.open < 2:
            time.sleep(0.01)
    thread.join(300)
    assert "no server has answered for" in str(caught[0])
    assert "the same command goes on" in str(caught[0])
    with StandIn(port=server.port) as again:
        assert collect(settings(source, out, again.url)).rows_earlier == 20


# -- the parts ------------------------------------------------------------------------------------------


def test_waits_grow_up_to_a_minute_and_half_of_each_is_random() -> None:
    for attempt, most in ((1, 1.0), (2, 2.0), (6, 32.0), (7, 60.0), (99, 60.0), (5000, 60.0)):
        state = RetryCallState(AsyncRetrying(), None, (), {})
        state.attempt_number = attempt
        waits = [backoff(1.0)(state) for _ in range(100)]
        assert most / 2 <= min(waits) < max(waits) <= most


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after(None, 0.0) is None
    assert retry_after("2.5", 0.0) == 2.5
    assert retry_after("-3", 0.0) == 0.0
    assert retry_after(email.utils.formatdate(1000.0), 940.0) == 60.0
    assert retry_after(email.utils.formatdate(1000.0), 2000.0) == 0.0
    for nonsense in ("soon", "nan", "inf", "", "Fri, 99 Foo 2020"):
        assert retry_after(nonsense, 0.0) is None


def test_an_error_message_is_one_short_line() -> None:
    assert error_message(b'{"error": {"message": "a\\n  b"}}') == "a b"
    assert error_message(b'{"detail": "not found"}') == "not found"
    assert error_message(b'{"error": "plain"}') == "plain"
    assert error_message(b"<html>\n500</html>") == "<html> 500</html>"
    assert error_message(b"\xff\xfe") == "\ufffd\ufffd"
    assert error_message(b"[" * 100_000)[:3] == "[[["
    assert len(error_message(b"x" * 10_000)) == 200


def test_a_trace_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 3), tmp_path / "out.jsonl"

    def behave(body: dict[str, Any], n: int) -> Reply:
        out.mkdir(exist_ok=True)
        return answer(body)

    with StandIn(behave) as server:
        with pytest.raises(RunError, match=r"out\.jsonl: cannot be written .* the journal is kept"):
            collect(settings(source, out, server.url))
        out.rmdir()
        assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
        result = collect(settings(source, out, server.url))
    assert (result.rows, result.requests_sent) == (3, 0)


def test_a_trace_without_answers_is_not_written(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 3), tmp_path / "out.jsonl"
    with StandIn(lambda body, n: fails(400)) as server, pytest.raises(RunError, match="no request was answered"):
        collect(settings(source, out, server.url))
    assert [p.name for p in tmp_path.iterdir()] == ["prompts.jsonl"]
