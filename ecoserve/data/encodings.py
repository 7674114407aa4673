"""Text that is not UTF-8: which encoding it has, and what becomes of single bytes that are wrong.

A file that as a whole is in another encoding (by its byte order mark, or by its first text beyond ASCII) is read in
that one. Otherwise it is UTF-8, and each row with other bytes is mended by itself and counted: if it has nothing else
beyond ASCII, they are read as Windows-1252; if it also has right UTF-8, each is replaced by U+FFFD. Until then, bytes
that are not UTF-8 are lone surrogates (Python's ``surrogateescape``).
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Final

#: What is counted for a row that was mended.
READ_AS_WINDOWS: Final = "not UTF-8, read as Windows-1252"
REPLACED: Final = "not UTF-8, wrong bytes replaced"

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
_ESCAPED: Final = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class MendedRow:
    """A row that was read after its text was mended, and what is counted for it if the row is kept."""

    row: object
    note: str


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
    wrong = len(_ESCAPED.findall(text))
    right = sum(c > "\x7f" for c in text) - wrong
    if wrong <= max(right, 4) or wrong < _WESTERN_SHARE * len(sample):
        return None
    from charset_normalizer import from_bytes

    best = from_bytes(sample, cp_isolation=list(_LEGACY), enable_fallback=False).best()
    return best.encoding if best is not None else None


def is_clean(text: str) -> bool:
    """Whether ``text`` came from right bytes only (half a second a gigabyte)."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def mend(text: str) -> tuple[str, str | None]:
    """``text`` without escaped bytes, and what to count for it; ``None`` if it had none."""
    wrong = len(_ESCAPED.findall(text))
    if not wrong:
        return text, None
    if sum(c > "\x7f" for c in text) > wrong:
        return _ESCAPED.sub("\ufffd", text), REPLACED
    return _ESCAPED.sub(_windows, text), READ_AS_WINDOWS


def _windows(escaped: re.Match[str]) -> str:
    return bytes([ord(escaped[0]) - 0xDC00]).decode("cp1252", "replace")
