"""Alpaca (prompt: instruction, then any input on a new line) and AlpacaEval's model outputs, read alike."""

from __future__ import annotations

from dataclasses import replace
from hashlib import blake2b
from typing import Final

from ecoserve.data.fields import Row, first_of, text_or_none, unusable_text, was_cut_off, whole
from ecoserve.data.formats.base import Exchange, Exchanges, Format, Reject, each_row, has_fields
from ecoserve.data.records import Record


def _read(row: Row, index: int) -> list[Exchange | Reject]:
    asked, extra = row.get("instruction"), row.get("input")
    problem = unusable_text(asked, "prompt")
    if problem is None and extra not in (None, ""):
        problem = unusable_text(extra, "input")
        problem = None if problem == "empty input" else problem
    if problem is not None:
        return [Reject(problem)]
    reason = text_or_none(row.get("finish_reason"))
    record = Record(
        conversation=f"row-{index}",
        prompt=f"{asked}\n{extra}" if text_or_none(extra) else str(asked),
        model=text_or_none(first_of(row, "model", "generator")),
        split=text_or_none(row.get("split")),
        censored=was_cut_off(reason, row.get("output")),
        finish_reason=reason,
    )
    return [Exchange(record, row.get("output"), row)]


def _read_outputs(row: Row, index: int) -> Exchanges:
    """The prompt names the conversation: several models' answers to it, in any order, are one conversation's."""
    (item,) = _read(row, index)
    if isinstance(item, Exchange):
        digest = blake2b((item.record.prompt or "").encode(), digest_size=8).hexdigest()
        sample = max(0, whole(row.get("sample")) or 0)
        item = replace(item, record=replace(item.record, conversation=f"prompt-{digest}", sample=sample))
    return [item]


ALPACA: Final = Format(
    "alpaca",
    looks_like="instruction, input, output",
    about="Stanford Alpaca and data sets in its layout: `split`, counts, lists of lengths by `--length-field`",
    matches=has_fields("instruction", "output"),
    opened=each_row(_read),
)
MODEL_OUTPUTS: Final = Format(
    "model_outputs",
    looks_like="instruction, output, generator",
    about="AlpacaEval's `model_outputs.json`: generator as model; answers to one prompt are one conversation",
    matches=has_fields("instruction", "output", "generator"),
    opened=each_row(_read_outputs),
)
