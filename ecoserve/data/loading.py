"""From a file or hub id to a :class:`Trace`: read, recognise, clean, measure.

Rule: nothing is dropped silently, each exchange that is left out is counted under one reason; and one trace has its
response lengths from one source, which :attr:`Trace.length_source` names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

from ecoserve.data.fields import FieldPath, describe
from ecoserve.data.formats import Exchange, Format, Reject, detect, get_format
from ecoserve.data.formats.base import unusable_text, whole
from ecoserve.data.formats.records import HEADER
from ecoserve.data.hub import hub_rows, is_hub_id
from ecoserve.data.measuring import OWN, absurd, mark_cut_off, measure_prompts, measure_responses
from ecoserve.data.reading import read_file
from ecoserve.data.records import LoadReport, Record, Trace, fingerprint
from ecoserve.data.rows import BadRow, MendedRow
from ecoserve.errors import TraceError

#: Rows looked at to recognise a format.
_LOOK: Final = 20


def load_trace(
    source: str | Path,
    *,
    format: str = "auto",
    length_field: str | None = None,
    sample_field: str | None = None,
    tokenizer: str | None = None,
    model: str | None = None,
    limit: int | None = None,
) -> Trace:
    """Load a trace of requests with their response lengths.

    Args:
        source: a file (JSON list, JSON lines, Parquet; JSON also gzip-compressed) or a hub id (``owner/name``).
        format: ``"auto"``, or the name of a format (``"alpaca"``, ``"sharegpt"``, ``"records"``).
        length_field: where RL (tokens) is found, e.g. ``"vicuna_7b_tokens[3]"``: in the row; in ShareGPT in the
            answer's own message. Rows without it are dropped and counted.
        sample_field: a field with a list of RLs of several answers to the prompt, e.g. ``"vicuna_7b_tokens"``. The
            one that ``length_field`` names is left out of :attr:`Record.sample_tokens`.
        tokenizer: path or hub id of the served model's tokenizer. Counts prompts, and answers where there is no
            ``length_field`` (plus one for EOS where the answer was not cut off).
        model: name of the model that gave the answers, where the trace does not say it.
        limit: stop after this many records.

    Returns:
        The trace. Without ``length_field`` and ``tokenizer``, lengths are the trace's own counts if most rows have
        one (the others are dropped and counted), else characters / 4.0.

    Raises:
        TraceError: if the source cannot be read or recognised, or holds no usable record.
    """
    if limit is not None and limit < 1:
        raise TraceError(f"a limit of {limit} records leaves nothing to load", fix="give 1 or more")
    where = str(source)
    length = FieldPath.parse(length_field) if length_field is not None else None
    samples = FieldPath.parse(sample_field) if sample_field is not None else None
    rows = hub_rows(where) if is_hub_id(source) else read_file(Path(source))
    looked = list(islice(rows, _LOOK))
    first = [r.row if isinstance(r, MendedRow) else r for r in looked if not isinstance(r, BadRow)]
    if not first:
        raise TraceError("the trace is empty", where=where)
    form = detect(first, where) if format == "auto" else get_format(format)

    report = LoadReport()
    records = list(islice(_clean(chain(looked, rows), form, length, samples, report), limit))
    length_source = f"field:{length_field}"
    if length is None:
        records, length_source = measure_responses(records, tokenizer, report)
    records, prompt_source = measure_prompts(records, tokenizer)
    if not records:
        raise _nothing_usable(report, first, length, form, where)
    if length is not None or (length_source == OWN and not form.own_ids):
        records = mark_cut_off(records)
    if model is not None:
        records = [replace(r, model=model) if r.model is None else r for r in records]
    report.kept = len(records)
    report.note("answers cut off", sum(r.censored for r in records))

    # A saved trace still knows where its counts came from.
    header = first[0] if isinstance(first[0], dict) and first[0].get(HEADER) is not None else {}
    length_source = header.get("length_source") or OWN if length_source == OWN else length_source
    prompt_source = header.get("prompt_length_source") or OWN if prompt_source == OWN else prompt_source
    return Trace(tuple(records), where, form.name, fingerprint(records), length_source, report, prompt_source)


def _clean(
    rows: Iterable[object], form: Format, length: FieldPath | None, samples: FieldPath | None, report: LoadReport
) -> Iterator[Record]:
    """The usable exchanges, their lengths taken from ``length`` or the row's own count, if it has one."""
    seen: set[object] = set()
    turns: dict[str, int] = {}
    for index, row in enumerate(rows):
        row, mended = (row.row, row.note) if isinstance(row, MendedRow) else (row, None)
        if isinstance(row, dict):
            items = list(form.read(row, index))
        else:
            items = [Reject(row.reason if isinstance(row, BadRow) else "row is not an object")]
        report.rows_in += bool(items)
        for item in items:
            record = item.reason if isinstance(item, Reject) else _draft(item, length, samples)
            if isinstance(item, Exchange) and item.counts_turn:
                name = item.record.conversation
                turns[name] = turns.get(name, -1) + 1
                record = replace(record, turn=turns[name]) if isinstance(record, Record) else record
            if isinstance(record, Record) and (key := _identity(record, form)) is not None:
                record = "duplicate" if key in seen else record
                seen.add(key)
            if isinstance(record, str):
                report.drop(record)
                continue
            for note in item.notes if isinstance(item, Exchange) else ():
                report.note(note)
            report.note(mended or "", 1 if mended else 0)
            yield record


def _draft(item: Exchange, length: FieldPath | None, samples: FieldPath | None) -> Record | str:
    """The exchange's record with its answer and what the row says about lengths, or why it is dropped."""
    record, fields = item.record, item.fields
    changes: dict[str, Any] = {}
    problem = unusable_text(item.answer, "answer")
    if problem is None:
        changes["response"] = item.answer
    if length is not None:
        value = length.get(fields)
        if value is None:
            return f"no {length.text}"
        count = whole(value)
        if count is None:
            return f"{length.text} is not a whole number"
        changes["response_tokens"] = count
    elif problem is not None and (problem != "no answer" or record.response_tokens is None):
        return item.missing or problem
    if absurd(changes.get("response_tokens", record.response_tokens)):
        return "absurd length"
    if samples is not None and (values := samples.get(fields)) is not None:
        others = _samples(values, length.inside(samples) if length else None)
        if others is None:
            return f"{samples.text} is not a list of lengths"
        changes["sample_tokens"] = others
    return replace(record, **changes)


def _samples(values: object, own: int | None) -> tuple[int, ...] | None:
    if not isinstance(values, (list, tuple)):
        return None
    counts = [whole(v) for i, v in enumerate(values) if i != own and v is not None]
    return tuple(n for n in counts if n is not None) if not any(n is None or absurd(n) for n in counts) else None


def _identity(record: Record, form: Format) -> object:
    """What makes two exchanges the same one; ``None`` where there is no text to tell."""
    if record.prompt is None and (record.response is None or not form.own_ids):
        return None
    name = (record.conversation, record.turn) if form.own_ids else None
    lengths = (record.response_tokens, record.sample_tokens)
    said = (record.messages or record.prompt, record.response, record.model, record.sample)
    return (name, said, lengths, record.arrival_s)


def _nothing_usable(
    report: LoadReport, first: list[object], length: FieldPath | None, form: Format, where: str
) -> TraceError:
    if length is not None and set(report.dropped) == {f"no {length.text}"}:
        row = next(r for r in first if isinstance(r, dict))
        items = (i.fields for i in form.read(row, 0) if isinstance(i, Exchange))
        what = f"no row has the field {length.text}"
        return TraceError(what, where=where, fix=f"the first has {describe(next(items, row))}")
    return TraceError(f"no usable record: {report}", where=where, fix=f"{form.name} needs {form.looks_like}")
