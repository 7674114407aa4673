"""Our own format: one :class:`~ecoserve.data.records.Record` a line (JSONL), lengths and arrivals included.

What :func:`save_trace` writes loads equal. The first line states what the file is and where its lengths came from;
without it the records still load. Each line has its whole context, so that lines can be picked, sorted and joined.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, Final

from ecoserve.data.fields import Row, number, text_or_none, unusable_text, whole
from ecoserve.data.formats.base import Exchange, Exchanges, Format, Reject, each_row
from ecoserve.data.parameters import MOST_TOOLS, stops_of
from ecoserve.data.records import PREFIX_BLOCK, Message, Record, Trace
from ecoserve.errors import TraceError
from ecoserve.files import replacing

#: Key of the first line, and the version of the layout it stands for.
HEADER: Final = "ecoserve_trace"
VERSION: Final = 1


def _matches(row: Row) -> bool:
    if row.get(HEADER) is not None:
        return True
    # Published chats have fields of these names too, but there the conversation is a list.
    return "turn" in row and "conversation" in row and not isinstance(row["conversation"], list)


def _read(row: Row, index: int) -> Exchanges:
    if row.get(HEADER) is not None:
        check_layout(row)
        return []
    problem = _problem(row)
    if problem is not None:
        return [Reject(problem)]
    messages = tuple(Message(m["role"], m["content"]) for m in row.get("messages") or ())
    limit = whole(row.get("max_tokens"))
    record = Record(
        conversation=str(row["conversation"]),
        turn=whole(row.get("turn")) or 0,
        prompt=row.get("prompt"),
        messages=messages,
        response_tokens=whole(row.get("response_tokens")),
        prompt_tokens=whole(row.get("prompt_tokens")),
        sample_tokens=tuple(whole(n) or 0 for n in row.get("sample_tokens") or ()),
        model=text_or_none(row.get("model")),
        arrival_s=number(row.get("arrival_s")),
        split=text_or_none(row.get("split")),
        censored=row.get("censored") is True,
        sample=whole(row.get("sample")) or 0,
        finish_reason=text_or_none(row.get("finish_reason")),
        max_tokens=limit if limit is not None and limit >= 1 else None,
        prefix_hashes=tuple(whole(n) or 0 for n in row.get("prefix_hashes") or ()),
        stop=stops_of(row.get("stop")),
        tools=min(max(whole(row.get("tools")) or 0, 0), MOST_TOOLS),
        thinking=text_or_none(row.get("thinking")),
        response_format=text_or_none(row.get("response_format")),
        thinking_tokens=whole(row.get("thinking_tokens")),
        think_s=number(row.get("think_s")),
        prefix_block_tokens=whole(row.get("prefix_block_tokens")) or PREFIX_BLOCK,
    )
    return [Exchange(record, row.get("response"), row)]


def check_layout(row: Row, where: str | None = None) -> None:
    """Return if ``row`` is no header, or that of a known layout; a later one is a :class:`TraceError`."""
    if row.get(HEADER) not in (None, VERSION):
        what = f"layout {row[HEADER]!r} of an ecoserve trace is not known, only {VERSION}"
        raise TraceError(what, where=where, fix="update ecoserve")


def _problem(row: Row) -> str | None:
    if row.get("conversation") in (None, "") or isinstance(row["conversation"], (list, dict)):
        return "no conversation id"
    for name in ("turn", "sample"):
        place = whole(row.get(name) or 0)
        if place is None or place < 0:
            return f"{name} is not a number from 0"
    if row.get("prompt") is not None and (problem := unusable_text(row["prompt"], "prompt")):
        return problem
    messages = row.get("messages") or ()
    if not isinstance(messages, (list, tuple)) or not all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    ):
        return "messages are not role and content"
    for name, what in (("arrival_s", "arrival"), ("think_s", "think_s")):
        if row.get(name) is not None and ((time := number(row[name])) is None or time < 0):
            return f"{what} is not a number"
    for name, least in (("thinking_tokens", 0), ("prefix_block_tokens", 1)):
        if row.get(name) is not None and ((count := whole(row[name])) is None or count < least):
            return f"{name} is not a number from {least}"
    hashes = row.get("prefix_hashes") or ()
    if not isinstance(hashes, (list, tuple)) or any(whole(h) is None for h in hashes):
        return "prefix_hashes are not numbers"
    samples = row.get("sample_tokens") or ()
    if not isinstance(samples, (list, tuple)) or not all((whole(n) or 0) >= 1 for n in samples):
        return "sample_tokens are not lengths"
    return None


def header(trace: Trace) -> dict[str, Any]:
    return {
        HEADER: VERSION,
        "source": trace.source,
        "format": trace.format,
        "sha256": trace.sha256,
        "length_source": trace.length_source,
        "prompt_length_source": trace.prompt_length_source,
    }


def save_trace(trace: Trace, path: str | Path) -> Path:
    """Write ``trace`` as JSONL (gzip-compressed if ``path`` ends in ``.jsonl.gz``); nothing half-written stays behind.

    Raises TraceError if the name has another suffix, or the file cannot be written.
    """
    target = Path(path)
    if not target.name.endswith((".jsonl", ".jsonl.gz")):
        raise TraceError("a trace is saved as .jsonl or .jsonl.gz", where=str(target), fix="change the file name")
    try:
        write_lines(target, header(trace), trace.records)
    except OSError as e:
        raise TraceError(f"cannot be written ({e.strerror or e})", where=str(target), fix="give another place") from e
    return target


def write_lines(target: Path, first: dict[str, Any], records: Iterable[Record]) -> None:
    """Write a header and records one by one; the file appears when it is whole and on the disk."""
    with replacing(target) as raw:
        # mtime 0: the same trace gives the same bytes.
        packed = gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) if target.suffix == ".gz" else None
        with packed or nullcontext():
            for row in chain((first,), (record.as_row() for record in records)):
                line = json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
                (packed or raw).write(line)
        raw.flush()
        os.fsync(raw.fileno())


FORMAT: Final = Format(
    "records",
    looks_like="conversation, turn, response_tokens (written by ecoserve)",
    about="our own, of `save_trace` and `profile --collect`: everything a record has",
    matches=_matches,
    opened=each_row(_read),
    own_ids=True,
)
