"""The bytes of a trace file: unpacked, and UTF-8 in any case.

Its first bytes, not its name, decide how it is compressed; every way in which unpacking can fail ends in one
:class:`TraceError`. Memory is a few blocks at any size.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from ecoserve.data.encodings import legacy_encoding, marked_encoding
from ecoserve.errors import TraceError

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


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


def kind_of(path: Path) -> str:
    """What the file is by its first bytes: ``"parquet"``, ``"text"``, or what it is compressed with.

    Raises:
        TraceError: if it is missing, or cannot be read.
    """
    try:
        with path.open("rb") as f:
            head = f.read(8)
    except FileNotFoundError:
        raise TraceError("no such file", where=str(path), fix="check the path") from None
    except IsADirectoryError:
        raise TraceError("is a folder, not a trace file", where=str(path), fix="give one file in it") from None
    except OSError as e:
        raise TraceError(f"cannot be read ({e.strerror or e})", where=str(path)) from e
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), "text")


class TraceBytes(io.RawIOBase):
    """The text of a trace as UTF-8 bytes; bytes that are wrong in its encoding stay as they are.

    Args:
        raw: the file on the disk, whose position is the progress.
        unpacked: what is read; ``raw`` itself where nothing is compressed.
    """

    def __init__(self, raw: BinaryIO, unpacked: _Readable) -> None:
        self._raw = raw
        self._unpacked = unpacked
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
        """True."""
        return True

    def readinto(self, target: Any) -> int:
        """Fill ``target`` with the next bytes; 0 at the end."""
        while not self._ready and not self._ended:
            self._ready = memoryview(self._next())
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _next(self) -> bytes:
        block = self._unpacked.read(BLOCK)
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
    """The bytes of ``path``, whose ``kind`` is that of :func:`kind_of`.

    Raises:
        TraceError: if it cannot be read, is cut off or damaged, or is compressed in a way that cannot be read.
    """
    where = str(path)
    if kind == "zip":
        raise TraceError(f"is compressed with {kind}", where=where, fix="unpack it, or compress it with gzip")
    with reading(where), path.open("rb") as raw, _unpacked(raw, kind) as unpacked:
        yield TraceBytes(raw, unpacked)


def _unpacked(raw: BinaryIO, kind: str) -> Any:
    if kind == "gzip":
        return gzip.GzipFile(fileobj=raw)
    if kind == "bzip2":
        return bz2.BZ2File(raw)
    if kind == "xz":
        return lzma.LZMAFile(raw)
    if kind == "zstd":
        import pyarrow as pa  # type: ignore[import-untyped]

        return pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")
    return raw


@contextmanager
def reading(where: str) -> Iterator[None]:
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
