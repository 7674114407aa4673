"""Model outputs: one model's answer to one instruction a row (``instruction``, ``output``, ``generator``).

Rule: a row is read as Alpaca's, except that the prompt gives the conversation its id: answers of several models, or
several answers of one, to the same prompt are one conversation's, whatever the order of the rows, and
:attr:`~ecoserve.data.Record.model` tells them apart. This is the layout of AlpacaEval's ``model_outputs.json``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b

from ecoserve.data.formats.alpaca import instruction
from ecoserve.data.formats.base import Exchange, Reject, Row, whole


class ModelOutputs:
    """The format of AlpacaEval's model outputs."""

    name = "model_outputs"
    looks_like = "instruction, output, generator"
    own_ids = False

    def matches(self, row: Row) -> bool:
        """Whether the row has an instruction, an output, and says who made it."""
        return "instruction" in row and "output" in row and "generator" in row

    def read(self, row: Row, index: int) -> Iterator[Exchange | Reject]:
        """One exchange; rejected where there is no prompt."""
        item = instruction(row, index)
        if isinstance(item, Exchange):
            digest = blake2b((item.record.prompt or "").encode(), digest_size=8).hexdigest()
            sample = max(0, whole(row.get("sample")) or 0)
            item = replace(item, record=replace(item.record, conversation=f"prompt-{digest}", sample=sample))
        yield item
