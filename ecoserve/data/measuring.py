"""How long prompts and answers are, in tokens.

Rule: counts of the served model's tokenizer where it is given, else the trace's own, else characters / 4.0; never
two sources for the responses of one trace. An answer that ended by itself is one token longer than its text: EOS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from ecoserve.data.records import LoadReport, Record
from ecoserve.data.tokens import TokenCounter

#: ``length_source`` of the trace's own counts.
OWN: Final = "trace"
#: No answer has more tokens than this; a length above it, or below 1, is dirt.
MAX_RESPONSE_TOKENS: Final = 2**20
#: Characters a token, where nothing better is known.
CHARACTERS_PER_TOKEN: Final = 4.0
_BY_CHARACTERS: Final = f"characters/{CHARACTERS_PER_TOKEN}"
#: Fewest lengths from which a cap can be told from chance.
_FEWEST: Final = 100


def absurd(tokens: int | None) -> bool:
    """Whether ``tokens`` (``None``: not known) cannot be the length of an answer."""
    return tokens is not None and not 1 <= tokens <= MAX_RESPONSE_TOKENS


def measure_responses(records: Sequence[Record], tokenizer: str | None, report: LoadReport) -> tuple[list[Record], str]:
    """Fill ``response_tokens``; drop and count what stays without.

    Returns:
        The records left, and the ``length_source``.

    Raises:
        TraceError: if the tokenizer cannot be loaded.
    """
    counted = sum(r.response_tokens is not None for r in records)
    texts = [r for r in records if r.response is not None]
    if tokenizer is not None and texts:
        source = f"tokenizer:{tokenizer}"
        counts = iter(TokenCounter(tokenizer).count([r.response or "" for r in texts], "answers"))
        new = [
            replace(r, response_tokens=next(counts) + (not r.censored)) if r.response is not None else r
            for r in records
        ]
        mixed = [r.response is None for r in records]
    elif counted * 2 > len(records):
        source, new, mixed = OWN, list(records), [r.response_tokens is None for r in records]
    else:
        source = _BY_CHARACTERS
        new = [replace(r, response_tokens=_by_characters(r.response)) if r.response is not None else r for r in records]
        mixed = [r.response is None for r in records]
    kept = []
    for record, other_source in zip(new, mixed, strict=True):
        if other_source:
            report.drop("no length" if source == OWN else "no answer text to count")
        elif absurd(record.response_tokens):
            report.drop("absurd length")
        else:
            kept.append(record)
    return kept, source


def measure_prompts(records: Sequence[Record], tokenizer: str | None) -> tuple[list[Record], str]:
    """Fill ``prompt_tokens`` where there is a text; returns the records and the ``prompt_length_source``."""
    if tokenizer is not None and any(r.prompt is not None for r in records):
        counts = TokenCounter(tokenizer).count_contexts([r.chat() for r in records])
        source = f"tokenizer:{tokenizer}"
        return [
            replace(r, prompt_tokens=n) if r.prompt is not None else r for r, n in zip(records, counts, strict=True)
        ], source
    if all(r.prompt_tokens is not None or r.prompt is None for r in records):
        return list(records), OWN
    filled = [
        r if r.prompt is None else replace(r, prompt_tokens=_by_characters("".join(m.content for m in r.chat())))
        for r in records
    ]
    return filled, _BY_CHARACTERS


def _by_characters(text: str) -> int:
    return max(1, round(len(text) / CHARACTERS_PER_TOKEN))


def mark_cut_off(records: Sequence[Record]) -> list[Record]:
    """Set ``censored`` where a length reached the cap that these lengths have (:func:`find_cap`)."""
    cap = find_cap([r.response_tokens for r in records if r.response_tokens is not None])
    if cap is None:
        return list(records)
    return [replace(r, censored=True) if (r.response_tokens or 0) >= cap and not r.censored else r for r in records]


def find_cap(lengths: Sequence[int]) -> int | None:
    """The limit at which answers were cut off, told from where their lengths (tokens) pile up; else ``None``.

    Rule: the smallest length c that nothing exceeds by more than 1 % and that is at least 10 times, and by at least
    10 answers, more frequent than the lengths from 0.9 c to c are on average. (A limit is often overshot by a token
    or two: counts may include EOS or a special token.)
    """
    x = np.asarray(lengths, dtype=np.int64)
    if len(x) < _FEWEST:
        return None
    top = int(x.max())
    for cap in range(max(2, int(top / 1.01)), top + 1):
        at = int((x == cap).sum())
        low = int(0.9 * cap)
        usual = float(((x >= low) & (x < cap)).sum()) / max(1, cap - low)
        if at >= 10 + usual and at >= 10 * usual:
            return cap
    return None
