"""Files are unpacked whatever they are compressed with; damage ends in one line."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from ecoserve.data.reading import FileRows, kind_of, opened
from ecoserve.errors import TraceError

ROWS = [{"instruction": f"n°{i} 你", "output": "xyz" * i} for i in range(300)]
TEXT = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in ROWS).encode()


def zstd(data: bytes) -> bytes:
    packed: bytes = pa.compress(data, codec="zstd", asbytes=True)
    return packed


PACKERS = {"gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress, "zstd": zstd}
Pack = Callable[[bytes], bytes]


@pytest.mark.parametrize("kind", PACKERS)
def test_compressed_files_are_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "t"
    path.write_bytes(PACKERS[kind](TEXT))
    assert kind_of(path) == kind
    assert list(FileRows(path)) == ROWS


@pytest.mark.parametrize("kind", PACKERS)
@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_cut_off_file_is_refused(tmp_path: Path, kind: str, keep: float) -> None:
    path = tmp_path / "t"
    packed = PACKERS[kind](TEXT)
    path.write_bytes(packed[: int(len(packed) * keep)])
    with pytest.raises(TraceError, match="compressed file is cut off"):
        list(FileRows(path))


@pytest.mark.parametrize("kind", ["gzip", "bzip2", "xz"])
def test_a_damaged_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "t"
    packed = bytearray(PACKERS[kind](TEXT))
    packed[len(packed) // 2] ^= 0xFF
    path.write_bytes(packed)
    with pytest.raises(TraceError, match=r"damaged|not JSON|cut off"):
        list(FileRows(path))


def test_a_damaged_zstd_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(zstd(TEXT)[:4] + b"\xff" * 40)
    with pytest.raises(TraceError, match="compressed file is damaged"):
        list(FileRows(path))


def test_gzip_of_several_parts_is_one_file(tmp_path: Path) -> None:
    """What ``cat a.gz b.gz`` and log rotation make."""
    path = tmp_path / "t"
    path.write_bytes(gzip.compress(TEXT[:1000]) + gzip.compress(TEXT[1000:]))
    assert list(FileRows(path)) == ROWS


@pytest.mark.parametrize("packed", [False, True])
def test_the_position_is_that_on_the_disk(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "t"
    path.write_bytes(gzip.compress(TEXT) if packed else TEXT)
    rows = FileRows(path)
    assert rows.position() == 0
    assert len(list(rows)) == len(ROWS)
    assert rows.position() == rows.size == path.stat().st_size


def test_a_file_is_closed_when_its_reader_is(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(TEXT)
    with opened(path, "text") as data:
        assert data.read(5) == TEXT[:5]
    rows = iter(FileRows(path))
    next(rows)
    rows.close()  # type: ignore[attr-defined]  # an unclosed file would be a warning, and so an error
