"""However a file is cut into blocks, its rows are those that are read in one piece."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from ecoserve.data import stream_trace, streaming_blocks, streaming_sources, streaming_workers
from ecoserve.data.cleaning import Wanted
from ecoserve.data.formats import get_format
from ecoserve.data.measuring import Sources
from ecoserve.data.opening import TraceBytes, opened
from ecoserve.data.reading import FileRows, read_file
from ecoserve.data.streaming_blocks import Block, BlockReader, Layout, Listed, find_layout, parse_block, read_on
from ecoserve.data.streaming_sources import FileSource, window
from ecoserve.errors import TraceError


class PoolHere:
    """A pool whose workers are this thread, to see what a pool is asked."""

    asked = 0
    answered = 0
    ahead = 0

    def __init__(self, count: int, layout: Layout, wanted: Wanted, *, hashed: bool) -> None:
        self.layout, self.wanted, self.hashed = layout, wanted, hashed

    def __enter__(self) -> PoolHere:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, block: Block, sources: Sources | None) -> Future[bytes]:
        PoolHere.asked += 1
        PoolHere.ahead = max(PoolHere.ahead, PoolHere.asked - PoolHere.answered)
        return done(lambda: streaming_workers._work(block, self.layout, self.wanted, sources, self.hashed))

    def in_thread(self, work: Callable[[], Any]) -> Future[Any]:
        return done(work)


class Fed:
    """A file of which what was read to know its kind can be read again, in small pieces."""

    def __init__(self, head: bytes, data: TraceBytes) -> None:
        self.head, self.data, self.position = head, data, data.position

    def read(self, size: int) -> bytes | None:
        piece, self.head = self.head[:size], self.head[size:]
        return piece or self.data.read(size)


def small_blocks(data: TraceBytes, layout: Layout, head: bytes, size: int) -> BlockReader:
    """The kind of a file is told by a head of the usual length; its blocks are small from the first on."""
    return BlockReader(Fed(head, data), layout, b"", size)  # type: ignore[arg-type]


def done(work: Callable[[], Any]) -> Future[Any]:
    future: Future[Any] = Future()
    try:
        future.set_result(work())
    except Exception as e:  # noqa: BLE001 - as an executor does
        future.set_exception(e)
    return future


def outcome(path: Path, **how: Any) -> tuple[list[Any], str]:
    """What reading gave, and how it ended."""
    got: list[Any] = []
    try:
        stream = stream_trace(path, **how)
        for batch in stream.batches():
            got += batch
        return got, f"{stream.report} {stream.sha256} {stream.length_source} {stream.prompt_length_source}"
    except TraceError as e:
        return got, str(e)


text = st.text(max_size=8) | st.sampled_from(['}, {"instruction": "', "},\n{", '"', "\n", "\\", "}\n{", "[", "é", "你"])
row = st.fixed_dictionaries({"instruction": text, "output": text}, optional={"extra": st.lists(text, max_size=2)})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(
    rows=st.lists(row, min_size=1, max_size=25),
    kind=st.sampled_from(["list", "lines", "blank lines", "indented", "one line", "csv"]),
    size=st.integers(5, 300),
    ascii_only=st.booleans(),
    cut=st.none() | st.integers(1, 30),
    dirty=st.none() | st.integers(0, 400),
)
@example([{"instruction": "a", "output": "b"}] * 9, "list", 10, True, None, None)
def test_blocks_and_one_piece_are_the_same(
    tmp_path: Path, rows: list[Any], kind: str, size: int, ascii_only: bool, cut: int | None, dirty: int | None
) -> None:
    if kind == "csv":
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("prompt", "response_tokens", "response"))
        writer.writerows((r["instruction"], i + 1, r["output"]) for i, r in enumerate(rows))
        data = out.getvalue().encode()
    elif kind == "list":
        data = json.dumps(rows, ensure_ascii=ascii_only).encode()
    elif kind == "indented":
        data = json.dumps(rows, ensure_ascii=ascii_only, indent=1).encode()
    else:
        between = {"lines": "\n", "blank lines": "\n\n \n", "one line": " "}[kind]
        data = between.join(json.dumps(r, ensure_ascii=ascii_only) for r in rows).encode()
    if dirty is not None and dirty < len(data):
        data = data[:dirty] + b"\xe9" + data[dirty + 1 :]
    data = data[:-cut] if cut else data
    path = tmp_path / "t"
    path.write_bytes(data)
    plain = outcome(path, workers=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streaming_workers, "WorkerPool", PoolHere)
        patch.setattr(streaming_sources, "BLOCK", size)
        patch.setattr(streaming_sources, "BlockReader", small_blocks)
        patch.setattr(streaming_blocks, "LONGEST_ROW", size * 4)
        assert outcome(path, workers=2) == plain


def layout(path: Path) -> Layout | None:
    return find_layout(path.read_bytes(), "t")


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ('{"a": 1}\n{"a": 2}\n', True),
        ('\n  {"a": 1}  \r\n{"a": 2}', True),
        ('{"a": 1}', False),
        ('{"a": 1} {"a": 2}\n', False),
        ('{\n"a": 1\n}\n', True),
        ('[{"a": 1}, {"a": 2}]', True),
        ('[\n{"a": [{"a": 3}]}\n,{"a": 2}]', True),
        ('[{"a": 1}]', False),
        ("[1, 2]", False),
        ("[[1], [2]]", False),
        ('[{}, {"a": 2}]', True),
        ('[{"a": 1}, {}]', False),
        ("[]", False),
        ("", False),
        ('{"a": ', False),
        ("a,b\n1,2\n", True),
    ],
)
def test_what_can_be_cut(tmp_path: Path, text: str, known: bool) -> None:
    path = tmp_path / "t"
    path.write_text(text)
    assert (layout(path) is not None) == known


def test_a_pattern_within_a_text_does_no_harm(tmp_path: Path) -> None:
    """Nobody can tell the two apart without parsing: the block is noticed, and read on in one piece."""
    rows = [{"instruction": f"{i}", "output": '}, {"instruction": "' * 3} for i in range(50)]
    path = tmp_path / "t"
    path.write_text(json.dumps(rows).replace('\\"', "'").replace("'instruction'", '\\"instruction\\"'))
    expected = list(read_file(path))
    assert len(expected) == 50
    cut = Listed(b'}, {"instruction"', 1)
    with opened(path, "text") as data:
        reader = BlockReader(data, cut, b"", 100)
        first = reader.next()
        assert first is not None
        got = parse_block(first, cut, "t")
        assert got is None or got == expected[: len(got)]
        again = list(read_on(first, reader.rest(), cut, "t"))
    assert again == expected


def test_cut_blocks_say_which_rows_they_have(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("".join(json.dumps({"instruction": "x" * (i % 7), "output": "y"}) + "\n" for i in range(100)))
    found = layout(path)
    assert found is not None
    blocks = []
    with opened(path, "text") as data:
        reader = BlockReader(data, found, b"", 500)
        while (block := reader.next()) is not None:
            blocks.append(block)
    assert b"".join(b.data for b in blocks) == path.read_bytes()
    first = 0
    for block in blocks:
        assert block.first == first
        rows = parse_block(block, found, "t")
        assert rows is not None
        first += len(rows)
    assert first == 100
    assert blocks[-1].position == path.stat().st_size


def test_a_row_that_is_too_long_to_wait_for_is_read_in_one_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming_blocks, "LONGEST_ROW", 4000)
    path = tmp_path / "t"
    rows = [{"instruction": f"{i}", "output": "y" * (30_000 if i == 5 else 10)} for i in range(40)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = layout(path)
    assert found is not None
    with opened(path, "text") as data:
        reader = BlockReader(data, found, b"", 100)
        sizes = []
        while (block := reader.next()) is not None and block.rows is not None:
            sizes.append(len(block.data))
        assert block is not None
        assert max(sizes) < 1000
        # So much is held for a row that does not end, and no more.
        assert 4000 < len(block.data) <= 2 * 4000
        assert [r["instruction"] for r in read_on(block, reader.rest(), found, "t")] == [str(i) for i in range(5, 40)]  # type: ignore[index]


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_blocks_are_on_their_way_than_the_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Memory is bounded by construction: what is read ahead waits until somebody takes it."""
    monkeypatch.setattr(streaming_workers, "WorkerPool", PoolHere)
    monkeypatch.setattr(streaming_sources, "BLOCK", 1000)
    monkeypatch.setattr(streaming_sources, "BlockReader", small_blocks)
    monkeypatch.setattr(PoolHere, "asked", 0)
    monkeypatch.setattr(PoolHere, "answered", 0)
    monkeypatch.setattr(PoolHere, "ahead", 0)
    path = tmp_path / "t"
    path.write_text("".join(json.dumps({"instruction": f"{i}", "output": "y"}) + "\n" for i in range(5000)))
    source = FileSource(FileRows(path), Wanted(get_format("alpaca")), workers)
    rows = 0
    for parsed in source.parsed():
        assert len(parsed.rows) < 40
        assert PoolHere.asked - PoolHere.answered <= window(workers)
        rows += len(parsed.rows)
        PoolHere.answered += 1
    assert rows == 5000
    assert PoolHere.asked > 100
    assert PoolHere.ahead == window(workers)


def test_in_this_process_too_rows_wait_until_they_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("".join(json.dumps({"instruction": f"{i}", "output": "y" * 10_000}) + "\n" for i in range(3000)))
    file = FileRows(path)
    read, most = 0, 0
    for parsed in FileSource(file, Wanted(get_format("alpaca")), 0).parsed():
        most = max(most, file.position() - read)
        read = file.position()
        assert len(parsed.rows) <= 256
    assert read == path.stat().st_size
    assert most < read / 4


@pytest.mark.parametrize("kind", ["lines", "list", "indented", "flat", "csv"])
def test_ordinary_files_are_read_in_blocks_to_their_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    rows = [{"id": f"{i}", "conversations": talk(i)} for i in range(400)]
    if kind == "csv":
        lines = "".join(f'"say ""{i}"",\nplease",{i + 1}\n' for i in range(400))
        text = "prompt,response_tokens\n" + lines
    else:
        text = json.dumps(rows, indent={"indented": 2, "flat": 0}.get(kind))
        text = "".join(json.dumps(r) + "\n" for r in rows) if kind == "lines" else text
    path = tmp_path / "t"
    path.write_text(text)
    plain = outcome(path, workers=0)
    assert len(plain[0]) == 400

    def not_needed(*_: object) -> None:
        raise AssertionError("read on in one piece")

    monkeypatch.setattr(streaming_sources, "read_on", not_needed)
    monkeypatch.setattr(streaming_workers, "WorkerPool", PoolHere)
    monkeypatch.setattr(streaming_sources, "BLOCK", 700)
    monkeypatch.setattr(streaming_sources, "BlockReader", small_blocks)
    monkeypatch.setattr(PoolHere, "asked", 0)
    assert outcome(path, workers=2) == plain
    assert PoolHere.asked > 10


def talk(i: int) -> list[dict[str, str]]:
    return [{"from": "human", "value": f"number {i}"}, {"from": "gpt", "value": "It is " * (i % 20 + 1)}]
