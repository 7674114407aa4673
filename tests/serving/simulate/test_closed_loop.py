"""A trace that states waits between turns is driven as a closed loop: turn n+1 comes a wait after answer n."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ecoserve.data import Record, load_trace
from ecoserve.errors import TraceError
from ecoserve.serving.length_source import LengthSource
from ecoserve.serving.simulate.run import SimulateSettings, simulate
from ecoserve.serving.workload import LoadRequest, make_load


@pytest.fixture(scope="module")
def agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve sessions of five turns that start a second apart, wait half a second a turn, and share their beginning."""
    path = tmp_path_factory.mktemp("closed") / "agents.jsonl"
    rows = []
    for k in range(12):
        requests = [
            {"t": float(k) if n == 0 else None, "in": 100 + 100 * n, "out": 20 + 10 * n + k,
             "think_time": 0.5 * (n > 0), "hash_ids": list(range((100 + 100 * n) // 16))}
            for n in range(5)
        ]  # fmt: skip
        rows.append({"id": f"s{k}", "block_size": 16, "hash_id_scope": "local", "requests": requests})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(trace: Path, **changes: Any) -> SimulateSettings:
    small = {"requests": 40, "blocks": 200, "max_model_len": 1024, "max_tokens": 300, "max_num_batched_tokens": 512}
    return SimulateSettings(**{"trace": str(trace), "rate_rps": 20.0, **small, **changes})


def load(trace: Path, **changes: Any) -> list[LoadRequest]:
    known = {"requests": 40, "rate_rps": 8.0, "seed": 0, "lengths": LengthSource.parse("none"), "max_tokens": 300}
    return make_load(load_trace(trace), **{**known, "max_prompt_tokens": 1000, **changes})


@pytest.mark.parametrize(
    ("changes", "sessions"),
    [({}, 8), ({"rate_rps": None}, 8), ({"requests": 70}, 14), ({"max_prompt_tokens": 300}, 14)],
)
def test_whole_sessions_are_drawn(agents: Path, changes: dict[str, Any], sessions: int) -> None:
    made = load(agents, **changes)
    assert len(made) == changes.get("requests", 40)
    named = {r.name: r for r in made}
    first = [r for r in made if r.after is None]
    assert len(first) == sessions
    assert all(r.record.turn == 0 for r in first)
    for request in made:
        if request.after is not None:
            before = named[request.after]
            assert (before.record.conversation, before.record.turn + 1) == (
                request.record.conversation,
                request.record.turn,
            )
            assert request.arrival_s == pytest.approx(before.arrival_s + request.think_s)
    assert [r.arrival_s for r in made] == sorted(r.arrival_s for r in made)
    if changes == {"rate_rps": None}:
        assert [r.arrival_s for r in first] == [float(k) for k in range(8)]


def test_a_rate_counts_requests(agents: Path) -> None:
    starts = [r.arrival_s for r in load(agents, requests=400, rate_rps=10.0) if r.after is None]
    # 80 sessions of five turns: two start a second.
    assert len(starts) == 80
    assert 80 / starts[-1] == pytest.approx(2.0, rel=0.35)


def test_without_arrivals_a_rate_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    row = {"session_id": "a", "delay": 500, "input_length": 9, "output_length": 9, "hash_ids": [1]}
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(TraceError, match="the trace has no recorded arrivals; give --rate"):
        load(path, rate_rps=None)


@pytest.mark.parametrize(("policy", "depth"), [("vllm", 1), ("vllm", 2), ("ecoserve", 2)])
@pytest.mark.parametrize("replicas", [1, 2])
def test_the_next_turn_comes_a_wait_after_the_answer(agents: Path, policy: str, depth: int, replicas: int) -> None:
    chosen = settings(agents, policy=policy, depth=depth, replicas=replicas, prefix_caching=True)
    result = simulate(chosen)
    rows = {row.request_id: row for row in result.rows}
    assert {row.status for row in rows.values()} == {"completed"}
    made = chosen.load(chosen.max_model_len - chosen.max_tokens)
    for request in made:
        row = rows[request.name]
        assert row.output_tokens == request.response_tokens
        if request.after is None:
            assert row.arrival_s == request.arrival_s
        else:
            finish = rows[request.after].finish_s
            assert finish is not None
            assert row.arrival_s == pytest.approx(finish + 0.5)
    assert [row.arrival_s for row in simulate(chosen).rows] == [row.arrival_s for row in result.rows]


def test_a_slow_server_has_fewer_sessions_waiting_than_an_open_load(agents: Path) -> None:
    """All at once on few blocks: never more requests are open than there are sessions."""
    result = simulate(settings(agents, rate_rps=float("inf"), blocks=80, requests=60, policy="vllm"))
    events = [(r.arrival_s, 1) for r in result.rows] + [(r.finish_s or 0.0, -1) for r in result.rows]
    open_now = peak = 0
    for _, change in sorted(events):
        open_now += change
        peak = max(peak, open_now)
    assert peak == 12


def test_conversations_of_a_workload_may_be_closed(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    content = {
        "requests": 60,
        "arrivals": {"process": "poisson", "rate": 5},
        "prompt": {"tokens": 40},
        "response": {"tokens": 30},
        "conversations": {"turns": 4, "think_s": 2.0, "think_sigma": 0, "closed": True},
    }
    path.write_text(json.dumps(content))
    records: list[Record] = list(load_trace(path).records)
    assert {(r.turn == 0, r.arrival_s is None, r.think_s) for r in records} == {(True, False, 0.0), (False, True, 2.0)}
    result = simulate(settings(path, rate_rps=None, policy="ecoserve", split=None))
    assert {row.status for row in result.rows} == {"completed"}
