"""Model outputs: one model's answer to one instruction a row, as in AlpacaEval's ``model_outputs.json``.

A row is read as Alpaca's, except that the prompt gives the conversation its id: answers of several models, or several
answers of one, to the same prompt are one conversation's, in any order, and the model tells them apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from typing import Final

from ecoserve.data.fields import Row, whole
from ecoserve.data.formats.alpaca import instruction
from ecoserve.data.formats.base import Exchange, Format, Reject, has_fields


def _read(row: Row, index: int) -> Iterator[Exchange | Reject]:
    item = instruction(row, index)
    if isinstance(item, Exchange):
        digest = blake2b((item.record.prompt or "").encode(), digest_size=8).hexdigest()
        sample = max(0, whole(row.get("sample")) or 0)
        item = replace(item, record=replace(item.record, conversation=f"prompt-{digest}", sample=sample))
    yield item


FORMAT: Final = Format(
    "model_outputs",
    looks_like="instruction, output, generator",
    about="AlpacaEval's `model_outputs.json`: generator as model; answers to one prompt are one conversation",
    matches=has_fields("instruction", "output", "generator"),
    read=_read,
)
