"""Rows of a trace file: JSON list, JSON lines, CSV or Parquet, text also compressed.

The content of a file, not its name, decides what it is and how it is compressed. Text that as a whole is in another
encoding (by its byte order mark, or by its first text beyond ASCII) becomes UTF-8. Rows come one batch at a time, so
that memory is a few blocks at any size; nothing is left on disk or printed. Files do not go through
``datasets`` (:mod:`ecoserve.data.text_rows` says why; for Parquet it takes a path for a glob pattern and fails on a
file without rows).
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final

from ecoserve.data.text_rows import ESCAPED, Dialect, csv_rows, json_rows, sniff
from ecoserve.errors import TraceError

#: Called with the bytes of a file read so far, and with its size in bytes.
Progress = Callable[[int, int], None]
_BATCH: Final = 1000
#: How clients of ServeGen are used.
SERVEGEN: Final = "they are clients of a workload: write a file w.yaml with requests: N, servegen: {clients: FOLDER}"
_WORKLOADS: Final = (".yaml", ".yml")
#: Bytes read at a time.
BLOCK: Final = 1 << 20
_MAGIC: Final = {
    b"\x1f\x8b": "gzip",
    b"PAR1": "parquet",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
}
_AGAIN: Final = "download or copy it again"
#: Bytes looked at to recognise an encoding, and the encodings that are recognised: those that are still met.
_LOOK: Final = 1 << 16
_LEGACY: Final = (
    *("cp1250", "cp1251", "cp1252", "cp1253", "cp1254", "cp1255", "cp1256", "koi8_r"),
    *("shift_jis", "euc_jp", "gb18030", "big5", "euc_kr", "cp874"),
)
#: Western text in a one-byte encoding has fewer bytes beyond ASCII than this; others are recognised by their bytes.
_WESTERN_SHARE: Final = 0.15

# The longer mark first: UTF-32's begins with UTF-16's.
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def is_workload(source: str | Path) -> bool:
    return str(source).lower().endswith(_WORKLOADS)


class FileRows:
    """The rows of a trace file as Python values, in the order of the file.

    An object is a ``dict``, from CSV ``dict[str, str | None]``. :class:`MendedRow` comes around a row that was not
    UTF-8, :class:`BadRow` in place of one that cannot be used. Raises TraceError if it is missing; while iterating, if
    it is cut off, damaged, or of a kind that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kind = kind_of(path)
        #: Bytes on the disk.
        self.size = path.stat().st_size
        #: The encoding, known when all was read.
        self.encoding = "utf-8"
        self._position: Callable[[], int] = lambda: 0

    def position(self) -> int:
        return self._position()

    def __iter__(self) -> Iterator[object]:
        return self._parquet() if self.kind == "parquet" else self._text()

    def _text(self) -> Iterator[object]:
        where = str(self.path)
        with opened(self.path, self.kind) as data:
            self._position = data.position
            buffered = io.BufferedReader(data, BLOCK)
            dialect = _dialect_of(buffered.peek(BLOCK), where)
            try:
                with io.TextIOWrapper(buffered, encoding="utf-8", errors="surrogateescape", newline="") as text:
                    yield from json_rows(text, where) if dialect is None else csv_rows(text, dialect, where)
            finally:
                end = data.position()
                self._position, self.encoding = (lambda: end), data.encoding

    def _parquet(self) -> Iterator[object]:
        import pyarrow as pa  # type: ignore[import-untyped]
        import pyarrow.parquet as pq  # type: ignore[import-untyped]

        done = 0
        try:
            with pq.ParquetFile(self.path) as file:
                share = self.size / max(1, file.metadata.num_rows)
                self._position = lambda: int(done * share)
                for batch in file.iter_batches(_BATCH):
                    rows = batch.to_pylist()
                    done += len(rows)
                    yield from rows
        except (OSError, pa.ArrowException) as e:
            reason = " ".join(str(e).split())[:120]
            what = f"is not a readable Parquet file ({reason})"
            raise TraceError(what, where=str(self.path), fix=_AGAIN) from e


def _dialect_of(head: bytes, where: str) -> Dialect | None:
    """How the CSV file that begins with ``head`` is written; ``None`` if it is JSON, or there is nothing at all."""
    text = head.decode("utf-8", "surrogateescape")
    begin = text.lstrip()
    if not begin or begin[0] in "[{":
        return None
    if dialect := sniff(text):
        return dialect
    fix = "traces are JSON lists, JSON lines, CSV with a first line of names (all also compressed), or Parquet"
    raise TraceError(f"is neither JSON nor CSV nor Parquet, it starts with {begin[:20]!r}", where=where, fix=fix)


def kind_of(path: Path) -> str:
    """What the file is by its first bytes: ``"parquet"``, ``"text"``, or what it is compressed with."""
    try:
        with path.open("rb") as f:
            head = f.read(8)
    except FileNotFoundError:
        raise TraceError("no such file", where=str(path), fix="check the path") from None
    except IsADirectoryError:
        fix = SERVEGEN if any(path.glob("chunk-*-trace.csv")) else "give one file in it"
        raise TraceError("is a folder, not a trace file", where=str(path), fix=fix) from None
    except OSError as e:
        raise TraceError(f"cannot be read ({e.strerror or e})", where=str(path)) from e
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "text")


class TraceBytes(io.RawIOBase):
    """The text of a trace as UTF-8 bytes; bytes that are wrong in its encoding stay as they are.

    ``raw`` is the file on the disk, whose position is the progress, ``unpacked`` what is read.
    """

    def __init__(self, raw: BinaryIO, unpacked: Any) -> None:
        self._raw, self._unpacked = raw, unpacked
        self._ready = memoryview(b"")
        self._first, self._ended, self._undecided = True, False, True
        self._decoder: codecs.IncrementalDecoder | None = None
        #: The encoding of the file, as far as it is known yet.
        self.encoding = "utf-8"
        self._position = 0

    def position(self) -> int:
        """Bytes of the file on the disk that have been read."""
        return self._position

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._ready and not self._ended:
            self._ready = memoryview(self._next())
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _next(self) -> bytes:
        block: bytes = self._unpacked.read(BLOCK)
        # Asked once a block.
        self._position = self._raw.tell()
        self._ended = not block
        if self._first and block:
            self._first = False
            if marked := marked_encoding(block):
                self._undecided = False
                block = block[marked[1] :]
                self._decode_as(marked[0])
        if self._undecided and not block.isascii():
            self._undecided = False
            self._decode_as(legacy_encoding(block) or "utf-8")
        if self._decoder is None:
            return block
        # What is wrong in the other encoding comes out as the wrong byte again, for the row's reader to mend.
        return self._decoder.decode(block, final=self._ended).encode("utf-8", "surrogateescape")

    def _decode_as(self, encoding: str) -> None:
        self.encoding = encoding
        if encoding != "utf-8":
            wide = encoding.startswith(("utf-16", "utf-32"))
            self._decoder = codecs.getincrementaldecoder(encoding)("replace" if wide else "surrogateescape")


@contextmanager
def opened(path: Path, kind: str) -> Iterator[TraceBytes]:
    """The bytes of ``path`` of a ``kind`` (:func:`kind_of`); TraceError if cut off, damaged or not readable."""
    where = str(path)
    if kind == "zip":
        raise TraceError(f"is compressed with {kind}", where=where, fix="unpack it, or compress it with gzip")
    with _reading(where), path.open("rb") as raw, _unpacked(raw, kind) as unpacked:
        yield TraceBytes(raw, unpacked)


def _unpacked(raw: BinaryIO, kind: str) -> Any:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=raw)
    if kind == "bzip2":
        return bz2.BZ2File(raw)
    if kind == "xz":
        return lzma.LZMAFile(raw)
    if kind == "zstd":
        import pyarrow as pa

        return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
    return raw


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """What goes wrong while a file is read becomes a :class:`TraceError`."""
    try:
        yield
    except EOFError as e:
        raise TraceError("compressed file is cut off", where=where, fix=_AGAIN) from e
    except (zlib.error, gzip.BadGzipFile, lzma.LZMAError) as e:
        raise TraceError("compressed file is damaged", where=where, fix=_AGAIN) from e
    except OSError as e:
        if e.errno is not None:
            raise TraceError(f"cannot be read ({e.strerror or e})", where=where) from e
        # bz2 and zstd raise a plain OSError.
        cut = "runcated" in str(e)
        raise TraceError(f"compressed file is {'cut off' if cut else 'damaged'}", where=where, fix=_AGAIN) from e


def marked_encoding(head: bytes) -> tuple[str, int] | None:
    """The encoding that the first bytes of a file state, and how many of them state it; ``None`` if none do.

    UTF-16 is known without a mark too: traces begin with an ASCII character, whose other byte is zero.
    """
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding, len(mark)
    if len(head) >= 4 and 0 in head[:2] and head[0] != head[1] and head[0:2].index(0) == head[2:4].find(0):
        return ("utf-16-be" if head[0] == 0 else "utf-16-le"), 0
    return None


def legacy_encoding(block: bytes) -> str | None:
    """The encoding of the whole file, by a ``block`` with bytes beyond ASCII; ``None``: UTF-8, or nearly."""
    start = next((i for i in range(0, len(block), _LOOK) if not block[i : i + _LOOK].isascii()), 0)
    sample = block[start : start + _LOOK]
    text = sample.decode("utf-8", "surrogateescape")
    wrong = len(ESCAPED.findall(text))
    right = sum(c > "\x7f" for c in text) - wrong
    if wrong <= max(right, 4) or wrong < _WESTERN_SHARE * len(sample):
        return None
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=list(_LEGACY), enable_fallback=False).best()
    return best.encoding if best is not None else None
