"""Traces of lengths without texts: of production systems (Azure, BurstGPT, Mooncake) and of vLLM's own tools."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ecoserve.data.fields import Row, first_of, id_of, limit_of, number, text_or_none, was_cut_off, whole
from ecoserve.data.formats.base import FAILED, NO_TIME, Exchange, Exchanges, Format, Reject, counted, has_fields
from ecoserve.data.records import Record

_MILLISECONDS: Final = 1e3
_NANOSECONDS: Final = 1e9
_TOKEN_IDS: Final = {"input_toks": "input_tok_ids", "output_toks": "output_tok_ids"}


def _azure(row: Row, index: int) -> Exchanges:
    """Time stamps are dates; those of 2023 name no time zone and are taken as UTC."""
    prompt, response, arrival = (row.get(name) for name in ("ContextTokens", "GeneratedTokens", "TIMESTAMP"))
    return [counted(Record(f"row-{index}"), row, prompt=prompt, response=response, arrival=arrival)]


def _burstgpt(row: Row, index: int) -> Exchanges:
    """Time stamps are seconds. Later releases name the session of a chat; its turns are counted along the file."""
    session = text_or_none(row.get("Session ID"))
    record = Record(session or f"row-{index}", model=text_or_none(row.get("Model")))
    prompt, response, arrival = (row.get(name) for name in ("Request tokens", "Response tokens", "Timestamp"))
    counts_turn = session is not None
    return [counted(record, row, prompt=prompt, response=response, arrival=arrival, counts_turn=counts_turn)]


def _mooncake(row: Row, index: int) -> Exchanges:
    """Time stamps are milliseconds. A hash id names 512 tokens of the prompt together with all before them."""
    time = number(row.get("timestamp"))
    if time is None:
        return [Reject(NO_TIME)]
    found = row.get("hash_ids")
    hashes = [whole(h) for h in found] if isinstance(found, (list, tuple)) else None
    if hashes is None or None in hashes:
        return [Reject("hash_ids are not a list of numbers")]
    record = Record(f"row-{index}", prefix_hashes=tuple(h for h in hashes if h is not None))
    prompt, response = row.get("input_length"), row.get("output_length")
    return [counted(record, row, prompt=prompt, response=response, arrival=time / _MILLISECONDS)]


def _vllm_bench(row: Row, index: int) -> Exchanges:
    """One object with a list for each quantity, one entry a request; one with an error or no answer failed."""
    prompts, answers = row.get("input_lens"), row.get("output_lens")
    if not isinstance(prompts, list) or not isinstance(answers, list):
        return [Reject("no single requests (saved without --save-detailed)")]
    if len(prompts) != len(answers):
        return [Reject("input_lens and output_lens are not equally many")]
    if not prompts:
        return [Reject("no requests")]
    model = text_or_none(row.get("model_id"))
    others = (row.get(name) for name in ("start_times", "generated_texts", "errors"))
    nothing = [None] * len(prompts)
    starts, texts, errors = (o if isinstance(o, list) and len(o) == len(prompts) else nothing for o in others)
    items: list[Exchange | Reject] = []
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        fields = {"input_lens": prompt, "output_lens": answer, "start_times": starts[i]}
        record = Record(f"run-{index}-{i}", model=model)
        item = counted(record, fields, prompt=prompt, response=answer, arrival=starts[i])
        item = replace(item, answer=text_or_none(texts[i])) if isinstance(item, Exchange) else item
        items.append(Reject(FAILED) if text_or_none(errors[i]) else item)
    return items


def _vllm(row: Row, index: int) -> Exchanges:
    """Logs of requests as LLMServingSim records them: the load (arrival in ns, token ids), or what became of it."""
    for count, ids in _TOKEN_IDS.items():
        if isinstance(row.get(ids), list) and whole(row.get(count)) != len(row[ids]):
            return [Reject("token ids and counts disagree")]
    arrival = first_of(row, "arrival_time", "arrival_s")
    if (ns := row.get("arrival_time_ns")) is not None:
        since_start = number(ns)
        if since_start is None:
            return [Reject(NO_TIME)]
        arrival = since_start / _NANOSECONDS
    reason = text_or_none(row.get("finish_reason"))
    record = Record(
        id_of(row, ("request_id", "id"), index),
        model=text_or_none(row.get("model")),
        censored=was_cut_off(reason),
        finish_reason=reason,
        max_tokens=limit_of(row),
    )
    return [counted(record, row, prompt=row.get("input_toks"), response=row.get("output_toks"), arrival=arrival)]


VLLM_BENCH: Final = Format(
    "vllm-bench",
    looks_like="input_lens[], output_lens[] (vllm bench serve --save-detailed)",
    about="results of vLLM's serving benchmark: start times, texts, errors",
    matches=has_fields("total_input_tokens", "request_throughput"),
    read=_vllm_bench,
)
VLLM: Final = Format(
    "vllm",
    looks_like="input_toks, output_toks, arrival_time_ns (or arrival_time)",
    about="recorded vLLM loads and request logs: token ids (held against their count), arrivals, finish reason",
    matches=has_fields("input_toks", "output_toks"),
    read=_vllm,
)
AZURE: Final = Format(
    "azure",
    looks_like="TIMESTAMP, ContextTokens, GeneratedTokens",
    about="Azure's LLM inference traces of 2023 and 2024: lengths, arrivals",
    matches=has_fields("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
    read=_azure,
)
MOONCAKE: Final = Format(
    "mooncake",
    looks_like="timestamp (ms), input_length, output_length, hash_ids",
    about="Mooncake's traces: lengths, arrivals, ids of shared prefixes",
    matches=has_fields("hash_ids", "timestamp", "input_length", "output_length"),
    read=_mooncake,
)
BURSTGPT: Final = Format(
    "burstgpt",
    looks_like="Timestamp, Model, Request tokens, Response tokens",
    about="BurstGPT's traces: lengths, arrivals, model, sessions as conversations",
    matches=has_fields("Timestamp", "Request tokens", "Response tokens"),
    read=_burstgpt,
)
