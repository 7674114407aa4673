"""Files of every kind are read row by row; broken ones end in one clear line."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ecoserve.data import load_trace, text_rows
from ecoserve.data.reading import FileRows
from ecoserve.errors import TraceError

ROWS = [{"instruction": f"n°{i} \u4f60", "output": "x" * i} for i in range(1, 60)]


@pytest.mark.parametrize(
    "name", ["t.json", "t.jsonl", "t.json.gz", "t.jsonl.gz", "t.parquet", "wrong.txt", "odd [1]*?.json", "noname"]
)
def test_what_a_file_is_does_not_depend_on_its_name(write: Any, name: str) -> None:
    assert list(FileRows(write(ROWS, name))) == ROWS


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), VALUES, max_size=4) | st.integers(), max_size=6),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 1]),
    kind=st.sampled_from(["list", "lines"]),
    packed=st.booleans(),
)
def test_rows_come_back_whatever_the_buffer_cuts(
    tmp_path: Path, rows: list[Any], chunk: int, indent: int | None, kind: str, packed: bool
) -> None:
    ascii_only = chunk % 2 == 0
    if kind == "lines":
        # What does not start like an object is not taken for JSON lines.
        rows = [{}, *rows]
    if kind == "list":
        text = json.dumps(rows, indent=indent, ensure_ascii=ascii_only)
    else:
        text = "\n\n".join(json.dumps(r, indent=indent, ensure_ascii=ascii_only) for r in rows)
    data = text.encode("utf-8", errors="surrogatepass")
    path = tmp_path / "rows"
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_rows, "_CHUNK", chunk)
        assert list(FileRows(path)) == rows


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cut=st.integers(1, 400), chunk=st.integers(1, 500), kind=st.sampled_from(["list", "lines"]))
def test_a_cut_off_file_is_never_taken_for_a_whole_one(tmp_path: Path, cut: int, chunk: int, kind: str) -> None:
    rows = [{"instruction": f"number {i}", "output": "some text"} for i in range(10)]
    text = json.dumps(rows) if kind == "list" else "\n".join(map(json.dumps, rows))
    path = tmp_path / "rows"
    path.write_text(text[:-cut])
    got: list[Any] = []
    problem = ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_rows, "_CHUNK", chunk)
        try:
            got.extend(FileRows(path))
        except TraceError as e:
            problem = str(e)
    # Lines can be cut between two rows, which cannot be seen.
    between = kind == "lines" and (text[:-cut].rstrip().endswith("}") or not text[:-cut].strip())
    assert ("JSON is cut off after" in problem) != between
    assert got == rows[: len(got)]


def error_of(path: Path) -> str:
    with pytest.raises(TraceError) as caught:
        load_trace(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert caught.value.exit_code == 2
    return line


@pytest.mark.parametrize("place", [0, 30, 58])
def test_a_row_that_is_not_json_is_named(write: Any, place: int) -> None:
    lines = [json.dumps(r) for r in ROWS]
    lines[place] = lines[place].replace(":", "=", 1)
    path = write([], "t.jsonl")
    path.write_text("\n".join(lines))
    assert f"row {place + 1} is not JSON" in error_of(path)
    path.write_text("[" + ",".join(lines) + "]")
    assert f"row {place + 1} is not JSON" in error_of(path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[{"a": 1} {"a": 2}]' + " " * 40, "row 2 is not JSON (',' or ']' expected"),
        ('[{"a": 1}, ]' + " " * 40, "row 2 is not JSON"),
        ('[{"a": 1}] and more', "text after the end of the list"),
        ("[" + '{"a":' * 100_000, "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "a number is too long"),
    ],
)
def test_other_ways_of_not_being_json(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    assert what in error_of(path)


def test_an_error_is_found_without_reading_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1}\n{"a" 2}\n' + '{"a": 1}\n' * 1_000_000)
    with path.open("rb") as f, io.TextIOWrapper(f) as text:
        rows = text_rows.json_rows(text, "t")
        assert next(rows) == {"a": 1}
        with pytest.raises(TraceError, match="row 2"):
            next(rows)
        assert os.lseek(f.fileno(), 0, os.SEEK_CUR) < 3_000_000


@pytest.mark.parametrize("name", ["t.json", "t.jsonl.gz"])
def test_a_trace_without_rows_is_refused(write: Any, name: str) -> None:
    assert "empty" in error_of(write([], name))


@pytest.mark.parametrize("content", [b"", b"   \n\n ", b"[]", b"[ \n ]\n", gzip.compress(b"", mtime=0)])
def test_nothing_at_all_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(content)
    assert "the trace is empty" in error_of(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "no such file" in error_of(tmp_path / "none.json")
    assert "is a folder" in error_of(tmp_path)


def test_a_file_that_may_not_be_read_is_refused(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(ROWS)
    real = Path.open

    def denied(self: Path, *args: Any, **kwargs: Any) -> Any:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", denied)
    assert "cannot be read (Permission denied)" in error_of(path)


@pytest.mark.parametrize("keep", [12, 60, -9])
def test_a_cut_off_archive_is_refused(write: Any, keep: int) -> None:
    path = write(ROWS, "t.json.gz")
    path.write_bytes(path.read_bytes()[:keep])
    assert "compressed file is cut off" in error_of(path)


@pytest.mark.parametrize("place", [3, 40, -6])
def test_a_damaged_archive_is_refused(write: Any, place: int) -> None:
    path = write(ROWS, "t.json.gz")
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(bytes(data))
    line = error_of(path)
    assert "damaged" in line or "cut off" in line or "not JSON" in line


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join(json.dumps(r).encode() for r in ROWS))
    assert list(FileRows(path)) == ROWS


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"This is prose, not a table.\nThe lines have, as it happens, commas.\n", "neither JSON nor CSV nor Parquet"),
        (b"\x00\x01\x02\x03", "neither JSON nor CSV nor Parquet"),
        (b"PAR1 and nothing of it", "not a readable Parquet file"),
    ],
)
def test_other_kinds_of_files_are_refused(tmp_path: Path, data: bytes, what: str) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(data)
    assert what in error_of(path)


def test_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("t.json", "[]")
    assert "compressed with zip" in error_of(path)


def test_a_cut_off_parquet_file_is_refused(write: Any) -> None:
    path = write(ROWS, "t.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    assert "not a readable Parquet file" in error_of(path)


def test_a_parquet_file_without_rows_is_empty(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"instruction": pa.array([], pa.string()), "output": pa.array([], pa.string())}), path)
    assert "the trace is empty" in error_of(path)


def test_reading_leaves_nothing_behind(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, scratch = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    scratch.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TMPDIR", str(scratch))
    for name in ("t.json", "t.jsonl.gz", "t.parquet"):
        assert len(load_trace(write(ROWS, name))) == len(ROWS)
    assert list(home.iterdir()) == list(scratch.iterdir()) == []
