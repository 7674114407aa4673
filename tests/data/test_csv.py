"""Tables are read as they are written, whatever separates their cells."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoserve.data import text_rows
from ecoserve.data.reading import FileRows
from ecoserve.data.text_rows import RAGGED, BadRow, csv_rows, sniff
from ecoserve.errors import TraceError


def read(tmp_path: Path, text: str | bytes, name: str = "t.csv") -> list[object]:
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return list(FileRows(path))


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_cells_are_separated_by_what_fits(tmp_path: Path, delimiter: str, end: str) -> None:
    lines = [["prompt", "response_tokens"], ["one", "1"], ["", "2"], ["three", "3"]]
    text = end.join(delimiter.join(line) for line in lines) + end
    rows = [
        {"prompt": "one", "response_tokens": "1"},
        {"prompt": None, "response_tokens": "2"},
        {"prompt": "three", "response_tokens": "3"},
    ]
    assert read(tmp_path, text) == rows
    assert read(tmp_path, gzip.compress(text.encode())) == rows
    assert read(tmp_path, b"\xef\xbb\xbf" + text.encode()) == rows


def test_commas_within_other_cells_separate_nothing(tmp_path: Path) -> None:
    text = "prompt;answer;n\nyes, and no;ja, nein;1\na, b, c, d;e;2\n"
    assert read(tmp_path, text)[1] == {"prompt": "a, b, c, d", "answer": "e", "n": "2"}


def test_quotes_hold_line_ends_quotes_and_separators(tmp_path: Path) -> None:
    text = 'a,b\n"x\ny, ""z""",1\n,\n'
    assert read(tmp_path, text) == [{"a": 'x\ny, "z"', "b": "1"}, {"a": None, "b": None}]


def test_a_row_with_other_cells_is_counted_and_an_empty_line_is_nothing(tmp_path: Path) -> None:
    text = "a,b\n1,2\n\n3\n4,5,6\n\n7,8"
    good = {"a": "1", "b": "2"}, {"a": "7", "b": "8"}
    assert read(tmp_path, text) == [good[0], BadRow(RAGGED), BadRow(RAGGED), good[1]]


def test_a_column_without_a_name_and_one_that_comes_twice(tmp_path: Path) -> None:
    row = {"": "0", "n": "1", "n.1": "2", "m": "3"}
    assert read(tmp_path, ",n,n,m\n0,1,2,3\n") == read(tmp_path, "\tn\tn\tm\n0\t1\t2\t3\n") == [row]


def test_one_column_is_enough_if_it_has_a_name_and_numbers(tmp_path: Path) -> None:
    assert read(tmp_path, "response_tokens\n12\n7.0\n") == [{"response_tokens": "12"}, {"response_tokens": "7.0"}]


@pytest.mark.parametrize(
    "text",
    [
        "just text\nand more\n",
        "Dear reader, hello.\nThis is a letter.\nIt has, as letters do, commas, many.\nYours\n",
        "1,2\n3,4\n",
        "word\nword\n",
        "\x00\x01,\x02\n",
        "%PDF-1.7\n%\xe2\xe3\n",
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(TraceError, match="is neither JSON nor CSV nor Parquet, it starts with"):
        read(tmp_path, text)


def test_an_open_quote_does_not_swallow_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_rows, "_LONGEST", 1 << 18)
    limit = csv.field_size_limit(1 << 17)
    try:
        with pytest.raises(TraceError, match=r"row 3 is not CSV \(field larger"):
            read(tmp_path, 'a,b\n1,2\n3,4\n5,"6\n' + "7,8\n" * 200_000)
    finally:
        csv.field_size_limit(limit)


def test_a_long_cell_is_read(tmp_path: Path) -> None:
    text = "word " * 100_000
    assert read(tmp_path, f'a,b\n"{text}",1\n') == [{"a": text, "b": "1"}]


cells = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), max_size=6) | st.sampled_from(
    ["a\nb", '"', "x,y", "1"]
)


@settings(deadline=None)
@given(
    table=st.lists(st.tuples(cells, cells, cells), max_size=12),
    delimiter=st.sampled_from([",", ";", "\t"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_a_writer_wrote_is_read(table: list[tuple[str, str, str]], delimiter: str, quoting: int) -> None:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=quoting)  # type: ignore[arg-type]
    writer.writerows([("first", "second", "third"), *table])
    dialect = text_rows.Dialect(("first", "second", "third"), delimiter)
    got = list(csv_rows(io.StringIO(out.getvalue(), newline=""), dialect, "t"))
    assert got == [dict(zip(dialect.columns, (c or None for c in row), strict=True)) for row in table]


def test_a_head_that_is_cut_in_a_line_is_enough() -> None:
    head = "a,b\n" + "1,2\n" * 10 + "3"
    assert sniff(head) == text_rows.Dialect(("a", "b"), ",")
