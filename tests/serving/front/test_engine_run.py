"""Runs on a real vLLM engine in this process: exact lengths through preemptions, one engine after another."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from ecoserve.errors import ConfigError, InputError
from ecoserve.serving.engine_run import EngineRunSettings, run_engine
from ecoserve.serving.length_source import LengthSource
from ecoserve.serving.workload import LoadRequest, make_load, trace_for

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]

MAX_TOKENS = 160


def settings(model: Path, **more: Any) -> EngineRunSettings:
    known: dict[str, Any] = {
        "model": str(model),
        "trace": "synthetic:400",
        "rate_rps": math.inf,
        "requests": 48,
        "blocks": 31,
        "block_size": 32,
        "max_num_seqs": 24,
        "max_model_len": 512,
        "max_tokens": MAX_TOKENS,
        "threads": 1,
        "clock": "cpu",
        "seed": 3,
    }
    return EngineRunSettings(**{**known, **more})


def load_of(s: EngineRunSettings) -> list[LoadRequest]:
    return make_load(
        trace_for(s.trace, s.length_field, s.tokenizer, s.split),
        requests=s.requests,
        rate_rps=s.rate_rps,
        seed=s.seed,
        lengths=LengthSource.parse(s.lengths),
        max_tokens=s.max_tokens,
        max_prompt_tokens=(s.max_model_len or 0) - s.max_tokens,
    )


@pytest.mark.parametrize(
    ("policy", "lengths", "temperature"), [("vllm", "none", 1.0), ("ecoserve", "true", 0.0), ("ecoserve", "none", 0.0)]
)
def test_every_response_has_its_recorded_length(
    tiny_model: Path, policy: str, lengths: str, temperature: float
) -> None:
    asked = settings(tiny_model, policy=policy, lengths=lengths, temperature=temperature)
    result = run_engine(asked)
    load = {r.name: r for r in load_of(asked)}
    assert {r.request_id: r.output_tokens for r in result.rows} == {n: r.response_tokens for n, r in load.items()}
    assert all(r.status == "completed" for r in result.rows)
    for row in result.rows:
        assert row.first_token_s is not None
        assert row.finish_s is not None
        assert row.arrival_s <= row.first_token_s <= row.finish_s
    summary = result.summary()
    assert summary["completed"] == 48
    assert summary["steps"] > 100
    assert 0.2 < summary["kv_used_mean"] <= 1.0
    assert (summary["rate_rps"], summary["arrivals"]) == (None, "at once")
    json.dumps(summary, allow_nan=False)
    if policy == "vllm":
        assert summary["preemptions"] > 10
        assert summary["recomputed_tokens"] > 0
        assert sum(r.preemptions for r in result.rows) == summary["preemptions"]
        assert summary["pauses"] == 0


def test_length_only_traces_and_recorded_arrivals(tiny_model: Path, tmp_path: Path) -> None:
    trace = tmp_path / "lengths.jsonl"
    rows = [
        {
            "conversation": f"c{i}",
            "turn": 0,
            "prompt_tokens": 10 + i,
            "response_tokens": 5 + i,
            "arrival_s": 100 + i / 50,
        }
        for i in range(12)
    ]
    # A second turn, a quarter of a second after the first has ended: the loop is closed.
    rows.append({"conversation": "c0", "turn": 1, "prompt_tokens": 22, "response_tokens": 17, "think_s": 0.25})
    trace.write_text("".join(json.dumps(r) + "\n" for r in rows))
    result = run_engine(
        settings(tiny_model, trace=str(trace), rate_rps=None, requests=13, policy="ecoserve", lengths="noise:0.5")
    )
    assert [r.prompt_tokens for r in result.rows] == [10 + i for i in range(13)]
    assert [r.output_tokens for r in result.rows] == [5 + i for i in range(13)]
    ended = result.rows[0].finish_s
    assert ended is not None
    assert [r.arrival_s for r in result.rows] == pytest.approx([*(i / 50 for i in range(12)), ended + 0.25])
    assert all(r.predicted_tokens for r in result.rows)


def test_what_cannot_run_is_said_before_an_engine_starts(tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="not known"):
        run_engine(settings(tiny_model, policy="best"))
    with pytest.raises(ConfigError, match="threads 1"):
        run_engine(settings(tiny_model, threads=2))
    with pytest.raises(InputError, match="none of true"):
        run_engine(settings(tiny_model, lengths="guess"))
    with pytest.raises(ConfigError, match="vLLM engine"):
        run_engine(settings(tiny_model / "missing"))
