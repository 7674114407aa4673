"""What a trace format is: it turns one row into exchanges.

A row that it cannot use becomes a :class:`Reject` whose reason is counted, never an exception. Token counts, duplicates
and limits are the loader's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from ecoserve.data.fields import Row, blank, seconds, whole
from ecoserve.data.records import Record

FAILED: Final = "failed request (no answer tokens)"
NO_TIME: Final = "arrival is not a time"
#: No prompt has more tokens than this; a length above it, or below 1, is dirt.
MAX_PROMPT_TOKENS: Final = 2**24


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request as the row has it; its ``record`` has lengths only if the row itself counts tokens.

    ``answer`` is as found, of any type; ``length_field`` and ``sample_field`` are looked up in ``fields``; ``notes``
    are counted if the record is kept. ``missing``: the reason to count without an answer's text or length; ``None``:
    the loader's. ``counts_turn``: the file states the conversation, but not the turn: the loader counts.
    """

    record: Record
    answer: object
    fields: Row
    notes: tuple[str, ...] = ()
    missing: str | None = None
    counts_turn: bool = False


@dataclass(frozen=True, slots=True)
class Reject:
    """An exchange that cannot be used, and why."""

    reason: str


Exchanges = Iterable[Exchange | Reject]


@dataclass(frozen=True, slots=True)
class Format:
    """A trace format: what ``--format`` calls it, the fields by which a person knows it, and the text of docs/data.md.

    ``matches``: whether a row has its fields. ``read``: the exchanges of a row and its 0-based number in the file.
    ``own_ids``: conversation and turn are the file's own, so that they tell equal exchanges apart.
    """

    name: str
    looks_like: str
    about: str
    matches: Callable[[Row], bool]
    read: Callable[[Row, int], Exchanges]
    own_ids: bool = False


def has_fields(*names: str) -> Callable[[Row], bool]:
    """A :attr:`Format.matches` of rows that have all fields ``names``."""
    return lambda row: all(name in row for name in names)


def counted(
    record: Record,
    fields: Row,
    *,
    prompt: object,
    response: object,
    arrival: object = None,
    notes: tuple[str, ...] = (),
    counts_turn: bool = False,
) -> Exchange | Reject:
    """The exchange of a row that holds lengths (``prompt``, ``response``) but no text.

    An answer of no tokens is a request that failed; a prompt's length that is no length spoils the row, since a
    simulation would run it. Only the answer's length may come from elsewhere (``--length-field``).
    """
    prompt_tokens = whole(prompt)
    if prompt_tokens is None and not blank(prompt):
        return Reject("prompt length is not a whole number")
    if prompt_tokens is not None and not 1 <= prompt_tokens <= MAX_PROMPT_TOKENS:
        return Reject("absurd prompt length")
    time = seconds(arrival)
    if time is None and not blank(arrival):
        return Reject(NO_TIME)
    tokens = whole(response)
    missing = "no answer length" if blank(response) else "answer length is not a whole number"
    if tokens == 0:
        tokens, missing = None, FAILED
    record = replace(record, prompt_tokens=prompt_tokens, response_tokens=tokens, arrival_s=time)
    return Exchange(record, None, fields, notes, missing=missing, counts_turn=counts_turn)
