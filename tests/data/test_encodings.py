"""Text that is not UTF-8 is read right where that can be known, mended and counted where it cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.data import load_trace
from ecoserve.data.reading import marked_encoding
from ecoserve.data.text_rows import READ_AS_WINDOWS, REPLACED, is_clean, mend

TEXTS = {
    "cp1251": "Привет, как дела? Расскажи мне историю про кота.",
    "koi8_r": "Привет, как дела? Расскажи мне историю про кота.",
    "gb18030": "你好，请告诉我一个关于猫的故事，谢谢你。",
    "shift_jis": "こんにちは、猫についての物語を教えてください。表示",
    "big5": "你好，請告訴我一個關於貓的故事，謝謝你。",
    "euc_kr": "안녕하세요, 고양이에 대한 이야기를 들려주세요.",
    "cp1253": "Γειά σου, πες μου μια ιστορία για μια γάτα.",
    "utf-16": "naïve 你好",
    "utf-16-le": "naïve 你好",
    "utf-16-be": "naïve 你好",
    "utf-32": "naïve 你好",
}


def as_text(kind: str, texts: list[str]) -> str:
    if kind == "csv":
        return "prompt,response_tokens\n" + "".join(f'"{t}",{i + 1}\n' for i, t in enumerate(texts))
    rows = [{"instruction": t, "output": f"{i}"} for i, t in enumerate(texts)]
    if kind == "list":
        return json.dumps(rows, ensure_ascii=False, indent=1)
    return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)


@pytest.mark.parametrize("kind", ["list", "lines", "csv"])
@pytest.mark.parametrize("encoding", TEXTS)
def test_a_file_in_another_encoding_is_read_in_it(tmp_path: Path, encoding: str, kind: str) -> None:
    texts = [f"{TEXTS[encoding]} {i}" for i in range(30)]
    path = tmp_path / "t"
    path.write_bytes(as_text(kind, texts).encode(encoding))
    trace = load_trace(path)
    assert [r.prompt for r in trace.records] == texts
    (note, count), *others = [(n, c) for n, c in trace.report.noted.items() if "column" not in n]
    assert note.removeprefix("read as ").replace("_", "-").startswith(encoding.replace("_", "-"))
    assert (count, others) == (30, [])
    assert not trace.report.dropped


@pytest.mark.parametrize("kind", ["list", "lines", "csv"])
def test_the_mark_of_utf8_is_no_peculiarity(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(as_text(kind, ["naïve", "你好"]).encode("utf-8-sig"))
    trace = load_trace(path)
    assert [r.prompt for r in trace.records] == ["naïve", "你好"]
    assert trace.report.noted == {}


@pytest.mark.parametrize("kind", ["list", "lines", "csv"])
def test_single_rows_are_mended_each_by_its_own_text(tmp_path: Path, kind: str) -> None:
    """Files put together from several sources have rows of several encodings."""
    texts = ["plain", "naïve 你好", "caf@ – “no”", "你好 @ 你", "plain again"]
    data = as_text(kind, texts).encode()
    # One byte that is not UTF-8 in each of two rows; the other letters beyond ASCII of the first in Windows' way too.
    data = data.replace("caf@ – “no”".encode(), b"caf\xe9 \x96 \x93no\x94").replace(b" @ ", b" \xe4\xbd ")
    path = tmp_path / "t"
    path.write_bytes(data)
    trace = load_trace(path)
    assert [r.prompt for r in trace.records] == [
        "plain",
        "naïve 你好",
        "café – “no”",
        "你好 \ufffd\ufffd 你",
        "plain again",
    ]
    assert trace.report.noted == {READ_AS_WINDOWS: 1, REPLACED: 1}


def test_a_mended_row_that_is_dropped_is_counted_once(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b'{"instruction": "caf\xe9", "output": ""}\n{"instruction": "b", "output": "c"}\n')
    report = load_trace(path).report
    assert (report.dropped, report.noted) == ({"empty answer": 1}, {})


def test_an_escaped_surrogate_is_still_no_text(tmp_path: Path) -> None:
    """What JSON spells out as half a character was wrong before anybody encoded it."""
    path = tmp_path / "t"
    path.write_bytes(b'{"instruction": "caf\xe9", "output": "\\udce9"}\n{"instruction": "b", "output": "c"}\n')
    assert load_trace(path).report.dropped == {"answer is not valid Unicode": 1}


def test_bytes_that_no_encoding_has_are_replaced(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b'{"instruction": "a \x81 b", "output": "c"}\n')
    (record,) = load_trace(path).records
    assert record.prompt == "a \ufffd b"


def test_half_a_character_of_utf16_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes('{"instruction": "a", "output": "xx"}\n'.encode("utf-16").replace(b"x\0", b"\0\xd8", 1))
    (record,) = load_trace(path).records
    assert record.response == "\ufffdx"


@given(st.binary(max_size=40))
def test_whatever_the_bytes_text_comes_out(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    mended, note = mend(text)
    mended.encode()
    assert len(mended) == len(text)
    assert is_clean(text) == (note is None) == (mended == text)


@given(st.text(alphabet=st.characters(codec="cp1252", min_codepoint=0xA0), min_size=1))
def test_western_text_is_mended_to_what_it_was(text: str) -> None:
    data = b"x".join(c.encode("cp1252") for c in text)
    assert mend(data.decode("utf-8", "surrogateescape")) == ("x".join(text), READ_AS_WINDOWS)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (b'{"a"', None),
        (b"", None),
        (b"[]", None),
        (b"\0\0\0\0", None),
        ("\ufeff[".encode("utf-16-le"), ("utf-16-le", 2)),
        ("\ufeff[".encode("utf-32-le"), ("utf-32-le", 4)),
        ('["'.encode("utf-16-be"), ("utf-16-be", 0)),
    ],
)
def test_what_the_first_bytes_state(head: bytes, expected: Any) -> None:
    assert marked_encoding(head) == expected
