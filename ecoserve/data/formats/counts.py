"""Rows that hold lengths and arrivals but no text, as traces of production systems do.

Rule: an answer of no tokens is a request that failed; a prompt's length that is no length spoils the row, since a
simulation would run it. Only the answer's length may come from elsewhere (``--length-field``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ecoserve.data.formats.base import Exchange, Reject, Row, whole
from ecoserve.data.formats.values import seconds
from ecoserve.data.records import Record

FAILED: Final = "failed request (no answer tokens)"
NO_TIME: Final = "arrival is not a time"
#: No prompt has more tokens than this; a length above it, or below 1, is dirt.
MAX_PROMPT_TOKENS: Final = 2**24


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
    """The exchange of a row of lengths.

    Args:
        record: what else is known of the request.
        fields: where ``length_field`` is looked up.
        prompt: tokens of the prompt as the file has them; ``None`` or blank where it does not say.
        response: the same of the answer.
        arrival: when it came, by :func:`~ecoserve.data.formats.values.seconds`.
        notes: peculiarities to count.
        counts_turn: as in :class:`Exchange`.
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


def blank(value: object) -> bool:
    """Whether a field is there but holds nothing, or is not there."""
    return value is None or (isinstance(value, str) and not value.strip())
