"""Which requests are sent: the different prompts of a source, with or without answers.

Two requests are the same if their whole contexts are; the first one counts. A draw depends on the prompts and the seed,
not on their order. Memory holds a digest of each different prompt, and a draw, never all texts.

Sources: a trace of any format, its answers ignored; rows without an answer (``prompt``, or ``messages`` that do not end
with the assistant's, also as the ``body`` of a batch file); a text file, one prompt a line.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

from ecoserve.data import LoadReport, Message, Record, load_trace, synthetic_trace
from ecoserve.data.fields import first_of, unusable_text, whole
from ecoserve.data.formats import Exchange, Hints, detect, get_format
from ecoserve.data.formats.base import Reader
from ecoserve.data.hub import hub_rows, is_hub_id
from ecoserve.data.reading import FileRows
from ecoserve.data.records import ASSISTANT, USER
from ecoserve.data.text_rows import BadRow, MendedRow
from ecoserve.errors import TraceError

#: Rows looked at to recognise a format.
_LOOK: Final = 20
_AUTO: Final = "auto"
#: Prompts are asked once, however many answers a row has.
_HINTS: Final = Hints(expands=False)


def choose(
    source: str, *, format: str, limit: int | None, sample: int | None, seed: int, report: LoadReport
) -> Iterator[tuple[Record, str]]:
    """The requests to be sent, in the source's order, each with the digest of its context.

    Only the first ``limit`` different ones; of these only ``sample``, drawn by ``seed``. ``report`` counts what was
    read and dropped. Raises TraceError if the source cannot be read or recognised, or holds no prompt.
    """
    chosen: Iterator[tuple[Record, str]] = islice(_different(_requests(source, format, report), report), limit)
    if sample is not None:
        chosen = _drawn(chosen, sample, seed)
    first = next(chosen, None)
    if first is None:
        raise TraceError(f"there is no prompt in it: {report}", where=source, fix="give a source with prompts' texts")
    for found in chain((first,), chosen):
        report.kept += 1
        yield found


def context_digest(record: Record) -> str:
    """SHA-256 (hex) of a request's context."""
    chat = [(m.role, m.content) for m in record.chat()]
    return hashlib.sha256(json.dumps(chat, separators=(",", ":")).encode()).hexdigest()


def _different(records: Iterable[Record], report: LoadReport) -> Iterator[tuple[Record, str]]:
    seen: set[bytes] = set()
    for record in records:
        digest = context_digest(record)
        key = bytes.fromhex(digest[:32])
        if key in seen:
            report.drop("the same prompt again")
            continue
        seen.add(key)
        yield record, digest


def _drawn(found: Iterable[tuple[Record, str]], count: int, seed: int) -> Iterator[tuple[Record, str]]:
    """``count`` of them, in their order: those with the smallest hashes of digest and seed."""

    def rank(item: tuple[int, tuple[Record, str]]) -> bytes:
        return hashlib.sha256(f"{seed}:{item[1][1]}".encode()).digest()

    drawn = heapq.nsmallest(count, enumerate(found), key=rank)
    return (item for _, item in sorted(drawn, key=lambda pair: pair[0]))


def _requests(source: str, format: str, report: LoadReport) -> Iterator[Record]:
    """Every request of the source, without what is known of other models' answers."""
    for item in _items(source, format, report):
        if isinstance(item, str):
            report.drop(item)
        elif not item.prompt and not item.messages:
            report.drop("no prompt text")
        else:
            yield Record(
                conversation=item.conversation,
                turn=item.turn,
                prompt=item.prompt,
                messages=item.messages,
                split=item.split,
                max_tokens=item.max_tokens,
            )


def _items(source: str, format: str, report: LoadReport) -> Iterator[Record | str]:
    """Records, or why a row gives none."""
    if source.partition(":")[0] == "synthetic":
        yield from _counted(_synthetic(source), report)
    elif source.lower().endswith((".yaml", ".yml")):
        yield from _counted(load_trace(source).records, report)
    elif source.lower().endswith(".txt") and format == _AUTO:
        yield from _lines(Path(source), report)
    else:
        rows = hub_rows(source) if is_hub_id(source) else FileRows(Path(source))
        yield from _rows(rows, source, format, report)


def _synthetic(source: str) -> Iterable[Record]:
    count = source.partition(":")[2] or "4000"
    if not count.isdecimal() or not 1 <= int(count) <= 1_000_000:
        raise TraceError(f"{count} is not a number of rows", where=source)
    return synthetic_trace(int(count), seed=0).records


def _counted(records: Iterable[Record], report: LoadReport) -> Iterator[Record]:
    for record in records:
        report.rows_in += 1
        yield record


def _lines(path: Path, report: LoadReport) -> Iterator[Record | str]:
    try:
        with path.open("rb") as file:
            for index, line in enumerate(file):
                report.rows_in += 1
                try:
                    text = line.decode("utf-8-sig" if index == 0 else "utf-8").strip()
                except UnicodeDecodeError:
                    yield "line is not UTF-8"
                    continue
                yield Record(conversation=f"row-{index}", prompt=text) if text else "empty line"
    except OSError as error:
        raise TraceError(f"cannot be read ({error.strerror or error})", where=str(path)) from error


def _rows(rows: Iterable[object], where: str, format: str, report: LoadReport) -> Iterator[Record | str]:
    walk = (row.row if isinstance(row, MendedRow) else row for row in rows)
    first = list(islice(walk, _LOOK))
    if not first:
        raise TraceError("there is nothing in it", where=where)
    reader: Reader | None = None
    objects = [row for row in first if isinstance(row, dict)]
    if format != _AUTO:
        reader = get_format(format).opened(objects, _HINTS)
    elif any(_asking(row, i) is None for i, row in enumerate(objects)):
        reader = detect(first, where).opened(objects, _HINTS)
    for index, row in enumerate(chain(first, walk)):
        own = _asking(row, index) if format == _AUTO else None
        items: list[Record | str] = []
        if own is not None:
            items = [own]
        elif isinstance(row, dict) and reader is not None:
            items = [e.record if isinstance(e, Exchange) else e.reason for e in reader.read(row, index)]
            if not items:
                continue  # a header, or a part of what comes later
        report.rows_in += 1
        yield from items or [row.reason if isinstance(row, BadRow) else "row asks nothing"]
    for item in reader.finish() if reader is not None else ():
        yield item.record if isinstance(item, Exchange) else item.reason


def _asking(row: object, index: int) -> Record | str | None:
    """The request of a row that asks without an answer, or why it cannot be one; None for rows of a trace."""
    if not isinstance(row, dict) or "conversation" in row:
        return None
    inner = row["body"] if isinstance(row.get("body"), dict) else row
    name = str(first_of(row, "custom_id", "id", "conversation_id") or f"row-{index}")
    limit = whole(first_of(inner, "max_completion_tokens", "max_tokens"))
    limit = limit if limit is not None and limit >= 1 else None
    prompt, messages = inner.get("prompt"), inner.get("messages")
    if isinstance(messages, list) and messages:
        chat = _chat(messages)
        if isinstance(chat, tuple) and chat[-1].role == ASSISTANT:
            return None
        if isinstance(chat, str):
            return chat
        base = Record(conversation=name, prompt=chat[-1].content, messages=chat, max_tokens=limit)
        # A lone question is the same request as that text alone.
        return replace(base, messages=()) if len(chat) == 1 and chat[0].role == USER else base
    if isinstance(prompt, str):
        return unusable_text(prompt, "prompt") or Record(conversation=name, prompt=prompt, max_tokens=limit)
    return None


def _chat(messages: list[Any]) -> tuple[Message, ...] | str:
    chat = []
    for item in messages:
        role, content = (item.get("role"), item.get("content")) if isinstance(item, dict) else (None, None)
        if not isinstance(role, str) or not role:
            return "messages are not role and content"
        problem = unusable_text(content, "message")
        if problem is not None or not isinstance(content, str):
            return problem or "message is not text"
        chat.append(Message(role, content))
    return tuple(chat)
