"""Results of ``vllm bench serve --save-detailed``: one object with a list for each quantity, one entry a request.

``input_lens``, ``output_lens``, ``start_times`` (seconds of a clock of its own), ``generated_texts`` and ``errors`` are
read side by side; a request with an error, or without an answer, failed. Prompts are not saved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from ecoserve.data.fields import Row, text_or_none
from ecoserve.data.formats.base import FAILED, Exchange, Format, Reject, counted, has_fields
from ecoserve.data.records import Record


def _read(row: Row, index: int) -> Iterator[Exchange | Reject]:
    prompts, answers = row.get("input_lens"), row.get("output_lens")
    if not isinstance(prompts, list) or not isinstance(answers, list):
        yield Reject("no single requests (saved without --save-detailed)")
        return
    if len(prompts) != len(answers):
        yield Reject("input_lens and output_lens are not equally many")
        return
    if not prompts:
        yield Reject("no requests")
        return
    model = text_or_none(row.get("model_id"))
    starts, texts, errors = (_as_long(row.get(n), len(prompts)) for n in ("start_times", "generated_texts", "errors"))
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        if text_or_none(errors[i]):
            yield Reject(FAILED)
            continue
        fields = {"input_lens": prompt, "output_lens": answer, "start_times": starts[i]}
        record = Record(f"run-{index}-{i}", model=model)
        item = counted(record, fields, prompt=prompt, response=answer, arrival=starts[i])
        yield replace(item, answer=text_or_none(texts[i])) if isinstance(item, Exchange) else item


def _as_long(values: Any, n: int) -> list[Any]:
    """``values`` if they are a list of ``n``, else ``n`` times nothing."""
    return values if isinstance(values, list) and len(values) == n else [None] * n


FORMAT: Final = Format(
    "vllm-bench",
    looks_like="input_lens[], output_lens[] (vllm bench serve --save-detailed)",
    about="results of vLLM's serving benchmark: start times, texts, errors",
    matches=has_fields("total_input_tokens", "request_throughput"),
    read=_read,
)
