"""Results of benchmarks: vLLM's (and SGLang's), GuideLLM, GenAI-Perf, AIPerf.

Each is taken apart into rows of known fields, one a request. Results that hold sums and percentiles alone are no
traces (:func:`is_summary`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ecoserve.data.fields import Row, first_of, text_or_none
from ecoserve.data.formats.base import FAILED, Reject, has_fields
from ecoserve.data.formats.table import COUNTED_BY, Convention, parsed, table
from ecoserve.data.known_fields import limit_of, usage_of

_STATISTICS: Final = frozenset(("avg", "mean", "median", "min", "max", "std", "p50", "p90", "p95", "p99"))
#: A response that does not say how long it is.
UNCOUNTED: Final = "the answer's length is not known: there is neither usage nor a stream of chunks"


def is_summary(row: Row) -> bool:
    """Whether ``row`` holds statistics of requests, or sums over times, in place of requests."""
    inner = [row, *(v for v in row.values() if isinstance(v, dict))]
    spans = {"starting_at", "ending_at"} <= row.keys() or row.get("object") == "bucket"
    return spans or any(len(_STATISTICS & part.keys()) > 1 for part in inner)


def _objects(value: object) -> list[dict[str, Any]]:
    return [v for v in value if isinstance(v, dict)] if isinstance(value, list) else []


def _vllm_bench(row: Row, index: int) -> Iterator[Row | Reject]:
    """One object with a list for each quantity, one entry a request; one with an error or no answer failed."""
    prompts, answers = row.get("input_lens"), row.get("output_lens")
    if not isinstance(prompts, list) or not isinstance(answers, list):
        yield Reject("no single requests (saved without --save-detailed)")
    elif len(prompts) != len(answers):
        yield Reject("input_lens and output_lens are not equally many")
    elif not prompts:
        yield Reject("no requests")
    else:
        others = {"arrival_s": "start_times", "response": "generated_texts", "error": "errors"}
        lists = {name: row.get(column) for name, column in others.items()}
        columns = {"input_lens": prompts, "output_lens": answers}
        columns |= {n: v for n, v in lists.items() if isinstance(v, list) and len(v) == len(prompts)}
        for i, values in enumerate(zip(*columns.values(), strict=True)):
            one = dict(zip(columns, values, strict=True))
            if text_or_none(one.pop("error", None)):
                yield Reject(FAILED)
                continue
            counts = {"prompt_tokens": one.pop("input_lens"), "response_tokens": one.pop("output_lens")}
            yield {"request_id": f"run-{index}-{i}", "model": row.get("model_id"), **counts, **one}


def _guidellm(row: Row, index: int) -> Iterator[Row | Reject]:
    """``benchmarks[].requests``: those that succeeded, failed, or were cut off when time was up."""
    found = 0
    for k, benchmark in enumerate(_objects(row.get("benchmarks"))):
        kinds = benchmark.get("requests")
        for kind, requests in kinds.items() if isinstance(kinds, dict) else ():
            for request in _objects(requests):
                found += 1
                args = parsed(request.get("request_args"))
                asked = args.get("body", args) if isinstance(args, dict) else {}
                one = {**{n: v for n, v in request.items() if n != "request_args"}, "error": request.get("error")}
                one["request_id"] = f"{index}-{k}-{first_of(request, 'request_id', 'id') or found}"
                if isinstance(asked, dict):
                    one["prompt"] = first_of(request, "prompt") or first_of(asked, "messages", "prompt")
                    one["max_tokens"] = limit_of(asked)
                if kind == "incomplete":
                    one["cancelled"] = True
                yield one if kind in ("successful", "completed", "incomplete") else Reject("failed request")
    if not found:
        yield Reject("totals only, no single requests (GuideLLM keeps them in requests.successful of its JSON file)")


def _aiperf(row: Row, index: int) -> Iterator[Row | Reject]:
    if row.get("error"):
        yield Reject("failed request")
    else:
        yield row


def _genai_perf(row: Row, index: int) -> Iterator[Row | Reject]:
    """``experiments[].requests``: times in ns; lengths by the responses' usage, else by their chunks."""
    found = 0
    for k, experiment in enumerate(_objects(row.get("experiments"))):
        for request in _objects(experiment.get("requests")):
            found += 1
            inputs = request.get("request_inputs")
            inputs = inputs if isinstance(inputs, dict) else {}
            asked = parsed(inputs.get("payload"))
            asked = asked if isinstance(asked, dict) else inputs
            outputs = request.get("response_outputs")
            counts = _answer_of(outputs if isinstance(outputs, list) else [])
            if counts is None:
                yield Reject(UNCOUNTED)
                continue
            yield {
                "request_id": f"{index}-{k}-{found - 1}",
                "session_id": first_of(inputs, "session_id") or first_of(asked, "session_id"),
                "timestamp": request.get("timestamp"),
                "prompt": first_of(asked, "messages", "prompt", "text_input"),
                "max_tokens": first_of(asked, "max_tokens", "max_completion_tokens"),
                "model": asked.get("model"),
                **counts,
            }
    if not found:
        yield Reject("totals only, no single requests")


def _answer_of(outputs: list[Any]) -> dict[str, Any] | None:
    """Tokens, text and finish reason of a streamed or whole response; ``None`` if nothing tells its length.

    Chunks with content, reasoning or a tool call are a token each, unless a ``usage`` counts them.
    """
    texts: list[str] = []
    thoughts: list[str] = []
    reason, usage, chunks, thinking, whole_one = None, None, 0, None, False
    for event in (e for output in outputs for e in _events(output)):
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        message = first_of(choice, "delta", "message")
        message = message if isinstance(message, dict) else choice
        whole_one = whole_one or "message" in choice
        text = first_of(message, "content", "text") or first_of(event, "text_output")
        thought = first_of(message, "reasoning_content", "reasoning")
        chunks += bool(text or thought or message.get("tool_calls"))
        thinking = (thinking or 0) + 1 if thought else thinking
        texts += [text] if isinstance(text, str) else []
        thoughts += [thought] if isinstance(thought, str) else []
        reason = text_or_none(choice.get("finish_reason")) or reason
        usage = event if isinstance(event.get("usage"), dict) else usage
    counts = usage_of(usage or {})
    one = {"response": "".join(texts) or None, "reasoning": "".join(thoughts) or None, "finish_reason": reason}
    if counts.response is not None:
        tokens = {"prompt_tokens": counts.prompt, "response_tokens": counts.response}
        return {**one, **tokens, "thinking_tokens": counts.thinking}
    return (
        None
        if whole_one or not outputs
        else {**one, "response_tokens": chunks, "thinking_tokens": thinking, COUNTED_BY: "chunks"}
    )


def _events(output: object) -> Iterator[Mapping[str, Any]]:
    """The JSON objects of a response: of an event stream's lines, or the one that it is."""
    body = output.get("response", output) if isinstance(output, dict) else output
    if isinstance(body, dict):
        yield body
    for line in body.splitlines() if isinstance(body, str) else ():
        text = line.removeprefix("data:").strip()
        try:
            event = json.loads(text) if text[:1] == "{" else None
        except ValueError:
            event = None
        if isinstance(event, dict):
            yield event
        elif event is None and text and text != "[DONE]" and not line.startswith(("data:", "event:", ":")):
            yield {"text_output": text}


VLLM_BENCH: Final = table(
    "vllm-bench",
    "input_lens[], output_lens[] (vllm bench serve --save-detailed)",
    "results of vLLM's and SGLang's serving benchmarks: start times, texts, errors",
    (),
    Convention(per_second=1.0, certain=True, unwrap=_vllm_bench),
    matches=lambda row: (
        {"total_input_tokens", "request_throughput"} <= row.keys()
        or all(isinstance(row.get(name), list) for name in ("input_lens", "output_lens"))
    ),
)
GUIDELLM: Final = table(
    "guidellm",
    "benchmarks[].requests.successful[]",
    "GuideLLM's JSON results: lengths, start times, texts, thinking, conversations; those cut off when time was up",
    (),
    Convention(per_second=1.0, certain=True, unwrap=_guidellm),
    matches=lambda row: isinstance(row.get("benchmarks"), list),
)
AIPERF: Final = table(
    "aiperf",
    "metadata.request_start_ns, metrics.output_sequence_length (profile_export.jsonl)",
    "AIPerf's records of single requests: lengths, thinking, start times, sessions and turns",
    (),
    Convention(unwrap=_aiperf),
    matches=lambda row: (
        isinstance(row.get("metadata"), dict)
        and isinstance(row.get("metrics", {}), dict)
        and has_fields("request_start_ns")(row["metadata"])
    ),
)
GENAI_PERF: Final = table(
    "genai-perf",
    "experiments[].requests[].response_outputs (profile_export.json)",
    "GenAI-Perf's profile export: start times (ns), lengths by usage or by counted chunks, texts",
    (),
    Convention(per_second=1e9, certain=True, unwrap=_genai_perf),
    matches=lambda row: isinstance(row.get("experiments"), list),
)
