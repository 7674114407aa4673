"""From the journal to the trace: one record for each answer, prompts in their order, samples of a prompt together.

Rule: the file is what :func:`~ecoserve.data.save_trace` writes of the same records, byte for byte, but only one
prompt's answers are in memory at a time. It appears whole or not at all.
"""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, cast

from ecoserve.data import LoadReport, Record, Trace, fingerprint
from ecoserve.data.formats.records import header
from ecoserve.errors import RunError
from ecoserve.files import replacing
from ecoserve.serving.collect.journal import Journal
from ecoserve.serving.collect.prompts import context_digest
from ecoserve.serving.collect.replies import COMPLETE
from ecoserve.serving.collect.settings import CollectSettings, body_limit, request_body


@dataclass(slots=True)
class Written:
    """What a written trace holds."""

    rows: int = 0
    tokens: int = 0
    censored: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


def write_trace(journal: Journal, settings: CollectSettings, model: str) -> Written:
    """Write the trace of all answers in the journal to ``settings.output``.

    Raises:
        RunError: if there is no answer, or the file cannot be written.
    """
    target = settings.output
    if not journal.answered:
        raise RunError("no request was answered, so there is no trace to write", where=str(target))
    counted = Written()
    digest = fingerprint(_counting(_records(journal, settings, model), counted))
    first = _header(settings, model, digest, counted.rows)
    try:
        with replacing(target) as raw:
            # mtime 0: the same trace gives the same bytes.
            packed = gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) if target.suffix == ".gz" else None
            with packed or nullcontext():
                out = cast(BinaryIO, packed or raw)
                out.write(_line(first))
                for record in _records(journal, settings, model):
                    out.write(_line(record.as_row()))
            # The journal goes once this is on the disk.
            raw.flush()
            os.fsync(raw.fileno())
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise RunError(what, where=str(target), fix="the journal is kept; make room and run it again") from error
    return counted


def _records(journal: Journal, settings: CollectSettings, model: str) -> Iterator[Record]:
    for prompt in range(journal.prompts):
        answers = journal.answers(prompt)
        if not answers:
            continue
        asked = journal.record(prompt)
        limit = body_limit(request_body(settings, model, asked, context_digest(asked), 0))
        for sample, answer in answers:
            yield replace(
                asked,
                response=answer.text,
                response_tokens=answer.tokens,
                prompt_tokens=answer.prompt_tokens,
                sample_tokens=tuple(other.tokens for s, other in answers if s != sample),
                model=model,
                sample=sample,
                finish_reason=answer.reason,
                max_tokens=limit,
                censored=answer.reason not in COMPLETE,
            )


def _counting(records: Iterator[Record], counted: Written) -> Iterator[Record]:
    for record in records:
        counted.rows += 1
        counted.tokens += record.response_tokens or 0
        counted.censored += record.censored
        counted.reasons[record.finish_reason or ""] += 1
        yield record


def _header(settings: CollectSettings, model: str, digest: str, rows: int) -> dict[str, Any]:
    """The trace's first line; its source says how the answers were sampled, for no other place does."""

    def said(name: str, value: object) -> str:
        return f"{name} {value if value is not None else 'of the server'}"

    how = [
        f"{settings.samples} samples",
        said("temperature", settings.temperature),
        said("top_p", settings.top_p),
        f"seed {settings.seed}",
        f"{settings.api} API",
    ]
    source = f"{model} asked the prompts of {settings.prompts} ({', '.join(how)})"
    counts = f"server:{model}"
    return header(Trace((), source, "records", digest, counts, LoadReport(rows, rows), counts))


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
