"""Dirt as real files have it, kind by kind: what becomes of it, and the line in the report that counts it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ecoserve.data import load_trace, save_trace, stream_trace
from ecoserve.data.profiling import read_table

Row = dict[str, Any]


def talk(name: str, *turns: tuple[str, Any]) -> Row:
    return {"id": name, "conversations": [{"from": who, "value": what} for who, what in turns]}


GOOD = talk("good", ("human", "Say it."), ("gpt", "It."))

CHAT = {"messages": [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "It."}]}
GOODS = {"sharegpt": GOOD, "chat": CHAT}

#: What it is called -> the row (beside a good one), how many records it gives, what is dropped, what is noted.
CHATS: dict[str, tuple[Row, int, dict[str, int], dict[str, int]]] = {
    "starts with the assistant": (
        talk("a", ("gpt", "... as I said."), ("human", "Go on."), ("gpt", "Well.")),
        1,
        {},
        {"conversation starts with an answer": 1},
    ),
    "is nothing but the assistant": (talk("a", ("gpt", "Well.")), 0, {"no question with an answer": 1}, {}),
    "an empty answer": (talk("a", ("human", "Why?"), ("gpt", "")), 0, {"empty answer": 1}, {}),
    "an answer of spaces": (talk("a", ("human", "Why?"), ("gpt", " \n")), 0, {"empty answer": 1}, {}),
    "no answer at all": (talk("a", ("human", "Why?"), ("gpt", None)), 0, {"no answer": 1}, {}),
    "an empty question": (talk("a", ("human", ""), ("gpt", "Well.")), 0, {"empty prompt": 1}, {}),
    "an unanswered question": (talk("a", ("human", "Why?")), 0, {"no question with an answer": 1}, {}),
    "an answer cut off, by its text": (
        talk("a", ("human", "Why?"), ("gpt", "Because of [truncated]")),
        1,
        {},
        {"answers cut off": 1},
    ),
    "an answer cut off, by the server's word": (
        {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Be"}]}
        | {"finish_reason": "length"},
        1,
        {},
        {"answers cut off": 1},
    ),
    "the same again": ({**GOOD, "id": "another"}, 0, {"duplicate": 1}, {}),
    "no conversation": (talk("a"), 0, {"no conversation": 1}, {}),
    "half a character": (talk("a", ("human", "Why?"), ("gpt", "\ud83d")), 0, {"answer is not valid Unicode": 1}, {}),
}


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_that_is_unusual_is_counted(tmp_path: Path, name: str) -> None:
    row, kept, dropped, noted = CHATS[name]
    form = "chat" if "messages" in row else "sharegpt"
    path = tmp_path / "t.jsonl"
    path.write_text(f"{json.dumps(GOODS[form])}\n{json.dumps(row)}\n")
    trace = load_trace(path)
    assert trace.format == form
    assert (trace.report.rows_in, trace.report.kept) == (2, 1 + kept)
    assert (trace.report.dropped, trace.report.noted) == (dropped, noted)
    # What is kept of an answer that was cut off is a lower bound of its length, and marked as such.
    assert sum(r.censored for r in trace.records) == noted.get("answers cut off", 0)


MIXED = [
    *("What is the capital of France, and how many people live there?",) * 3,
    "Was ist die Hauptstadt von Frankreich, und wie viele Menschen leben dort?",
    "Quelle est la capitale de la France, et combien de personnes y habitent ?",
    "法国的首都是哪里？那里住着多少人？",
    "Какой город является столицей Франции и сколько людей там живёт?",
    "フランスの首都はどこですか。何人住んでいますか。",
    "ok",
]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_mixed_languages_come_through_and_are_counted(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "t.jsonl"
    rows = [{"instruction": text, "output": f"{i} {text[::-1]}"} for i, text in enumerate(MIXED)]
    path.write_bytes("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode(encoding))
    trace = load_trace(path)
    assert [r.prompt for r in trace.records] == MIXED
    assert [r.response for r in trace.records] == [r["output"] for r in rows]
    assert trace.report.dropped == {}
    assert sum(trace.report.noted.values()) == (0 if encoding.startswith("utf-8") else len(MIXED))
    assert load_trace(save_trace(trace, tmp_path / "saved.jsonl")).records == trace.records
    for table in (read_table(trace), read_table(stream_trace(path))):
        names = Counter(table.languages.names[code] for code in table.languages.codes.tolist())
        assert names == {"en": 3, "de": 1, "fr": 1, "zh": 1, "ru": 1, "ja": 1, "unclear": 1}


def test_western_text_in_latin_1_is_read_and_counted(tmp_path: Path) -> None:
    texts = ["Où est-il ?", "Wie heißt du?", "plain", "¿Qué pasó?"]
    path = tmp_path / "t.csv"
    lines = "".join(f'"{text}",{i + 1}\n' for i, text in enumerate(texts))
    path.write_bytes(f"prompt,response_tokens\n{lines}".encode("latin-1"))
    trace = load_trace(path)
    assert [r.prompt for r in trace.records] == texts
    assert trace.report.noted == {"not UTF-8, read as Windows-1252": 3}


def test_a_file_with_all_of_it_adds_up(tmp_path: Path) -> None:
    rows = [GOOD, *(row for row, *_ in CHATS.values() if "messages" not in row)]
    lines = [json.dumps(row).encode() for row in rows]
    lines += [json.dumps(talk("x", ("human", "Wo?"), ("gpt", "Zürich")), ensure_ascii=False).encode("latin-1"), b"5"]
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\n".join(lines))
    report = load_trace(path).report
    expected: Counter[str] = Counter({"row is not an object": 1})
    for row, _, dropped, _ in CHATS.values():
        expected.update(dropped if "messages" not in row else {})
    assert report.dropped == dict(expected)
    assert report.noted == {
        "conversation starts with an answer": 1,
        "answers cut off": 1,
        "not UTF-8, read as Windows-1252": 1,
    }
    assert report.rows_in == len(lines) == report.exchanges
