"""Collecting from a server that behaves: every sample once, with the server's own count."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from stand_in import MODEL, Reply, StandIn, answer, prompts_file, rows_of, settings, true_length

from ecoserve.data import load_trace, save_trace
from ecoserve.errors import ConfigError, RunError, TraceError
from ecoserve.serving.collect import CollectProgress, collect
from ecoserve.serving.collect.journal import journal_of


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz"])
def test_every_sample_of_every_prompt_is_one_row_with_its_true_length(tmp_path: Path, name: str) -> None:
    source, out = prompts_file(tmp_path, 20), tmp_path / name
    seen: list[tuple[int, int, int]] = []

    def progress(state: CollectProgress) -> None:
        seen.append((state.settled, state.total, state.tokens))

    with StandIn() as server:
        # Nothing is answered before two requests are open at once.
        server.behave = lambda body, n: answer(body, once=lambda: server.most_open > 1)
        result = collect(settings(source, out, server.url, samples=3, max_tokens=64, concurrency=5), progress)
    assert (result.rows, result.prompts, result.model) == (60, 20, MODEL)
    assert (result.refused, result.missing, result.retries, result.requests_sent) == (0, 0, 0, 60)
    assert set(server.asked.values()) == {1}
    assert len(server.asked) == 60
    assert 1 < server.most_open <= 5
    rows = rows_of(out)
    assert [(r["conversation"], r.get("sample", 0)) for r in rows] == [
        (f"c{i}", s) for i in range(20) for s in range(3)
    ]
    asked = {(b["messages"][-1]["content"], b["seed"]): b for b in server.bodies}
    by_prompt: dict[str, list[int]] = {}
    for (text, seed), body in asked.items():
        assert body["max_tokens"] == 64
        assert "temperature" not in body
        assert "n" not in body
        by_prompt.setdefault(text, []).append(true_length(text, seed)[0])
    for row in rows:
        assert (row["model"], row["max_tokens"]) == (MODEL, 64)
        assert row.get("censored", False) is (row["finish_reason"] == "length")
        assert row["response"] == f"answer {row['response_tokens']} to {row['prompt']}"
        # Its own length and its siblings' are what the server said about this prompt's three samples.
        assert Counter([row["response_tokens"], *row["sample_tokens"]]) == Counter(by_prompt[row["prompt"]])
    assert result.tokens == sum(r["response_tokens"] for r in rows)
    assert result.finish_reasons == Counter(r["finish_reason"] for r in rows)
    assert result.censored == result.finish_reasons["length"] > 0
    assert seen[-1] == (60, 60, result.tokens)
    assert not journal_of(out).exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source.name, name])


def test_the_file_is_what_save_trace_writes_and_reads_back(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 5), tmp_path / "out.jsonl"
    with StandIn() as server:
        collect(settings(source, out, server.url, samples=2))
    trace = load_trace(out)
    assert (len(trace), trace.format, trace.length_source) == (10, "records", f"server:{MODEL}")
    assert trace.report.dropped == {}
    again = save_trace(trace, tmp_path / "again.jsonl")
    first, *rows = out.read_bytes().splitlines()
    first_again, *rows_again = again.read_bytes().splitlines()
    assert rows == rows_again
    assert json.loads(first)["sha256"] == json.loads(first_again)["sha256"] == trace.sha256
    assert "temperature of the server" in json.loads(first)["source"]


def test_an_answer_without_text_is_still_an_answer(tmp_path: Path) -> None:
    def behave(body: dict[str, object], n: int) -> object:
        from stand_in import Reply

        text = [None, "", "  ", "\ud800", "fine"][int(str(body["messages"][-1]["content"]).split()[1])]  # type: ignore[index]
        choice = {"message": {"content": text}, "finish_reason": "stop"}
        return Reply(200, json.dumps({"choices": [choice], "usage": {"completion_tokens": 0}}).encode())

    out = tmp_path / "out.jsonl"
    with StandIn(behave) as server:  # type: ignore[arg-type]
        collect(settings(prompts_file(tmp_path, 5), out, server.url))
    trace = load_trace(out)
    assert [r.response for r in trace.records] == [None, None, None, None, "fine"]
    # Zero is the count of a server that does not count EOS.
    assert [r.response_tokens for r in trace.records] == [1] * 5


THOUGHT = "hm" * 9
TEXT = f"<think>\n{THOUGHT}\n</think>\n\nyes"


@pytest.mark.parametrize("keep_text", [True, False])
@pytest.mark.parametrize(
    ("message", "reason", "counted", "thinking", "text"),
    [
        ({"reasoning": THOUGHT, "content": "yes"}, "stop", 30, 30, TEXT),
        # 18 of 21 characters of 42 tokens.
        ({"reasoning_content": THOUGHT, "content": "yes"}, "stop", None, 36, TEXT),
        ({"content": TEXT}, "stop", None, 36, TEXT),
        ({"content": [{"type": "thinking", "thinking": THOUGHT}, {"type": "text", "text": "yes"}]}, "stop", None, 36,
         TEXT),
        ({"reasoning": THOUGHT, "content": None}, "length", None, 42, f"<think>\n{THOUGHT}\n"),
        ({"content": None}, "length", 42, 42, None),
        ({"content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}, "tool_calls", None, None,
         None),
        ({"content": [{"type": "text", "text": "yes"}]}, "stop", None, None, "yes"),
    ],
)  # fmt: skip
def test_thinking_is_kept_apart_and_an_answer_that_still_thinks_is_cut_off(
    tmp_path: Path, message: dict[str, Any], reason: str, counted: int | None, thinking: int | None, text: str | None,
    keep_text: bool,
) -> None:  # fmt: skip
    usage: dict[str, Any] = {"prompt_tokens": 3, "completion_tokens": 42}
    if counted is not None:
        usage["completion_tokens_details"] = {"reasoning_tokens": counted}
    body = {"choices": [{"message": {"role": "assistant", **message}, "finish_reason": reason}], "usage": usage}
    out = tmp_path / "out.jsonl"
    with StandIn(lambda asked, n: Reply(body=json.dumps(body).encode())) as server:
        collect(settings(prompts_file(tmp_path, 1), out, server.url, keep_text=keep_text))
    (record,) = load_trace(out).records
    assert (record.response_tokens, record.thinking_tokens) == (42, thinking)
    assert (record.censored, record.response) == (reason == "length", text if keep_text else None)


def test_texts_can_be_left_out(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with StandIn() as server:
        collect(settings(prompts_file(tmp_path, 3), out, server.url, keep_text=False))
    assert all("response" not in row and row["response_tokens"] >= 1 for row in rows_of(out))


def test_the_same_seed_asks_the_same_and_another_seed_another(tmp_path: Path) -> None:
    source = prompts_file(tmp_path, 4)
    asked = []
    for number, seed in enumerate((0, 0, 1)):
        with StandIn() as server:
            collect(settings(source, tmp_path / f"{number}.jsonl", server.url, samples=2, seed=seed))
        asked.append(set(server.asked))
    assert asked[0] == asked[1]
    assert not asked[0] & asked[2]


def test_sampling_and_extra_fields_reach_the_server(tmp_path: Path) -> None:
    body = {"seed": None, "max_tokens": None, "max_completion_tokens": 50, "chat_template_kwargs": {"thinking": False}}
    out = tmp_path / "out.jsonl"
    with StandIn() as server:
        collect(
            settings(
                prompts_file(tmp_path, 1), out, f"{server.url}/v1", temperature=0.5, top_p=0.9, max_tokens=10, body=body
            )
        )
    (sent,) = server.bodies
    assert sent == {
        "model": MODEL,
        "messages": [{"role": "user", "content": "question 0"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_completion_tokens": 50,
        "chat_template_kwargs": {"thinking": False},
    }
    assert rows_of(out)[0]["max_tokens"] == 50
    assert server.paths == ["/v1/models", "/v1/chat/completions"]


def test_completions_send_bare_text(tmp_path: Path) -> None:
    source = tmp_path / "chats.jsonl"
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]
    source.write_text(json.dumps({"messages": chat, "max_tokens": 7}) + "\n")
    with StandIn() as server:
        collect(settings(source, tmp_path / "out.jsonl", server.url, api="completions"))
    assert server.bodies[0]["prompt"] == "Be brief.\nWhy?"
    assert server.bodies[0]["max_tokens"] == 7
    assert server.paths[-1] == "/v1/completions"


def test_a_url_with_a_path_is_taken_as_it_is(tmp_path: Path) -> None:
    with StandIn() as server:
        collect(settings(prompts_file(tmp_path, 1), tmp_path / "out.jsonl", f"{server.url}/gateway/v3/"))
    assert server.paths == ["/gateway/v3/models", "/gateway/v3/chat/completions"]


def test_what_stands_in_the_way_is_said_and_left_alone(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 1), tmp_path / "out.jsonl"
    out.write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        collect(settings(source, out, "http://127.0.0.1:9"))
    assert out.read_text() == "mine"
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        collect(settings(source, tmp_path / "folder.jsonl", "http://127.0.0.1:9"))
    with pytest.raises(ConfigError, match="needs a server"):
        collect(settings(source, tmp_path / "new.jsonl", None))
    with pytest.raises(ConfigError, match="no server answers"):
        collect(settings(source, tmp_path / "new.jsonl", "http://127.0.0.1:9"))
    with pytest.raises(TraceError, match="no such file"):
        collect(settings(tmp_path / "none.jsonl", tmp_path / "new.jsonl", "http://127.0.0.1:9"))
    with pytest.raises(RunError, match="cannot be written"):
        collect(settings(source, source / "new.jsonl", "http://127.0.0.1:9"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder.jsonl", "out.jsonl", "prompts.jsonl"]
