"""Files that cannot be used, or not without a guess: one line each that says what, where, and how to go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ecoserve.data import load_trace
from ecoserve.errors import TraceError

Row = dict[str, Any]


def lines(*rows: Row) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


LENGTHS = {"output_tokens": 5, "input_tokens": 7}
STATS = {"unit": "tokens", "avg": 5.0, "min": 1, "max": 9}
ASKED = {"custom_id": "q", "method": "POST", "body": {"messages": [{"role": "user", "content": "hi"}]}}
USER = {"type": "user", "sessionId": "s", "message": {"role": "user", "content": "hi"}}

#: What it is called -> the file's name and content, options, and what its line says.
BAD: dict[str, tuple[str, str, Row, str]] = {
    "totals of AIPerf": ("a.json", json.dumps({"output_sequence_length": STATS, "request_latency": STATS}), {},
                         "holds totals, averages or percentiles, no single requests; export the requests"),
    "totals of AIPerf as a table": ("a.csv", "Metric,avg,min,max,p99\nOSL,5,1,9,8\nISL,3,1,4,4\n", {},
                                    "holds totals, averages or percentiles"),
    "totals of GuideLLM": ("g.json", json.dumps({"benchmarks": [{"metrics": {"tokens": STATS}}]}), {},
                           "totals only, no single requests"),
    "GuideLLM without samples": (
        "g.json", json.dumps({"benchmarks": [{"requests": {"successful": [], "errored": []}}]}), {},
        "totals only, no single requests"),
    "GuideLLM, all failed": ("g.json", json.dumps({"benchmarks": [{"requests": {"errored": [LENGTHS]}}]}), {},
                             "1 failed request"),
    "totals of vLLM's benchmark": ("v.json", json.dumps({"total_input_tokens": 5, "request_throughput": 1.0}), {},
                                   "saved without --save-detailed"),
    "usage by the day": ("u.json", json.dumps({"data": [{"starting_at": "2026-10-01", "ending_at": "2026-10-02",
                                                         "results": [LENGTHS]}]}), {}, "holds totals"),
    "usage in buckets": (
        "u.json", json.dumps({"object": "page", "data": [{"object": "bucket", "results": [LENGTHS]}]}), {},
        "holds totals"),
    "rows that add up requests": ("u.jsonl", lines({**LENGTHS, "num_model_requests": 9}), {},
                                  "1 a sum over several requests"),
    "GenAI-Perf without requests": ("p.json", json.dumps({"experiments": [{"requests": []}]}), {},
                                    "no single requests"),
    "GenAI-Perf, lengths unknown": (
        "p.json",
        json.dumps({"experiments": [{"requests": [{"timestamp": 1, "response_outputs": [
            {"response": '{"choices": [{"message": {"content": "a"}}]}'}]}]}]}), {},
        "the answer's length is not known: there is neither usage nor a stream of chunks"),
    "a batch's requests alone": ("b.jsonl", lines(ASKED), {}, "join its output file to it"),
    "a batch of errors": ("b.jsonl", lines({"custom_id": "q", "response": {"status_code": 500, "body": {}}}), {},
                          "1 failed request"),
    "a transcript of questions": ("c.jsonl", lines(USER, USER), {}, "no usable record"),
    "a session without requests": ("s.jsonl", lines({"id": "s", "requests": [{"in": None, "out": None}]}), {},
                                   "1 no answer length"),
    "a tree without answers": ("o.jsonl", lines({"message_tree_id": "t", "prompt": {"role": "prompter", "text": "a"}}),
                               {}, "1 no question with an answer"),
    "messages before their parents": (
        "o.jsonl",
        lines({"message_tree_id": "t", "message_id": "b", "parent_id": "a", "role": "assistant", "text": "x"}), {},
        "1 its parent did not come before it"),
    "arena without turns": ("r.jsonl", lines({"question_id": "q", "choices": [{"turns": ["a"]}, {"turns": []}]},
                                             {"question_id": "p", "choices": [{"turns": []}]}), {"strict": True},
                            "tokens of answers are estimated as characters/4.0"),
    "a unit that is none": ("m.jsonl", lines(LENGTHS), {"time_unit": "min"},
                            "'min' is not a unit of time; use one of: s"),
    "a time without a unit": ("m.jsonl", lines(*({**LENGTHS, "timestamp": 900 * i} for i in range(9))),
                              {"strict": True}, "timestamp in milliseconds, by its values (1.11 requests/s)"),
    "a wait without a unit": ("m.jsonl", lines(*({**LENGTHS, "session_id": "a", "delay": 700} for _ in range(9))),
                              {"strict": True}, "delay in milliseconds, by its values"),
    "a count that is not known": ("m.csv", "output_tokens,speech_tokens\n5,6\n7,8\n", {"strict": True},
                                  "speech_tokens looks like a count and is not used"),
    "a time that is not known": ("m.csv", "output_tokens,posted_at\n5,2026-10-01\n7,2026-10-02\n", {"strict": True},
                                 "posted_at looks like a time and is not used"),
    "two counts of one thing": ("m.csv", "output_tokens,completion_tokens\n5,6\n7,8\n", {"strict": True},
                                "output_tokens and completion_tokens both look like the answer's tokens"),
    "a session that is not known": ("m.csv", "output_tokens,chat_room\n5,a\n7,a\n8,b\n", {"strict": True},
                                    "chat_room looks like a session and is not used"),
    "turns of nothing": ("m.csv", "output_tokens,turn\n5,1\n7,2\n", {"strict": True},
                         "no field says which session they belong to"),
    "numbers in place of texts": ("m.csv", "input,output\n5,6\n7,8\n", {"strict": True}, "taken as tokens"),
    "blocks that do not fit": ("m.jsonl", lines({"input_length": 9, "output_length": 9, "hash_ids": [1, 2, 3] * 9}),
                               {"strict": True}, "prompts' lengths contradict"),
    "hashes that are none": ("m.jsonl", lines({"input_length": 9, "output_length": 9, "hash_ids": "x"}), {},
                             "1 hash_ids are not a list of numbers"),
    "a wait that is none": ("m.jsonl", lines({**LENGTHS, "think_time_ms": "long"}), {}, "wait before it is not a time"),
    "a time before all time": ("m.jsonl", lines({**LENGTHS, "arrival_s": -1}), {}, "1 arrival is not a time"),
    "spans and no generation": ("l.jsonl", lines({**LENGTHS, "type": "SPAN", "trace_id": "t"}), {},
                                "1 not a generation of text (span)"),
    "failures and nothing else": ("l.csv", "completion_tokens,status\n5,failure\n6,failure\n", {}, "2 failed request"),
    "a client of ServeGen": ("chunk-1-trace.csv", "0,0.1,0.9,Gamma,1.1,8.0\n600,0.2,0.8,Gamma,1.2,5.0\n", {},
                             "is one client of ServeGen, no trace; they are clients of a workload: write a file"),
    "characters in place of tokens": ("t.jsonl", lines({"prompt": "Why?", "answer_chars": [40, 80]}), {"strict": True},
                                      "estimated as characters/4.0 of answer_chars"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_input_is_one_line(tmp_path: Path, name: str) -> None:
    file, content, options, what = BAD[name]
    path = tmp_path / file
    path.write_text(content)
    with pytest.raises(TraceError) as caught:
        load_trace(path, **options)
    message = str(caught.value)
    assert what in message
    assert "\n" not in message
    assert message.startswith(str(path)) or "time_unit" in message


def test_nothing_is_guessed_where_everything_is_stated(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(
        "session_id,turn,arrival_s,input_tokens,output_tokens,model,latency_ms\na,0,0,5,6,m,9\na,1,9,7,8,m,9\n"
    )
    assert len(load_trace(path, strict=True)) == 2
