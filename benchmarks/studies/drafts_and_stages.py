"""Speculative decoding and pipeline stages in virtual time: is the gain over vLLM's scheduler kept?

    python benchmarks/studies/drafts_and_stages.py benchmarks/results/drafts_and_stages.json

One load beyond capacity (lognormal responses, predictions of sigma 0.6), served by vLLM's scheduler, by its priorities
set to the same predictions, and by ours: plain, with 3 drafts of which 0.6 are accepted, with 3 stages. All with two
steps in flight (stages: four) and a cost that is linear in the step's tokens.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from statistics import mean
from typing import Any

from ecoserve.files import write_atomically
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter.counting import CountingScheduler
from ecoserve.serving.adapter.scheduler import EcoServeScheduler
from ecoserve.serving.core import keys
from ecoserve.serving.simulate.cost import LinearCost
from ecoserve.serving.simulate.engine import WORD, EngineShape, make_request, make_scheduler
from ecoserve.serving.simulate.loop import Arrival, run_replicas
from ecoserve.serving.simulate.replica import Replica

REQUESTS = 300
LIMIT = 1024
FEATURES: dict[str, dict[str, int]] = {
    "plain": {"depth": 2},
    "3 drafts, 0.6 accepted": {"depth": 2, "speculative_tokens": 3},
    "3 stages": {"depth": 4, "stages": 3},
}
SERVERS = ("vllm", "vllm-priority", "ecoserve")


def load(server: str, rate: float) -> list[Arrival]:
    rng = random.Random(5)
    at_s, out = 0.0, []
    for i in range(REQUESTS):
        at_s += rng.expovariate(rate)
        answer = min(LIMIT, max(2, int(rng.lognormvariate(4.8, 0.9))))
        predicted = LengthDistribution.lognormal(max(1.0, answer * rng.lognormvariate(0.0, 0.6)), 0.6, LIMIT)
        request = make_request(
            f"r{i}",
            [WORD] * rng.randint(50, 400),
            LIMIT,
            at_s,
            {keys.LENGTHS: predicted.to_wire()},
            priority=int(predicted.mean()) if server == "vllm-priority" else 0,
        )
        out.append(Arrival(at_s, request, answer))
    return out


def serve(server: str, features: dict[str, int], rate: float) -> dict[str, Any]:
    shape = EngineShape(
        kv_blocks=500,
        max_num_seqs=128,
        max_model_len=2048,
        runner=2,
        scheduling_policy="priority" if server == "vllm-priority" else "fcfs",
        **features,
    )
    scheduler = make_scheduler(EcoServeScheduler if server == "ecoserve" else CountingScheduler, shape)
    replica = Replica(scheduler, LinearCost(), shape.depth, acceptance=0.6, stages=shape.stages)
    rows = run_replicas([replica], load(server, rate)).rows
    counters = scheduler.counters
    waits = [row.finish_s - row.arrival_s for row in rows if row.finish_s is not None]
    return {
        "ms per token": round(1e3 * mean(w / r.output_tokens for w, r in zip(waits, rows, strict=True)), 1),
        "latency s": round(mean(waits), 2),
        "preemptions": counters.preemptions,
        "by vLLM itself": counters.preemptions - counters.shortage_preemptions,
        "shortage steps": counters.shortage_steps,
    }


def main() -> None:
    output = Path(sys.argv[1])
    found: dict[str, Any] = {
        "command": f"python benchmarks/studies/drafts_and_stages.py benchmarks/results/{output.name}"
    }
    # A feature serves faster: the rate follows, so that each is as far beyond capacity.
    for name, rate in zip(FEATURES, (12.0, 20.0, 14.0), strict=True):
        found[name] = {"rate": rate, **{s: serve(s, FEATURES[name], rate) for s in SERVERS}}
        print(name, json.dumps(found[name], indent=1), flush=True)
    write_atomically(output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
