"""Traces of lengths without texts, of production systems (Azure, BurstGPT, Mooncake, Bailian) and of vLLM's own tools.

All are tables of known fields; what is here is the unit and the block size that each has without stating it. Azure's
dates of 2023 name no time zone and are taken as UTC. A hash id names a block of the prompt with all before it.
"""

from __future__ import annotations

from typing import Final

from ecoserve.data.fields import Row
from ecoserve.data.formats.table import Convention, table

AZURE: Final = table(
    "azure",
    "TIMESTAMP, ContextTokens, GeneratedTokens",
    "Azure's LLM inference traces of 2023 and 2024: lengths, arrivals",
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
)
BURSTGPT: Final = table(
    "burstgpt",
    "Timestamp, Model, Request tokens, Response tokens",
    "BurstGPT's traces: lengths, arrivals (s), model, sessions",
    ("Timestamp", "Request tokens", "Response tokens"),
    Convention(per_second=1.0, certain=True),
)
BAILIAN: Final = table(
    "bailian",
    "chat_id, parent_chat_id, timestamp (s), input_length, output_length, hash_ids",
    "Qwen's traces of Bailian: lengths, arrivals, ids of shared blocks of 16 tokens; a chain of parents is a session",
    ("chat_id", "parent_chat_id", "input_length", "output_length"),
    Convention(per_second=1.0, block=16),
)


def _is_mooncake(row: Row) -> bool:
    """With hashes, or as AIPerf takes it: sessions, waits, texts."""
    lengths = "output_length" in row and ("input_length" in row or "text_input" in row)
    return lengths and not row.keys().isdisjoint(("hash_ids", "session_id", "delay", "text_input"))


MOONCAKE: Final = table(
    "mooncake",
    "timestamp or delay (ms), input_length, output_length, hash_ids",
    "Mooncake's traces, as AIPerf also takes them: lengths, arrivals or waits between turns, sessions, ids of shared "
    "blocks of 512 tokens",
    (),
    Convention(per_second=1e3, block=512),
    matches=_is_mooncake,
)
VLLM: Final = table(
    "vllm",
    "input_toks, output_toks, arrival_time_ns (or arrival_time)",
    "recorded vLLM loads and request logs: token ids (held against their count), arrivals, finish reason",
    ("input_toks", "output_toks"),
    Convention(per_second=1.0, certain=True),
)
