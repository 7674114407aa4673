"""Alpaca: one instruction with its answer a row (``instruction``, ``input``, ``output``).

Rule: the prompt is the instruction, then the input on a new line where there is one. Rows may carry a ``split``,
lists of token lengths (``--length-field``), and the name of the model that answered (``model``, ``generator``).
"""

from __future__ import annotations

from collections.abc import Iterator

from ecoserve.data.formats.base import Exchange, Reject, Row, first_of, text_or_none, unusable_text, whole
from ecoserve.data.formats.values import was_cut_off
from ecoserve.data.records import Record


class Alpaca:
    """The format of Stanford Alpaca and the data sets that follow it."""

    name = "alpaca"
    looks_like = "instruction, input, output"
    own_ids = False

    def matches(self, row: Row) -> bool:
        """Whether the row has an instruction and an output."""
        return "instruction" in row and "output" in row

    def read(self, row: Row, index: int) -> Iterator[Exchange | Reject]:
        """One exchange; rejected where instruction and input make no prompt."""
        yield instruction(row, index)


def instruction(row: Row, index: int) -> Exchange | Reject:
    """The exchange of a row with an instruction, named by the row's number."""
    asked, extra = row.get("instruction"), row.get("input")
    problem = unusable_text(asked, "prompt")
    if problem is None and extra not in (None, ""):
        problem = unusable_text(extra, "input")
        problem = None if problem == "empty input" else problem
    if problem is not None:
        return Reject(problem)
    reason = text_or_none(row.get("finish_reason"))
    record = Record(
        conversation=f"row-{index}",
        prompt=f"{asked}\n{extra}" if text_or_none(extra) else str(asked),
        response_tokens=whole(first_of(row, "response_tokens", "output_tokens", "completion_tokens")),
        prompt_tokens=whole(first_of(row, "prompt_tokens", "input_tokens")),
        model=text_or_none(first_of(row, "model", "generator")),
        split=text_or_none(row.get("split")),
        censored=was_cut_off(reason, row.get("output")),
        finish_reason=reason,
    )
    return Exchange(record, row.get("output"), row)
