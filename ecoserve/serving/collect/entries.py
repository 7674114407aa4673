"""One line of the journal: which sample of which prompt, and how it ended.

Rule: a line that is not exactly such a one is no line; what it was about is asked again.
"""

from __future__ import annotations

import json
from typing import Any, TypeGuard

from ecoserve.serving.collect.replies import MOST_TOKENS, Answer, Failed, Outcome, Refused


def to_line(prompt: int, sample: int, outcome: Outcome) -> bytes:
    """The line, with its newline; the only one in it."""
    row: dict[str, Any] = {"p": prompt, "s": sample}
    if isinstance(outcome, Answer):
        row |= {"tokens": outcome.tokens, "reason": outcome.reason}
        row |= {"prompt_tokens": outcome.prompt_tokens} if outcome.prompt_tokens is not None else {}
        row |= {"text": outcome.text} if outcome.text is not None else {}
    else:
        row["refused" if isinstance(outcome, Refused) else "failed"] = outcome.why
    return json.dumps(row, separators=(",", ":")).encode() + b"\n"


def from_line(line: bytes) -> tuple[int, int, Outcome] | None:
    """Prompt, sample and outcome of a line; None if it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not _count(row.get("p")) or not _count(row.get("s")):
        return None
    prompt, sample = row["p"], row["s"]
    if isinstance(why := row.get("refused"), str):
        return prompt, sample, Refused(why)
    if isinstance(why := row.get("failed"), str):
        return prompt, sample, Failed(why)
    tokens, reason, prompt_tokens, text = (row.get(k) for k in ("tokens", "reason", "prompt_tokens", "text"))
    if not _count(tokens) or not 1 <= tokens <= MOST_TOKENS or not isinstance(reason, str):
        return None
    if not (prompt_tokens is None or _count(prompt_tokens)) or not (text is None or isinstance(text, str)):
        return None
    return prompt, sample, Answer(tokens, reason, prompt_tokens, text)


def _count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0
