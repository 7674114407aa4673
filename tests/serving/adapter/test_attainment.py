"""What the scheduler counts of SLOs is what the run's own rows say."""

from __future__ import annotations

import random

import pytest
from virtual_rig import Case, StrictWorker, drive, scheduler_for

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core import keys
from ecoserve.serving.simulate.engine import make_request
from ecoserve.serving.simulate.loop import Arrival


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", ["ecoserve", "ecoserve-paper"])
def test_attainment_is_that_of_the_rows(policy: str, depth: int) -> None:
    case = Case((), policy=policy, depth=depth, runner=depth, blocks=40)
    scheduler = scheduler_for(case)
    rng = random.Random(depth)
    arrivals, asked = [], {}
    for i in range(60):
        name, at, answer = f"r{i}", rng.random() * 5, rng.randrange(1, 60)
        asked[name] = slo = (rng.choice([0.016, 0.5, 5.0]), rng.choice([0.014, 0.03, 0.1]))
        extra = {
            keys.LENGTHS: LengthDistribution.lognormal(answer, 0.5, 100).to_wire(),
            keys.SLO_TTFT: slo[0],
            keys.SLO_TPOT: slo[1],
        }
        arrivals.append(Arrival(at, make_request(name, [100 + i] * rng.randrange(4, 60), 100, at, extra), answer))
    arrivals.sort(key=lambda a: a.at_s)
    rows = drive(scheduler, arrivals, depth, StrictWorker(case)).rows
    ttft = [(r.ttft_s or 0.0) <= asked[r.request_id][0] for r in rows]
    tpot = [(r.tpot_s or 0.0) <= asked[r.request_id][1] for r in rows]
    counters = scheduler.counters
    assert counters.slo_requests == 60
    assert (counters.ttft_met, counters.ttft_missed) == (sum(ttft), 60 - sum(ttft))
    assert (counters.tpot_met, counters.tpot_missed) == (sum(tpot), 60 - sum(tpot))
    assert 0 < sum(ttft) < 60
    assert 0 < sum(tpot) < 60
    assert not scheduler.planner.attainment._waiting
    assert not scheduler.planner.attainment._first_s
