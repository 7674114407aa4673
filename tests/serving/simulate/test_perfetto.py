"""The picture of a run: well-formed trace events, in order, that add up to what the run's rows say."""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from virtual_rig import STOCK, Case, Spec, arrivals_of, scheduler_for

from ecoserve.errors import RunError
from ecoserve.serving.simulate.cost import LinearCost, StepWork
from ecoserve.serving.simulate.loop import LoopResult, run_replicas
from ecoserve.serving.simulate.perfetto import SPANS, trace_file
from ecoserve.serving.simulate.replica import Replica

Events = list[dict[str, Any]]

#: Too little KV for all of them: there are preemptions and, where KV is reserved, pauses.
PRESSED = Case(
    tuple(Spec(gap_s=0.01, prompt=20 + i, answer=60 + 5 * i % 70, max_tokens=140, source="noisy") for i in range(14)),
    blocks=28,
    depth=2,
)


class Machine:
    """Two milliseconds of the host, ten of the GPU."""

    def seconds(self, work: StepWork) -> float:
        return 0.010

    def host_s(self, work: StepWork) -> float:
        return 0.002

    def launch_s(self, work: StepWork) -> float:
        return 0.001


def draw(path: Path, case: Case = PRESSED, replicas: int = 1, cost: Any = None, **options: Any) -> LoopResult:
    with trace_file(path, **options) as file:
        engines = [Replica(scheduler_for(case), cost or LinearCost(), case.depth, index=i) for i in range(replicas)]
        return run_replicas(engines, arrivals_of(case), recorder=file.run("a run"))


def events_of(path: Path) -> Events:
    content = path.read_bytes()
    trace = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    assert set(trace) == {"traceEvents", "displayTimeUnit"}
    return list(trace["traceEvents"])


def check_format(events: Events) -> None:
    """What the trace event format asks of every event."""
    named = {e["pid"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    threads = {(e["pid"], e["tid"]) for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    ends: dict[tuple[int, int], float] = defaultdict(float)
    counted: dict[tuple[int, str], float] = defaultdict(float)
    for event in events:
        assert {"ph", "name", "pid", "tid"} <= set(event)
        assert event["pid"] in named
        track = (event["pid"], event["tid"])
        match event["ph"]:
            case "M":
                assert event["args"]
                continue
            case "X":
                assert track in threads
                assert event["dur"] >= 0
                assert event["ts"] >= ends[track] - 1e-3, "spans of one track follow each other"
                ends[track] = event["ts"] + event["dur"]
            case "i":
                assert track in threads
                assert event["s"] == "t"
            case "C":
                assert all(isinstance(v, int) and v >= 0 for v in event["args"].values())
                assert event["ts"] >= counted[event["pid"], event["name"]]
                counted[event["pid"], event["name"]] = event["ts"]
            case other:
                raise AssertionError(f"unknown phase {other}")
        assert event["ts"] >= 0


def spans(events: Events) -> dict[int, Events]:
    """The spans of each request's track."""
    out: dict[int, Events] = defaultdict(list)
    for event in events:
        if event["ph"] == "X" and event["name"] in SPANS:
            out[event["tid"]].append(event)
    return out


@pytest.mark.parametrize("suffix", ["json", "json.gz"])
@pytest.mark.parametrize("policy", [STOCK, "ecoserve", "ecoserve-exact"])
def test_every_event_is_well_formed(tmp_path: Path, policy: str, suffix: str) -> None:
    path = tmp_path / f"trace.{suffix}"
    draw(path, Case(**{**PRESSED.__dict__, "policy": policy}))
    check_format(events_of(path))


@pytest.mark.parametrize("policy", [STOCK, "ecoserve"])
@pytest.mark.parametrize("depth", [1, 2])
def test_a_requests_spans_fill_its_life(tmp_path: Path, policy: str, depth: int) -> None:
    result = draw(tmp_path / "t.json", Case(**{**PRESSED.__dict__, "policy": policy, "depth": depth}))
    tracks = spans(events_of(tmp_path / "t.json"))
    assert len(tracks) == len(result.rows)
    for row, track in zip(result.rows, tracks.values(), strict=True):
        assert row.finish_s is not None
        assert track[0]["ts"] == pytest.approx(row.arrival_s * 1e6, abs=0.01)
        for before, after in pairwise(track):
            assert before["ts"] + before["dur"] == pytest.approx(after["ts"], abs=0.01), "no gap, no overlap"
        assert track[-1]["ts"] + track[-1]["dur"] == pytest.approx(row.finish_s * 1e6, abs=0.01)
        assert track[-1]["args"] == {"output_tokens": row.output_tokens}
        names = [s["name"] for s in track]
        assert names.count("preempted") == row.preemptions


def test_what_happened_is_in_the_picture(tmp_path: Path) -> None:
    counted = {}
    for policy in (STOCK, "ecoserve-exact"):
        totals = draw(tmp_path / policy, Case(**{**PRESSED.__dict__, "policy": policy})).totals
        events = events_of(tmp_path / policy)
        marks = [e["name"] for e in events if e["ph"] == "i"]
        assert marks.count("preemption") == totals.preemptions
        assert marks.count("pause") == totals.pauses
        counted[policy] = totals
        steps = [e for e in events if e["name"] == "step"]
        assert sum(e["args"]["decodes"] + e["args"]["prompts"] > 0 for e in steps) == len(steps) > 0
    assert counted[STOCK].preemptions > 0
    assert counted["ecoserve-exact"].pauses > 0


def test_new_reservations_are_in_the_picture(tmp_path: Path) -> None:
    """Of responses that outlive their predictions, where room is no matter."""
    specs = tuple(Spec(prompt=20, answer=90, max_tokens=140, predicted_answer=20) for _ in range(4))
    totals = draw(tmp_path / "t.json", Case(specs, blocks=60, depth=1)).totals
    marks = [e["name"] for e in events_of(tmp_path / "t.json") if e["ph"] == "i"]
    assert marks.count("re-reservation") == totals.re_reservations > 0


def test_counters_add_up_to_the_cache(tmp_path: Path) -> None:
    draw(tmp_path / "t.json")
    counters = [e["args"] for e in events_of(tmp_path / "t.json") if e["name"] == "KV blocks"]
    assert {c["held"] + c["free"] for c in counters} == {PRESSED.blocks}
    assert max(c["held"] for c in counters) > PRESSED.blocks / 2


def test_host_and_gpu_have_tracks_of_their_own(tmp_path: Path) -> None:
    draw(tmp_path / "t.json", cost=Machine())
    events = events_of(tmp_path / "t.json")
    check_format(events)
    host, gpu = ([e for e in events if e["ph"] == "X" and e["name"] == n] for n in ("host", "step"))
    assert len(host) == len(gpu)
    assert {e["dur"] for e in host} == {2000.0}
    hidden = sum(any(g["ts"] <= h["ts"] < g["ts"] + g["dur"] for g in gpu) for h in host)
    assert hidden > len(host) / 2, "at depth 2 the host works while the GPU does"


def test_each_replica_and_each_run_has_its_own_tracks(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    with trace_file(path) as file:
        for name in ("first", "second"):
            engines = [Replica(scheduler_for(PRESSED), LinearCost(), 2, index=i) for i in range(2)]
            run_replicas(engines, arrivals_of(PRESSED), recorder=file.run(name))
    events = events_of(path)
    check_format(events)
    names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
    assert names == ["first, replica 0", "first, replica 1", "second, replica 0", "second, replica 1"]


def test_only_the_first_requests_and_then_nothing_more(tmp_path: Path) -> None:
    first_come = Case(**{**PRESSED.__dict__, "policy": STOCK})
    result = draw(tmp_path / "t.json", first_come, requests=3)
    events = events_of(tmp_path / "t.json")
    check_format(events)
    assert len(spans(events)) == 3
    last = max(r.finish_s or 0.0 for r in result.rows[:3])
    assert max(e["ts"] for e in events if e["ph"] != "M") <= last * 1e6
    assert last < result.end_s / 2


def test_only_what_lies_in_the_window(tmp_path: Path) -> None:
    draw(tmp_path / "t.json", window_s=(0.5, 0.9))
    events = [e for e in events_of(tmp_path / "t.json") if e["ph"] != "M"]
    assert events
    assert all(0.5e6 <= e["ts"] <= 0.9e6 for e in events)
    assert all(e["ts"] + e["dur"] <= 0.9e6 for e in events if e["ph"] == "X" and e["name"] in SPANS)


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.json.gz", "b.json.gz"):
        draw(tmp_path / name)
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_drawing_changes_nothing(tmp_path: Path) -> None:
    plain = run_replicas([Replica(scheduler_for(PRESSED), LinearCost(), 2)], arrivals_of(PRESSED))
    assert draw(tmp_path / "t.json").rows == plain.rows


def test_a_run_that_fails_leaves_no_file(tmp_path: Path) -> None:
    def fails() -> None:
        with trace_file(tmp_path / "t.json") as file:
            file.run("a run")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fails()
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"), trace_file(tmp_path / "file" / "t.json"):
        pass
