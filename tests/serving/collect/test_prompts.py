"""Which requests are sent, from whatever holds prompts; and which settings are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from stand_in import settings

from ecoserve.data import LoadReport, Message, Record, load_trace
from ecoserve.errors import TraceError
from ecoserve.serving.collect.endpoint import base_url
from ecoserve.serving.collect.prompts import choose, context_digest
from ecoserve.serving.collect.settings import body_limit, request_body, sample_seed


def chosen(source: Path | str, **options: Any) -> tuple[list[Record], LoadReport]:
    """The requests of a source, and what was counted."""
    report = LoadReport()
    values = {"format": "auto", "limit": None, "sample": None, "seed": 0} | options
    return [record for record, _ in choose(str(source), report=report, **values)], report


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_text_file_is_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffÜber Wasser?\r\n\r\nWhy?\nWhy?\n".encode() + b"\xff\n" + b"Last")
    records, report = chosen(path)
    assert [(r.conversation, r.prompt) for r in records] == [
        ("row-0", "Über Wasser?"),
        ("row-2", "Why?"),
        ("row-5", "Last"),
    ]
    assert (report.rows_in, report.kept) == (6, 3)
    assert report.dropped == {"empty line": 1, "the same prompt again": 1, "line is not UTF-8": 1}


def test_rows_that_ask_without_an_answer(tmp_path: Path) -> None:
    ask = [{"role": "user", "content": "Why?"}]
    long = [{"role": "system", "content": "Be brief."}, *ask, {"role": "assistant", "content": "So."}, *ask]
    path = lines(
        tmp_path / "prompts.jsonl",
        {"id": 7, "prompt": "What?", "max_tokens": 30},
        {"custom_id": "b1", "method": "POST", "body": {"model": "x", "messages": long, "max_completion_tokens": 9}},
        {"messages": ask},
        {"prompt": "Why?"},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"content": "who says so?"}]},
        {"prompt": "  "},
        {"prompt": "\ud800"},
        [1, 2],
    )
    records, report = chosen(path)
    assert records == [
        Record(conversation="7", prompt="What?", max_tokens=30),
        Record(
            conversation="b1",
            prompt="Why?",
            messages=tuple(Message(m["role"], m["content"]) for m in long),
            max_tokens=9,
        ),
        Record(conversation="row-2", prompt="Why?"),
    ]
    assert report.rows_in == 9
    assert report.dropped == {
        "the same prompt again": 1,
        "message is not text": 1,
        "messages are not role and content": 1,
        "empty prompt": 1,
        "prompt is not valid Unicode": 1,
        "row asks nothing": 1,
    }


def test_traces_with_answers_of_others_give_their_questions(tmp_path: Path) -> None:
    alpaca = {"instruction": "Add", "input": "1, 2", "output": "3", "split": "dev", "response_tokens": 4}
    turns = [("human", "Hello"), ("gpt", "Hi"), ("human", "Bye"), ("gpt", "Bye!")]
    sharegpt = {"id": "s", "conversations": [{"from": who, "value": text} for who, text in turns]}
    ours = {"conversation": "c", "turn": 2, "prompt": "Again?", "response_tokens": 5, "sample_tokens": [1, 2]}
    ours |= {"arrival_s": 1.5, "model": "other", "censored": True, "sample": 3, "max_tokens": 12}
    lengths_only = {"conversation": "d", "turn": 0, "response_tokens": 5}
    for name, row, expected in (
        ("a", alpaca, [Record(conversation="row-0", prompt="Add\n1, 2", split="dev")]),
        ("r", ours, [Record(conversation="c", turn=2, prompt="Again?", max_tokens=12)]),
    ):
        assert chosen(lines(tmp_path / f"{name}.jsonl", row))[0] == expected
    first, second = chosen(lines(tmp_path / "s.jsonl", sharegpt))[0]
    assert (first.turn, first.prompt, second.turn, len(second.messages)) == (0, "Hello", 1, 3)
    with pytest.raises(TraceError, match=r"there is no prompt in it: 1 rows in.*1 no prompt text"):
        chosen(lines(tmp_path / "l.jsonl", lengths_only))


def test_a_workload_that_is_made_up_can_be_asked() -> None:
    records, _ = chosen("synthetic:30")
    assert 1 < len(records) <= 30
    assert all(r.prompt and r.response_tokens is None for r in records)
    with pytest.raises(TraceError, match="not a number of rows"):
        chosen("synthetic:x")


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(TraceError, match=r"no prompt in it: 2 rows in.*2 empty line"):
        chosen(tmp_path / "empty.txt")
    with pytest.raises(TraceError, match="cannot be read"):
        chosen(tmp_path / "none.txt")
    with pytest.raises(TraceError, match="no such file"):
        chosen(tmp_path / "none.jsonl")
    with pytest.raises(TraceError, match="unknown trace format"):
        chosen(lines(tmp_path / "odd.jsonl", {"other": 1}))


def test_limit_takes_the_first_and_sample_draws_by_the_seed(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}"} for i in range(200)]
    path = lines(tmp_path / "p.jsonl", *rows, *rows)
    back = lines(tmp_path / "back.jsonl", *reversed(rows))
    assert [r.prompt for r in chosen(path, limit=3)[0]] == ["question 0", "question 1", "question 2"]
    drawn = [r.prompt for r in chosen(path, sample=20)[0]]
    assert len(drawn) == len(set(drawn)) == 20
    assert drawn == sorted(drawn, key=lambda p: int((p or "").split()[1]))
    assert drawn == [r.prompt for r in chosen(back, sample=20)[0]][::-1]
    assert set(drawn) != {r.prompt for r in chosen(path, sample=20, seed=1)[0]}
    assert [r.prompt for r in chosen(path, limit=10, sample=20)[0]] == [f"question {i}" for i in range(10)]
    assert len({r.prompt for s in range(40) for r in chosen(path, sample=20, seed=s)[0]}) > 190


def test_what_is_collected_can_be_asked_again(tmp_path: Path) -> None:
    """A collected trace has several rows to a prompt: each prompt is asked once."""
    rows = [
        {"conversation": f"c{p}", "turn": 0, "prompt": f"q{p}", "sample": s, "response_tokens": 3}
        for p in range(3)
        for s in range(4)
    ]
    path = lines(tmp_path / "t.jsonl", *rows)
    assert len(load_trace(path)) == 12
    assert [r.prompt for r in chosen(path)[0]] == ["q0", "q1", "q2"]


def test_a_context_is_its_messages_and_nothing_else() -> None:
    plain = Record(conversation="a", prompt="Why?")
    same = Record(conversation="b", turn=3, prompt="Why?", messages=(Message("user", "Why?"),), split="dev")
    other = Record(conversation="a", prompt="Why?", messages=(Message("system", "x"), Message("user", "Why?")))
    assert context_digest(plain) == context_digest(same) != context_digest(other)


def test_seeds_fit_every_server_and_differ() -> None:
    seeds = {
        sample_seed(s, context_digest(Record(conversation="", prompt=f"{p}")), k)
        for s in (0, 1)
        for p in range(50)
        for k in range(20)
    }
    assert len(seeds) == 2000
    assert all(0 <= s < 2**31 for s in seeds)


def test_a_row_keeps_its_own_limit_unless_one_is_given(tmp_path: Path) -> None:
    record = Record(conversation="a", prompt="Why?", max_tokens=30)
    own = settings("p", tmp_path / "o.jsonl", "http://x")
    given = settings("p", tmp_path / "o.jsonl", "http://x", max_tokens=5)
    free = Record(conversation="a", prompt="Why?")
    bodies = [request_body(s, "m", r, 0) for s in (own, given) for r in (record, free)]
    assert [b.get("max_tokens") for b in bodies] == [30, None, 5, 5]
    assert [body_limit(b) for b in bodies] == [30, None, 5, 5]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"output": Path("out.csv")}, "a trace is written as .jsonl or .jsonl.gz"),
        ({"url": "localhost:8000"}, "starts with http"),
        ({"url": "ftp://x"}, "starts with http"),
        ({"url": "http://"}, "names a host"),
        ({"url": "http://a:99999999"}, "is no URL"),
        ({"url": "http://me:secret@host/v1"}, "holds a user or password"),
        ({"url": "http://host/v1?key=secret"}, "ends with its path"),
        ({"model": "m"}, "url or model, not both"),
        ({"server_flags": ("--x",)}, "need model"),
        ({"api_key": "a\nb"}, "printable ASCII"),
        ({"api_key": "schlüssel"}, "printable ASCII"),
        ({"body": {"n": 3}}, "n cannot be set"),
        ({"body": {"stream": True}}, "stream cannot be set"),
        ({"body": {"temperature": 1}}, "has an option of its own"),
        ({"body": {"seed": 1}}, "removed, with null"),
        ({"body": {"x": float("nan")}}, "JSON"),
        ({"samples": 0}, "greater than or equal to 1"),
        ({"rate": 0}, "greater than 0"),
        ({"rate": float("inf")}, "finite"),
        ({"temperature": float("nan")}, "greater than or equal to 0|finite"),
        ({"what": 1}, "Extra inputs"),
    ],
)
def test_settings_that_are_none_are_refused_without_saying_secrets(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words) as refused:
        settings("p", changes.pop("output", Path("out.jsonl")), changes.pop("url", "http://x"), **changes)
    assert all("secret" not in e["msg"] for e in refused.value.errors(include_input=False))


def test_a_base_url_is_an_openai_clients() -> None:
    assert (
        base_url("http://h:8000") == base_url("http://h:8000/") == base_url("http://h:8000/v1/") == "http://h:8000/v1"
    )
    assert base_url("https://h/openai/v1beta") == "https://h/openai/v1beta"
