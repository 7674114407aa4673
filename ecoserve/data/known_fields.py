"""The one table of fields that files keep counts, times, sessions and limits in, and the units of times.

A field is known by its name: in any case, in ``camelCase``, with spaces or hyphens, with a unit at its end
(``delay_ms``), alone or inside objects (``usage.output_tokens``). Of several fields with one meaning the first in the
table counts that a row has. What a file does not say is inferred from evidence and stated: :func:`clock_of`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from ecoserve.data.fields import first_of, number, seconds, whole

#: Meaning -> names, the first one there counts. A name with a dot is the end of a path. Of APIs, gateways (OpenRouter,
#: LiteLLM, Langfuse), tracing (OpenInference, OpenTelemetry), benchmarks and published traces.
NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "response_tokens": (
        *("response_tokens", "native_tokens_completion", "output_tokens", "completion_tokens", "generated_tokens"),
        *("usage.completion_tokens", "usage.output_tokens", "output_sequence_length", "generation_tokens"),
        *("decode_tokens", "num_decode_tokens", "num_output_tokens", "num_generated_tokens", "num_completion_tokens"),
        *("tokens_completion", "output_token_length", "output_length", "output_len", "response_length"),
        *("response_len", "completion_length", "completion_len", "decode_length", "decode_len", "generated_length"),
        *("output_toks", "tokens_out", "out_tokens", "tokens_output", "output_usage", "completion_usage"),
        *("usage_details.output", "usage_details.completion_tokens", "usage.output", "usage.completion"),
        *("completion_token_count", "candidates_token_count", "output_token_count", "response_token_count"),
        *("token_count.completion", "token_count_completion", "token_count_output", "gen_ai.usage.output_tokens"),
        *("eval_count", "generated_token_count", "response_token_len", "output_metrics.text_tokens"),
        *(
            "num_generation_tokens",
            "number_output_tokens",
            "answer_tokens",
            "visible_tokens",
            "answer_length",
            "output_size",
            "token_size",
            "output_num_tokens",
            "gen_tokens",
            "gen_len",
            "token_len",
            "osl",
        ),
    ),
    "prompt_tokens": (
        *("prompt_tokens", "native_tokens_prompt", "input_tokens", "context_tokens", "prefill_tokens"),
        *("usage.prompt_tokens", "usage.input_tokens", "input_sequence_length", "request_tokens"),
        *("num_prefill_tokens", "num_prompt_tokens", "num_input_tokens", "num_context_tokens", "tokens_prompt"),
        "number_input_tokens",
        *("input_token_length", "input_length", "input_len", "prompt_length", "prompt_len", "prefill_length"),
        *("prefill_len", "context_length", "input_toks", "tokens_in", "in_tokens", "tokens_input", "input_usage"),
        *("prompt_usage", "usage_details.input", "usage_details.prompt_tokens", "usage.input", "usage.prompt"),
        *("prompt_token_count", "input_token_count", "token_count.prompt", "token_count_prompt", "token_count_input"),
        *("gen_ai.usage.input_tokens", "prompt_eval_count", "prompt_token_len", "input_metrics.text_tokens"),
        *("input_size", "prompt_size", "input_num_tokens", "uncached_input_tokens", "isl"),
    ),
    "thinking_tokens": (
        *("thinking_tokens", "native_tokens_reasoning", "reasoning_tokens", "tokens_reasoning"),
        *("reasoning_token_count", "thoughts_token_count", "output_reasoning_tokens", "output_reasoning"),
        *("thinking_length", "reasoning_length", "num_reasoning_tokens", "num_thinking_tokens"),
        *("completion_details.reasoning", "number_reasoning_tokens"),
    ),
    "total_tokens": (
        *("total_tokens", "total_token_count", "total_usage", "usage_details.total", "usage.total", "tokens_total"),
        *("num_total_tokens", "number_total_tokens", "total_length", "token_count.total"),
    ),
    #: tokens of the prompt that Anthropic's and Langfuse's ``input`` leaves out
    "cached_tokens": (
        *("cache_read_input_tokens", "cache_creation_input_tokens", "input_cached_tokens", "input_cache_read"),
        *("input_cache_creation", "input_cache_write", "usage_details.cache_read_input_tokens"),
        *("cache_read_tokens", "cache_write_tokens", "cache_creation_tokens", "cache_write_input_tokens"),
    ),
    "response_characters": (
        *("response_chars", "response_characters", "answer_chars", "answer_characters", "output_chars"),
        *("output_characters", "completion_chars", "completion_characters", "generated_chars", "response_char_count"),
    ),
    "thinking_characters": ("thinking_chars", "thinking_characters", "reasoning_chars", "reasoning_characters"),
    "prompt_ids": ("input_tok_ids", "prompt_token_ids", "input_token_ids", "prompt_ids"),
    "response_ids": ("output_tok_ids", "output_token_ids", "response_token_ids", "completion_token_ids"),
    "prompt": (
        *("prompt", "question", "query", "instruction", "input", "messages", "prompt_text", "input_text"),
        *("text_input", "input_messages", "gen_ai.prompt"),
    ),
    "system": ("system", "system_prompt", "system_message"),
    "response": (
        *("response", "completion", "answer", "output", "response_text", "output_text", "generated_text"),
        *("text_output", "output_messages", "gen_ai.completion"),
    ),
    "thinking": ("reasoning_output", "reasoning_content", "reasoning_text", "thinking_text", "reasoning"),
    "arrival": (
        *("arrival", "arrival_time", "arrived_at", "request_start", "request_start_time", "request_time"),
        *(
            "request_timestamp",
            "request_created_at",
            "arrival_timestamp",
            "timestamp",
            "time_stamp",
            "start_time",
            "start_timestamp",
            "started_at",
            "time",
        ),
        *("created", "created_at", "create_time", "creation_time", "created_time", "created_date", "tstamp", "ts"),
        *("datetime", "date_time", "event_time", "sent_at", "received_at", "start", "log_time"),
    ),
    #: seconds from the end of the session's last answer to this request
    "think": (
        *("think", "think_time", "delay", "thinking_time_before", "inter_turn_delay", "turn_delay", "wait_before"),
        *("pause_before", "delay_before"),
    ),
    "session": (
        *("x_correlation_id", "conversation_id", "conversation", "session_id", "session", "thread_id", "chat_id"),
        *(
            "conversation_hash",
            "session.id",
            "gen_ai.conversation.id",
            "conv_id",
            "dialog_id",
            "dialogue_id",
            "thread",
            "message_tree_id",
            "trace_id",
        ),
    ),
    "parent": ("parent_chat_id", "parent_request_id", "parent_turn_id", "parent_id"),
    "request": (
        *("custom_id", "request_id", "req_id", "x_request_id", "id", "uuid", "generation_id", "chat_id"),
        *("question_id", "observation_id", "prompt_id"),
    ),
    "turn": ("turn", "turn_id", "turn_index", "turn_number", "round"),
    "sample": ("sample", "sample_id", "sample_index", "choice_index"),
    "model": (
        *("model", "model_name", "generator", "served_model", "model_id", "provided_model_name", "model_permaslug"),
        *("gen_ai.request.model", "gen_ai.response.model"),
    ),
    "split": ("split",),
    "finish_reason": (
        *(
            "finish_reason",
            "stop_reason",
            "done_reason",
            "finish_reason_normalized",
            "native_finish_reason",
            "finish_reason_raw",
        ),
    ),
    "max_tokens": (
        *("max_completion_tokens", "max_output_tokens", "max_tokens", "max_new_tokens", "max_response_tokens"),
    ),
    "prefix_hashes": ("hash_ids", "prefix_hashes", "block_hashes", "block_ids", "prefix_hash_ids"),
    "block_size": ("block_size", "hash_block_size", "prefix_block_size", "prefix_block_tokens", "block_tokens"),
    "time_unit": ("time_unit", "timestamp_unit", "unit_of_time", "arrival_unit"),
    "count_unit": ("usage.unit", "usage_unit", "unit", "token_unit"),
    "cancelled": ("was_cancelled", "cancelled", "canceled", "aborted"),
    "error": ("error", "error_message", "exception", "error_code"),
    "status": ("status", "status_code", "level"),
    "kind": ("call_type", "observation_type", "run_type", "type"),
    "requests": ("num_model_requests", "num_requests", "request_count", "requests_count", "n_requests", "requests"),
}
#: Names that say something only at the top of a row, not inside its objects.
_VAGUE: Final = frozenset(
    (
        *("prompt", "input", "output", "response", "answer", "completion", "question", "query", "messages", "time"),
        *("created", "start", "ts", "think", "delay", "id", "uuid", "session", "conversation", "thread", "turn"),
        *("round", "sample", "model", "split", "error", "status", "level", "type", "unit", "system", "osl", "isl"),
        *("timestamp", "created_at", "block_size", "request_id", "aborted", "thinking", "reasoning", "model_id"),
        *("instruction", "parent_id", "date", "generator", "context_length", "question_id", "chat_id", "name"),
        *("context_tokens", "trace_id", "start_time", "max_tokens"),
    )
)
#: Objects in which even vague names are a request's own (aiperf, guidellm, Langfuse).
_OWN_OBJECTS: Final = frozenset(("metadata", "metrics", "info", "timings", "model_parameters"))
#: Objects, also written as JSON text, that are looked into.
OBJECTS: Final = frozenset((*_OWN_OBJECTS, "usage", "usage_details", "usage_object", "attributes"))
#: Counts of an answer that leave its thinking out.
_WITHOUT_THINKING: Final = frozenset(
    ("answer_tokens", "visible_tokens", "output_token_count", "answer_length", "candidates_token_count")
)
#: Objects that hold no count and no time of a request's.
_FOREIGN: Final = re.compile(
    r"(?:^|_)(?:costs?|prices?|prompt_tokens_details|input_tokens_details|labels?|tags?)(?:_|$)"
)
#: Fields of known meaning that no record needs: sums, limits, prices, durations, forecasts, ends.
_NOT_NEEDED: Final = re.compile(
    r"(?:^|[_.])(?:total|totals|predicted|prediction|estimated|max|min|limit|budget|avg|mean|cost|price|spend|cache[ds]?"
    r"|creation|accepted|rejected|audio|image|latency|latencies|durations?|elapsed|ttfts?|tpot|itls?|throughput|rate"
    r"|ratio|pd|per|end|ended|finish|finished|ack|first|last|completion_start|updated|modified|queued|dequeued|"
    r"scheduled|resolve|api|version|hash|key|port|seed|temperature|top|cancellation|worker|expires?|tool|system|"
    r"words?|finalized|targeted|index|offset|billed|generation_time|response_time|processing)(?:[_.]|$)"
)
_COUNT: Final = re.compile(r"(?:^|[_.])(?:tokens?|toks?|length|len|chars?|characters?)(?:[_.]|$)")
_TIME: Final = re.compile(
    r"(?:^|[_.])(?:time|timestamp|times|date|datetime|arrival|arrived|at|delay|think|start|clock)(?:[_.]|$)"
)
_SESSION: Final = re.compile(r"(?:^|[_.])(?:session|conversation|conv|dialog|dialogue|thread|chat|parent)(?:[_.]|$)")

#: Names of units of time -> units in a second.
UNIT_NAMES: Final = {
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("ms", "msec", "msecs", "milli", "millis", "millisecond", "milliseconds"), 1e3),
    **dict.fromkeys(("us", "usec", "usecs", "micro", "micros", "microsecond", "microseconds"), 1e6),
    **dict.fromkeys(("ns", "nsec", "nano", "nanos", "nanosecond", "nanoseconds"), 1e9),
}
#: Units that a time may be in -> units in a second.
UNITS: Final = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
_CALLED: Final = {1.0: "seconds", 1e3: "milliseconds", 1e6: "microseconds", 1e9: "nanoseconds"}
_WITH_UNIT: Final = re.compile(rf"(.+?)(?:_in|_unix|_epoch)?_({'|'.join(UNIT_NAMES)})")
#: Where one word begins in ``camelCase``.
_WORD: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_IN_BRACKETS: Final = re.compile(r"[\s_]*[(\[]([A-Za-z]+)[)\]]")
_TIMES: Final = ("arrival", "think")
#: Numbers between these are seconds since 1970, of 2001 to 2100.
_EPOCH: Final = (1.0e9, 4.2e9)
#: Where larger numbers are milli-, micro- or nanoseconds since 1970.
_EPOCH_MS: Final = 9e11
#: Requests a second beyond which times are no nanoseconds but milliseconds since 1970.
_MOST_RATE: Final = 1e5
#: What is usual: requests a second of a trace, and seconds between an answer and the next question.
USUAL_RATE: Final = 1.0
USUAL_THINK_S: Final = 3.0
#: Powers of ten from what is usual within which a format's unit is taken without a warning; and, for higher rates
#: (loads that were made), with one. Beyond, another unit is taken if it is nearer.
_NEAR: Final = 1.5
_HIGH: Final = 2.5


@lru_cache(maxsize=4096)
def plain_name(name: str) -> str:
    """A field's name as the table has it: lower case, words joined by ``_``, a unit in brackets behind one."""
    name = _IN_BRACKETS.sub(r"_\1", name.strip())
    return re.sub(r"[\s\-]+", "_", _WORD.sub("_", name)).lower()


@lru_cache(maxsize=4096)
def base_and_unit(name: str) -> tuple[str, float]:
    """A plain name without the unit at its end, and the units in a second; 0 where it has none."""
    found = _WITH_UNIT.fullmatch(name)
    return (found[1], UNIT_NAMES[found[2]]) if found else (name, 0.0)


@lru_cache(maxsize=4096)
def meanings_of(path: tuple[str, ...]) -> tuple[tuple[str, int], ...]:
    """What a field at ``path`` (names from the row inwards) may be: meanings, and the place of its name in each."""
    plain = [plain_name(part) for part in path]
    if plain[-1] == "value" and len(plain) > 1:
        plain.pop()  # AIPerf's {"value": 9, "unit": "tokens"}
    if any(_FOREIGN.search(part) for part in plain[:-1]):
        return ()
    dotted = ".".join(plain)
    base = base_and_unit(dotted)[0]
    own = all(part in _OWN_OBJECTS for part in dotted.split(".")[:-1])
    found = []
    for meaning, names in NAMES.items():
        whole_name = base if meaning in _TIMES else dotted
        for place, name in enumerate(names):
            inner = whole_name.endswith(f".{name}") and (own or name not in _VAGUE)
            if whole_name == name or inner:
                found.append((meaning, place))
                break
    return tuple(found)


def named(row: Mapping[str, object], meaning: str) -> object:
    """What the fields of ``meaning`` hold at the top of ``row``: the first value that is there, else ``None``."""
    return next((value for _, value in all_named(row, meaning)), None)


def all_named(row: Mapping[str, object], meaning: str) -> list[tuple[str, object]]:
    """The fields of ``meaning`` at the top of ``row`` that hold something, in the table's order."""
    return [(n, row[n]) for n in _places(tuple(n for n in row if isinstance(n, str)), meaning) if row[n] is not None]


@lru_cache(maxsize=1024)
def _places(names: tuple[str, ...], meaning: str) -> tuple[str, ...]:
    ranked = [(place, i, n) for i, n in enumerate(names) for found, place in meanings_of((n,)) if found == meaning]
    return tuple(n for _, _, n in sorted(ranked))


def looks_like(path: tuple[str, ...], values: Sequence[object]) -> str | None:
    """What an unused field looks like by its name and ``values``: a count, a time, a session, or nothing of those."""
    name = ".".join(plain_name(part) for part in path)
    if _FOREIGN.search(name) or _NOT_NEEDED.search(name):
        return None
    values = [v for v in values if v is not None]
    if _COUNT.search(name) and values and all(_counts(v) for v in values):
        return "a count"
    if _TIME.search(base_and_unit(name)[0]) and values and all(seconds(v) is not None for v in values):
        return "a time"
    scalars = [v for v in values if isinstance(v, str | int) and not isinstance(v, bool)]
    repeated = len(set(scalars)) < len(scalars) or (_SESSION.search(name) is not None and "parent" in name)
    return "a session" if _SESSION.search(name) and len(scalars) > 1 and repeated else None


def _counts(value: object) -> bool:
    values = value if isinstance(value, list | tuple) and value else [value]
    return all((whole(v) if isinstance(v, str | int | float) else None) is not None for v in values)


@dataclass(frozen=True, slots=True)
class Clock:
    """How a column of times is read: ``per_second`` units are a second; 0: dates, or numbers since 1970.

    ``how``: what is known of it, for the report; ``guess``: why it may be wrong, ``None`` where the file says it.
    """

    per_second: float
    how: str
    guess: str | None = None

    def seconds(self, value: object) -> float | None:
        """``value`` in seconds, ``None`` if it is no time from the clock's zero on."""
        time = number(value)
        if time is None or not self.per_second:
            return seconds(value)
        return time / self.per_second if time >= 0 else None


def clock_of(
    column: str,
    values: Sequence[object],
    *,
    given: float | None = None,
    usual: float | None = None,
    certain: bool = False,
    durations: bool = False,
) -> Clock:
    """The clock of ``column``, whose first values are ``values``.

    Args:
        given: units in a second that the user, or a field beside it, states.
        usual: those of the format; ``certain``: other units do not occur there.
        durations: the values are waits, not points in time.
    """
    numbers = [n for n in map(number, values) if n is not None]
    if usual and not durations and numbers and _other_clock(numbers, usual):
        usual = None
    by_name = base_and_unit(plain_name(column))[1]
    ways = ((given, "as stated"), (by_name, "as its name says"), (usual if certain else None, "as this format has it"))
    for unit, why in ways if numbers or given else ():
        if unit:
            return Clock(unit, f"{column} in {_CALLED[unit]}, {why}")
    if not numbers:
        return Clock(0.0, f"{column} by its dates")
    middle = float(np.median(numbers))
    if not durations and not (usual and usual > 1) and _EPOCH[0] <= middle <= _EPOCH[1]:
        return Clock(1.0, f"{column} in seconds since 1970, by its size")
    if not durations and middle >= _EPOCH_MS:
        digits = len(str(int(middle)))
        return Clock(0.0, f"{column} since 1970, by its {digits} digits")
    chosen, why, known = _likely(numbers, usual, durations)
    how = f"{column} in {_CALLED[chosen]}, {why}"
    if known:
        return Clock(chosen, how)
    return Clock(chosen, how, f"{how}: no unit is stated; if it is another, give --time-unit or name it {column}_ms")


def _other_clock(numbers: Sequence[float], usual: float) -> bool:
    """Whether times cannot be in the ``usual`` unit: since 1970 in another, or fractions of nanoseconds."""
    middle, span = float(np.median(numbers)), max(numbers) - min(numbers)
    if usual == UNITS["s"]:
        return middle >= _EPOCH_MS
    crowded = len(numbers) * usual > _MOST_RATE * span
    return usual == UNITS["ns"] and (any(n != int(n) for n in numbers) or (_EPOCH_MS <= middle < 1e14 and crowded))


def _likely(numbers: Sequence[float], usual: float | None, durations: bool) -> tuple[float, str, bool]:
    """The likeliest unit of times without one, the evidence in words, and whether the format and it agree."""
    away = {}
    if durations:
        middle = float(np.median([n for n in numbers if n > 0] or [0.0]))
        away = {u: math.log10(USUAL_THINK_S * u / middle) for u in UNITS.values()} if middle > 0 else {}
    else:
        span = max(numbers) - min(numbers)
        rate = (len(numbers) - 1) / span if span > 0 and len(numbers) > 2 else 0.0
        away = {u: math.log10(rate * u / USUAL_RATE) for u in UNITS.values()} if rate > 0 else {}
    agree = "as this format has it" if usual else "taken so, there is no evidence"
    if not away:
        return usual or 1.0, agree, usual is not None
    if usual and abs(away[usual]) <= _NEAR:
        return usual, agree, True
    # Parts of a unit are written of seconds; without any sign seconds are likelier.
    parts = any(n != int(n) for n in numbers)
    best = min(UNITS.values(), key=lambda u: abs(away[u]) - (2.0 if parts else 1.0) * (u == 1.0))
    if usual and (abs(away[best]) > _NEAR or (not durations and 0 < away[usual] <= _HIGH)):
        best = usual
    shown = f"half of them below {middle / best:.3g} s" if durations else f"{rate * best:.3g} requests/s"
    return best, f"by its values ({shown})", False


def block_of(lengths: Sequence[tuple[int, int]], usual: int | None = None) -> int | None:
    """Tokens of a block of prefix hashes, by pairs (prompt's tokens, hashes): the power of two that fits them all.

    The last block may be partial and have no hash. ``None`` if none fits; ``usual`` if several do, it among them.
    """
    fits = [b for b in (2**k for k in range(13)) if all(n // b <= k <= -(-n // b) for n, k in lengths)]
    if usual is not None and (usual in fits or not lengths):
        return usual
    return fits[0] if fits else None


class Counts(NamedTuple):
    """Tokens of one request, ``None`` where they are not known; those of thinking are among the response's."""

    prompt: int | None = None
    response: int | None = None
    thinking: int | None = None


def cached_in(counts: Mapping[str, int | None]) -> int:
    """Tokens that came from a cache or went into one, by fields' names; of several fields for one of these, the first.

    Gateways repeat the usage of a request under other names.
    """
    reads, writes = 0, 0
    for name, count in counts.items():
        if re.search("creation|write", plain_name(name)):
            writes = writes or count or 0
        else:
            reads = reads or count or 0
    return reads + writes


def leaves_out_cache(prompt: str) -> bool:
    """Whether the field ``prompt`` counts no tokens that came from a cache: Anthropic's, Langfuse's."""
    return plain_name(prompt) in ("input_tokens", "input", "uncached_input_tokens")


def leaves_out_thinking(response: str, thinking: str) -> bool:
    """Whether the field ``response`` counts no thinking: by its name, or that of the field ``thinking`` beside it."""
    answer = plain_name(response)
    of_langfuse = answer == "output" and plain_name(thinking).startswith("output_reasoning")
    return of_langfuse or answer in _WITHOUT_THINKING


def settled(
    prompt: int | None,
    response: int | None,
    thinking: int | None = None,
    total: int | None = None,
    cached: int = 0,
    *,
    cache_apart: bool = False,
    thinking_apart: bool = False,
) -> Counts:
    """The counts of a request, whatever its source counts apart: by the ``total`` it states, else by what it is.

    Args:
        cached: tokens of the prompt that came from a cache or went into one.
        cache_apart: the source's prompt is known to leave them out (:func:`leaves_out_cache`).
        thinking_apart: the source's response is known to leave thinking out (:func:`leaves_out_thinking`).
    """
    asked, more = prompt or 0, thinking or 0
    if response is None:
        response = total - prompt if total is not None and prompt is not None and total > prompt else None
    elif more:
        # What the total says of thinking, with the cached tokens in the prompt or apart.
        sums = {asked + response: False, asked + cached + response: False}
        sums |= {asked + response + more: True, asked + cached + response + more: True} if prompt is not None else {}
        if sums.get(total if total is not None else -1, thinking_apart) or more > response:
            response += more
    if prompt is not None and cached:
        rest = total - (response or 0) if total is not None else None
        if cache_apart if rest not in (prompt, prompt + cached) else rest == prompt + cached:
            prompt += cached
    return Counts(prompt, response, thinking)


def usage_of(fields: Mapping[str, object]) -> Counts:
    """Tokens as the ``usage`` of an API's response states them."""
    usage = fields.get("usage")
    if not isinstance(usage, dict):
        return Counts()
    details = first_of(usage, "completion_tokens_details", "output_tokens_details", "completion_token_details")
    thinking = [named(part, "thinking_tokens") for part in (usage, details) if isinstance(part, dict)]
    cached = cached_in({name: whole(value) for name, value in all_named(usage, "cached_tokens")})
    prompt, response, total = (whole(named(usage, f"{n}_tokens")) for n in ("prompt", "response", "total"))
    known = next((n for n in map(whole, thinking) if n is not None), None)
    asked = next((name for name, _ in all_named(usage, "prompt_tokens")), "")
    return settled(prompt, response, known, total, cached, cache_apart=leaves_out_cache(asked))


def limit_of(fields: Mapping[str, object]) -> int | None:
    """The most tokens that a request allowed, if it states that."""
    limit = whole(named(fields, "max_tokens"))
    return limit if limit is not None and limit >= 1 else None


def time_of(fields: Mapping[str, object]) -> float | None:
    """When a request or message came, from the first of the fields for it that holds a point in time."""
    for name, value in all_named(fields, "arrival"):
        unit = base_and_unit(plain_name(name))[1]
        if (time := Clock(unit, "").seconds(value)) is not None:
            return time
    return None


def id_of(row: Mapping[str, object], index: int, *meanings: str) -> str:
    """The first id of ``meanings`` that the row has, else one made of its number."""
    name = next((v for m in meanings for _, v in all_named(row, m) if v != "" and not isinstance(v, list | dict)), None)
    return f"row-{index}" if name is None else str(name)
