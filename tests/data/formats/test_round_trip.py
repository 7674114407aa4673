"""What was loaded from any format, saved and loaded again, is the same."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ecoserve.data import load_trace, save_trace
from ecoserve.data.formats import FORMATS

Rows = list[dict[str, Any]]

#: Texts in several scripts, with what a line-based or a careless reader would trip over.
TEXTS = [
    "Say it.",
    "Wie heißt du?\nUnd ich?",
    "你好,世界",
    "Сколько?",
    "emoji 🙂 and \u2028 a separator",
    'quotes " and , commas',
]


def records(rng: random.Random) -> Rows:
    return [
        {
            "conversation": f"c{i}",
            "turn": i % 2,
            "prompt": text,
            "response_tokens": rng.randint(1, 99),
            "arrival_s": i / 3,
        }
        for i, text in enumerate(TEXTS)
    ]


def sharegpt(rng: random.Random) -> Rows:
    return [
        {
            "id": f"s{i}",
            "conversations": [
                *([{"from": "gpt", "value": "I begin."}] if i % 2 else []),
                {"from": "human", "value": text},
                {"from": "gpt", "value": rng.choice(TEXTS)},
                {"from": "human", "value": f"{text} {i}"},
                {"from": "gpt", "value": "It goes on [truncated]"},
            ],
        }
        for i, text in enumerate(TEXTS)
    ]


def chat(rng: random.Random) -> Rows:
    turns = [{"from": "human", "role": "user"}, {"from": "gpt", "role": "assistant"}]
    return [
        {
            # An id that is not one: both conversations end with the same words.
            "id": "same",
            "messages": [{"role": t["role"], "content": f"{text} {k}"} for k in range(2) for t in turns]
            + [{"role": "user", "content": "More"}, {"role": "assistant", "content": "No"}],
            "model": rng.choice(["m1", "m2"]),
            "timestamp": f"2024-05-0{i + 1}T00:00:00.123456Z",
        }
        for i, text in enumerate(TEXTS)
    ]


def openai(rng: random.Random) -> Rows:
    return [
        {
            "request": {"messages": [{"role": "user", "content": text}], "n": 1 + i % 2, "max_tokens": 50},
            "response": {
                "id": f"r{i}",
                "created": 1_700_000_000 + i,
                "choices": [
                    {"index": k, "message": {"content": "Yes"}, "finish_reason": "stop"} for k in range(1 + i % 2)
                ],
                "usage": {"prompt_tokens": 5, "completion_tokens": rng.randint(2, 50)},
            },
        }
        for i, text in enumerate(TEXTS)
    ]


def model_outputs(rng: random.Random) -> Rows:
    return [{"instruction": t, "output": "Yes", "generator": m} for m in ("m1", "m2") for t in TEXTS]


def alpaca(rng: random.Random) -> Rows:
    return [
        {"instruction": text, "input": rng.choice(["", "more"]), "output": rng.choice(TEXTS), "tokens": [5, 6 + i]}
        for i, text in enumerate(TEXTS)
    ]


def vllm_bench(rng: random.Random) -> Rows:
    n = 6
    return [
        {
            "model_id": "m",
            "request_throughput": 1.0,
            "total_input_tokens": 5,
            "input_lens": [rng.randint(1, 99) for _ in range(n)],
            "output_lens": [rng.randint(1, 99) for _ in range(n)],
            "start_times": [479748.340626232 + i for i in range(n)],
            "generated_texts": TEXTS,
            "errors": [""] * n,
        }
    ]


def vllm(rng: random.Random) -> Rows:
    return [
        {"input_toks": 2, "output_toks": 3, "arrival_time_ns": 46926808 * i, "input_tok_ids": [1, 2]} for i in range(6)
    ]


def claude_code(rng: random.Random) -> Rows:
    return [
        {
            "type": kind,
            "sessionId": f"s{i % 2}",
            "timestamp": f"2026-10-01T10:00:{10 + i}.{i}00Z",
            "message": {
                "role": kind,
                "content": text,
                **({"id": f"m{i}", "usage": {"input_tokens": 5, "output_tokens": 9}} if kind == "assistant" else {}),
            },
        }
        for i, text in enumerate(TEXTS)
        for kind in ("user", "assistant")
    ]


def arena(rng: random.Random) -> Rows:
    return [
        {"question_id": f"q{i}", "model_id": "m", "choices": [{"turns": [{"content": text, "token_len": i + 1}]}]}
        for i, text in enumerate(TEXTS)
    ]


def openassistant(rng: random.Random) -> Rows:
    def message(name: str, role: str, text: str, *replies: dict[str, Any]) -> dict[str, Any]:
        return {"message_id": name, "role": role, "text": text, "replies": list(replies)}

    answers = [message(f"a{i}", "assistant", f"{text} {i}") for i, text in enumerate(TEXTS)]
    return [{"message_tree_id": f"t{i}", "prompt": message("p", "prompter", TEXTS[i], *answers)} for i in range(2)]


def agent_sessions(rng: random.Random) -> Rows:
    requests = [
        {"t": 5.0 * i, "in": 70 + i, "out": rng.randint(1, 99), "hash_ids": [1, i], "think_time": i / 7}
        for i in range(3)
    ]
    return [{"id": f"s{i}", "block_size": 64, "hash_id_scope": "local", "requests": requests} for i in range(2)]


def guidellm(rng: random.Random) -> Rows:
    requests = [
        {
            "request_id": f"q{i}",
            "output": text,
            "prompt_tokens": 5,
            "output_tokens": 6,
            "request_start_time": 1e9 + i / 3,
        }
        for i, text in enumerate(TEXTS)
    ]
    return [{"benchmarks": [{"requests": {"successful": requests, "errored": []}}]}]


def aiperf(rng: random.Random) -> Rows:
    return [
        {
            "metadata": {"x_correlation_id": f"c{i // 2}", "turn_index": i % 2, "request_start_ns": 10**18 + i * 10**8},
            "metrics": {n: {"value": rng.randint(1, 99), "unit": "tokens"} for n in
                        ("input_sequence_length", "output_sequence_length")},
        }
        for i in range(6)
    ]  # fmt: skip


def genai_perf(rng: random.Random) -> Rows:
    chunk = json.dumps({"choices": [{"delta": {"content": "a"}}]})
    requests = [
        {
            "timestamp": 10**9 + i,
            "request_inputs": {"payload": json.dumps({"messages": [{"role": "user", "content": text}]})},
            "response_outputs": [{"response": f"data: {chunk}"}] * (i + 1),
        }
        for i, text in enumerate(TEXTS)
    ]
    return [{"experiments": [{"requests": requests}]}]


def bailian(rng: random.Random) -> Rows:
    return [
        {"chat_id": i, "parent_chat_id": i - 1 if i % 3 else -1, "timestamp": i / 4, "input_length": 20,
         "output_length": rng.randint(1, 99), "turn": i % 3 + 1, "hash_ids": [0, i]}
        for i in range(6)
    ]  # fmt: skip


def azure(rng: random.Random) -> Rows:
    return [
        {
            "TIMESTAMP": f"2023-11-16 18:15:4{i}.6805900",
            "ContextTokens": str(rng.randint(1, 999)),
            "GeneratedTokens": str(rng.randint(1, 999)),
        }
        for i in (0, 0, 1, 2)
    ]


def mooncake(rng: random.Random) -> Rows:
    return [
        {"timestamp": 27482 * i, "input_length": 700, "output_length": rng.randint(1, 99), "hash_ids": [0, i]}
        for i in range(6)
    ]


def burstgpt(rng: random.Random) -> Rows:
    return [
        {
            "Timestamp": "5.0",
            "Session ID": rng.choice(["a", "b", ""]),
            "Model": "GPT-4",
            "Request tokens": "10",
            "Response tokens": "20",
        }
        for _ in range(9)
    ]


def plain(rng: random.Random) -> Rows:
    return [
        {
            "request_id": f"q{i // 2}",
            "prompt": text,
            "response": "Yes",
            "output_tokens": "7",
            "arrival_ms": str(i * 100),
        }
        for i, text in enumerate(TEXTS)
    ]


EXAMPLES: dict[str, Callable[[random.Random], Rows]] = {
    "records": records,
    "sharegpt": sharegpt,
    "claude-code": claude_code,
    "arena": arena,
    "openai": openai,
    "chat": chat,
    "model_outputs": model_outputs,
    "alpaca": alpaca,
    "openassistant": openassistant,
    "agent-sessions": agent_sessions,
    "vllm-bench": vllm_bench,
    "guidellm": guidellm,
    "aiperf": aiperf,
    "genai-perf": genai_perf,
    "vllm": vllm,
    "azure": azure,
    "bailian": bailian,
    "mooncake": mooncake,
    "burstgpt": burstgpt,
    "plain": plain,
}


def test_every_format_has_an_example() -> None:
    assert [f.name for f in FORMATS] == list(EXAMPLES)


def write(rows: Rows, path: Path) -> Path:
    """Write ``rows`` as the suffixes of ``path`` say."""
    if ".csv" in path.name:
        with path.open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            table.writerows(rows)
    elif ".parquet" in path.name:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = [json.dumps(r, ensure_ascii=False) for r in rows]
        path.write_text("\n".join(lines) if ".jsonl" in path.name else f"[{','.join(lines)}]", encoding="utf-8")
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.read_bytes()))
    return path


TABLES = ("azure", "burstgpt", "plain", "alpaca", "model_outputs")


@pytest.mark.parametrize(
    ("name", "suffix"),
    [(n, s) for n in EXAMPLES for s in (".json", ".jsonl.gz", ".parquet")] + [(n, ".csv.gz") for n in TABLES],
)
def test_a_trace_comes_back_equal(name: str, suffix: str, tmp_path: Path) -> None:
    rows = EXAMPLES[name](random.Random(name))
    trace = load_trace(write(rows, tmp_path / f"t{suffix}"))
    assert trace.format == name
    assert len(trace) >= 4
    assert trace.report.dropped == {}
    again = load_trace(save_trace(trace, tmp_path / "saved.jsonl.gz"))
    assert again.format == "records"
    assert again.records == trace.records
    assert again.sha256 == trace.sha256
    assert (again.length_source, again.prompt_length_source) == (trace.length_source, trace.prompt_length_source)
    assert again.report.dropped == {}


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_kind_of_file_gives_the_same_records(name: str, tmp_path: Path) -> None:
    rows = EXAMPLES[name](random.Random(name))
    suffixes = [".json", ".jsonl", ".parquet", *([".csv"] if name in TABLES else [])]
    if name == "alpaca":
        # A list of lengths has no place in a table.
        rows = [{k: v for k, v in r.items() if k != "tokens"} for r in rows]
    first, *others = [load_trace(write(rows, tmp_path / f"t{s}")).records for s in suffixes]
    for other in others:
        assert other == first
