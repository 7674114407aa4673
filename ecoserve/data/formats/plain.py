"""Plain tables: CSV or JSON lines whose columns are recognised by the names that such files usually have.

A column is what its name says, in any case, with spaces or hyphens; columns without a meaning are named in the report.
Needed is the answer's length, or prompt and answer as text. An arrival is in the unit of its name (``_ms``, ``_us``,
``_ns``), else in seconds, or a date.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import product
from typing import Final

from ecoserve.data import fields
from ecoserve.data.fields import Row, blank, number, text_or_none, unusable_text, whole
from ecoserve.data.formats.base import Exchanges, Format, Reject, counted
from ecoserve.data.records import Record

#: What a record needs -> names its column goes by, in lower case with underscores, the first one there counts.
COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "response_tokens": (
        *(*fields.RESPONSE_COUNTS, "generated_tokens", "generation_tokens", "decode_tokens", "num_decode_tokens"),
        *("num_output_tokens", "num_generated_tokens", "output_token_length", "output_length", "output_len"),
        *("response_length", "response_len", "decode_length", "decode_len", "generatedtokens", "output_toks"),
    ),
    "prompt_tokens": (
        *(*fields.PROMPT_COUNTS, "context_tokens", "prefill_tokens", "request_tokens", "num_prefill_tokens"),
        *("num_prompt_tokens", "num_input_tokens", "num_context_tokens", "input_token_length", "input_length"),
        *("input_len", "prompt_length", "prompt_len", "prefill_length", "prefill_len", "contexttokens", "input_toks"),
    ),
    "prompt": ("prompt", "question", "query", "instruction", "input", "prompt_text", "input_text"),
    "response": ("response", "completion", "answer", "output", "response_text", "output_text", "generated_text"),
    "arrival": (
        *("arrival_s", "arrival", "arrival_time", "arrived_at", "timestamp", "time"),
        *("request_time", "start_time", "created", "created_at"),
    ),
    "conversation": ("conversation_id", "conversation", "session_id", "chat_id"),
    "request": ("request_id", "req_id", "custom_id", "id"),
    "turn": ("turn", "turn_id", "turn_index"),
    "sample": ("sample", "sample_id", "sample_index"),
    "model": ("model", "model_name", "generator", "served_model"),
    "split": ("split",),
    "finish_reason": fields.FINISH_REASONS,
    "max_tokens": ("max_tokens", "max_new_tokens", "max_completion_tokens", "max_output_tokens"),
}
#: What pandas calls the numbers of its rows.
_ROW_NUMBERS: Final = ("", "index", "unnamed:_0")
_UNITS: Final = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
NO_UNIT: Final = "with an arrival without a unit, taken as seconds"


class Layout:
    """Which column of a table is what: meaning -> name of its column.

    ``per_second``: units of the arrival in a second, 0 if its name states none; ``unused``: columns without a meaning.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        plain = {n.strip().lower().replace(" ", "_").replace("-", "_"): n for n in reversed(names)}
        self.of: dict[str, str] = {}
        self.per_second = 0.0
        for meaning, known in COLUMNS.items():
            if (name := next((n for n in known if n in plain), None)) is not None:
                self.of[meaning] = plain[name]
        if "arrival" in self.of:
            self.per_second = float(self.of["arrival"].strip().lower() == "arrival_s")
        else:
            for name, (unit, per_second) in product(COLUMNS["arrival"], _UNITS.items()):
                if f"{name}_{unit}" in plain:
                    self.of["arrival"], self.per_second = plain[f"{name}_{unit}"], per_second
                    break
        used = {*self.of.values()}
        self.unused = tuple(plain[p] for p in reversed(plain) if plain[p] not in used and p not in _ROW_NUMBERS)


_layout: Final = lru_cache(maxsize=64)(Layout)


def _matches(row: Row) -> bool:
    of = _layout_of(row).of
    return "response_tokens" in of or ("prompt" in of and "response" in of)


def _layout_of(row: Row) -> Layout:
    return _layout(tuple(n for n in row if isinstance(n, str)))


def _read(row: Row, index: int) -> Exchanges:
    columns = _layout_of(row)
    found = {meaning: row.get(name) for meaning, name in columns.of.items()}
    asked = found.get("prompt")
    problem = None if "prompt" not in columns.of else unusable_text(asked, "prompt")
    if problem is not None:
        return [Reject(problem)]
    notes = (f"with unused columns ({', '.join(columns.unused)})",) if columns.unused else ()
    arrival: object = found.get("arrival")
    if (time := number(arrival)) is not None:
        if columns.per_second:
            arrival = time / columns.per_second
        else:
            notes = (*notes, NO_UNIT)
    conversation, request = (_name(found.get(n)) for n in ("conversation", "request"))
    reason = text_or_none(found.get("finish_reason"))
    turn, limit = whole(found.get("turn")), whole(found.get("max_tokens"))
    record = Record(
        conversation or request or f"row-{index}",
        turn=turn if turn is not None and turn >= 0 else 0,
        prompt=None if asked is None else str(asked),
        model=text_or_none(found.get("model")),
        split=text_or_none(found.get("split")),
        censored=fields.was_cut_off(reason, found.get("response")),
        sample=max(0, whole(found.get("sample")) or 0),
        finish_reason=reason,
        max_tokens=limit if limit is not None and limit >= 1 else None,
    )
    lengths = {"prompt": found.get("prompt_tokens"), "response": found.get("response_tokens")}
    counts_turn = conversation is not None and turn is None
    item = counted(record, row, **lengths, arrival=arrival, notes=notes, counts_turn=counts_turn)
    if isinstance(item, Reject) or "response" not in columns.of:
        return [item]
    answer = found["response"]
    if item.record.response_tokens is not None and blank(answer):
        answer = None
    item = replace(item, answer=answer, missing=item.missing if "response_tokens" in columns.of else None)
    return [item]


def _name(value: object) -> str | None:
    return None if value is None or isinstance(value, (list, dict)) else text_or_none(str(value))


FORMAT: Final = Format(
    "plain",
    looks_like="columns like prompt_tokens and response_tokens, or prompt and response",
    about="any other table, by the usual names of columns: lengths, texts, arrivals in the unit of their name, "
    "conversation, turn, model, split, `max_tokens`",
    matches=_matches,
    read=_read,
)
