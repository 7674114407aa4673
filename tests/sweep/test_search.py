"""Searching for the highest rate: how near, in how few runs, what is said where a metric misbehaves, and in a sweep."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoserve.errors import ConfigError
from ecoserve.sweep.execute import Tally, execute
from ecoserve.sweep.expansion import expand
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.plan import SweepPlan
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.search import Search, Searches, SearchPlan
from ecoserve.sweep.summary import Meta

LATENCY = {"metric": "normalized_latency_mean_ms", "at_most": 60.0}
SHARE = {"metric": "slo_attainment", "at_least": 0.9}


def searched(search: Search, metric: Callable[[float, int], float | None]) -> int:
    """Run a search to its end; the number of runs."""
    count = 0
    while asked := search.next():
        assert len(set(asked)) == len(asked)
        for rate, seed in asked:
            search.add(rate, seed, metric(rate, seed))
            count += 1
    return count


def attainment(knee: float, steepness: float) -> Callable[[float, int], float]:
    """1 at low rates, falling through 0.9 somewhat below ``knee``."""
    return lambda rate, seed: 1 / (1 + (rate / knee) ** steepness)


def latency(knee: float, steepness: float) -> Callable[[float, int], float]:
    """30 ms at low rates, 60 at ``knee``, growing without end."""
    return lambda rate, seed: 30 * (1 + (rate / knee) ** steepness)


@given(knee=st.floats(2.2, 60), steepness=st.floats(1.5, 60))
@settings(max_examples=150, deadline=None)
def test_within_the_tolerance_in_at_most_twelve_runs(knee, steepness):
    search = Search(SearchPlan(range=(2, 64), **LATENCY), (0,), 60.0)
    assert searched(search, latency(knee, steepness)) <= 12
    low, high = search.bracket()
    assert search.state == "found"
    assert low <= knee * (1 + 1e-9) < high * (1 + 1e-9)
    assert high <= low * 1.02


@given(
    knee=st.floats(4, 50), steepness=st.floats(3, 40), spread=st.lists(st.floats(-0.04, 0.04), min_size=3, max_size=3)
)
@settings(max_examples=100, deadline=None)
def test_the_mean_over_seeds_counts(knee, steepness, spread):
    one = attainment(1.0, steepness)

    def metric(rate: float, seed: int) -> float:
        return one(rate / (knee * math.exp(spread[seed])), seed)

    def mean(rate: float) -> float:
        return sum(metric(rate, seed) for seed in range(3)) / 3

    search = Search(SearchPlan(range=(1, 64), **SHARE), (0, 1, 2), 0.9)
    searched(search, metric)
    low, high = search.bracket()
    assert len(search.values) <= 12
    assert mean(low) >= 0.9 > mean(high)
    assert search.state == "out of runs" or high <= low * 1.02
    assert search.contrary() == ([], [])


@pytest.mark.parametrize(
    ("knee", "state", "bracket"),
    [(1000.0, "met everywhere", (64.0, None)), (0.1, "met nowhere", (None, 2.0))],
)
@pytest.mark.parametrize("seeds", [(0,), (3, 5)])
def test_ends_of_the_range(knee, state, bracket, seeds):
    search = Search(SearchPlan(range=(2, 64), **LATENCY), seeds, 60.0)
    searched(search, latency(knee, 8.0))
    assert (search.state, search.bracket()) == (state, bracket)
    assert len(search.values) <= 12


def test_more_load_that_makes_it_better_again_is_said():
    def metric(rate: float, seed: int) -> float:
        return 0.5 if 10 <= rate < 20 else 1.0 if rate < 40 else 0.1

    # The first rate tried, in the middle, lies in the hole; the next ones above would not be seen at all.
    search = Search(SearchPlan(range=(4, 36), tolerance=0.02, max_runs=12, **SHARE), (0,), 0.9)
    searched(search, metric)
    low, high = search.bracket()
    assert (low < 10 <= high, search.state) == (True, "found")
    search.add(30.0, 0, 1.0)
    assert search.contrary() == ([], [30.0])


def test_what_has_no_figure_and_what_fails_ends_the_search():
    search = Search(SearchPlan(range=(2, 64), **SHARE), (0,), 0.9)
    assert searched(search, lambda rate, seed: None) == 1
    assert search.state == "no such figure"
    search = Search(SearchPlan(range=(2, 64), **SHARE), (0,), 0.9)
    search.failed()
    assert search.next() == []


def test_too_few_runs_leave_a_wide_bracket_and_say_so():
    search = Search(SearchPlan(range=(2, 64), max_runs=3, **LATENCY), (0,), 60.0)
    assert searched(search, latency(20, 8)) == 3
    assert search.state == "out of runs"
    low, high = search.bracket()
    assert low < 20 < high


PLAN = """
trace: synthetic
policies: [vllm, ecoserve]
lengths: [true, noise:0.5]
seeds: [0, 1]
requests: 200
search: {range: [0.5, 64], metric: normalized_latency_mean_ms, BOUND}
run: small_runs:queue
"""
BOUNDS = {"plain": "at_most: 60", "unloaded": "at_most_times_unloaded: 2, unloaded_rate: 0.001"}


def plan_of(folder: Path, bound: str = "plain") -> SweepPlan:
    path = folder / "plan.yaml"
    path.write_text(PLAN.replace("BOUND", BOUNDS[bound]), encoding="utf-8")
    return SweepPlan.load(path)


def run(plan: SweepPlan, out: Path, *, jobs: int = 0, resume: bool = False) -> tuple[ResultFolder, Tally]:
    folder = ResultFolder.create(out, Meta(), resume=resume)
    tally = execute(expand(plan), folder, function=plan.run, jobs=jobs, searches=Searches.of(plan))
    return ResultFolder.open(out), tally


def test_a_sweep_searches_for_every_setting(tmp_path):
    folder, tally = run(plan_of(tmp_path), tmp_path / "out")
    summary = folder.summary()
    assert [(row.policy, row.lengths) for row in summary.searches] == [
        ("vllm", "none"), ("ecoserve", "true"), ("ecoserve", "noise:0.5"),
    ]  # fmt: skip
    rows = {row.run: row for row in summary.runs}
    assert len(rows) == tally.finished
    for search in summary.searches:
        assert search.state == "found"
        assert (search.missed_below_rps, search.met_above_rps) == ([], [])
        assert search.missed_from_rps <= search.rate_rps * 1.02
        assert len(search.tried) <= 12
        mine = [rows[key] for key in search.runs]
        assert {row.search for row in mine} == {"step"}
        assert {row.rate_rps for row in mine} == set(search.tried)
        at = [row.normalized_latency_mean_ms for row in mine if row.rate_rps == search.rate_rps]
        assert len(at) == 2
        assert sum(at) / 2 == search.value <= 60 < search.value_missed
    # Shortest first, with true lengths, carries the most.
    assert summary.searches[1].rate_rps > summary.searches[0].rate_rps


def test_twice_the_unloaded_latency(tmp_path):
    folder, _ = run(plan_of(tmp_path, "unloaded"), tmp_path / "out")
    summary = folder.summary()
    unloaded = [row for row in summary.runs if row.search == "unloaded"]
    assert [(row.policy, row.rate_rps, row.seed) for row in unloaded] == [("vllm", 0.001, 0), ("vllm", 0.001, 1)]
    bound = sum(row.normalized_latency_mean_ms for row in unloaded)  # twice the mean of two
    assert all(search.at_most == pytest.approx(bound) for search in summary.searches)
    assert bound == pytest.approx(40)  # 20 ms a token and no queueing
    assert all(search.state == "found" for search in summary.searches)


@pytest.mark.usefixtures("quick_workers")
@pytest.mark.parametrize(("bound", "jobs"), [("plain", 0), ("unloaded", 2)])
def test_neither_processes_nor_an_interruption_change_anything(tmp_path, bound, jobs):
    plan = plan_of(tmp_path, bound)
    whole, tally = run(plan, tmp_path / "whole")
    summary = whole.summary()
    keys = [row.run for row in summary.runs]
    # As after a kill: half of the records, in no order.
    out, kept = tmp_path / "again", len(keys) // 2
    shutil.copytree(whole.path, out)
    for key in sorted(keys)[kept:]:
        (out / "runs" / f"{key}.json").unlink()
    again, more = run(plan, out, resume=True, jobs=jobs)
    assert (more.skipped, more.finished) == (kept, tally.finished - kept)
    assert again.summary().meta.tables_sha256 == summary.meta.tables_sha256
    assert again.summary().searches == summary.searches
    assert [row.run for row in again.summary().runs] == keys


def test_a_failing_run_ends_its_own_search(tmp_path):
    path = tmp_path / "plan.yaml"
    text = PLAN.replace("BOUND", "at_most: 60").replace("small_runs:queue", "small_runs:fails_on_seed_one")
    path.write_text(text, encoding="utf-8")
    folder, tally = run(SweepPlan.load(path), tmp_path / "out")
    summary = folder.summary()
    assert {search.state for search in summary.searches} == {"a run failed"}
    assert tally.failed == len(summary.failures) >= 3


def test_a_metric_that_a_run_has_not_is_said(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        PLAN.replace("normalized_latency_mean_ms, BOUND", "slo_attainment, at_least: 0.9"), encoding="utf-8"
    )
    folder, _ = run(SweepPlan.load(path), tmp_path / "out")
    assert {search.state for search in folder.summary().searches} == {"no such figure"}


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ("{range: [2, 64], metric: slo_attainment}", "name one of at_least, at_most"),
        ("{range: [2, 64], metric: slo_attainment, at_least: 0.9, at_most: 1}", "name one of at_least, at_most"),
        ("{range: [64, 2], metric: slo_attainment, at_least: 0.9}", "the lower rate first"),
        ("{range: [2, 64], metric: attainment, at_least: 0.9}", "attainment is no figure of a run"),
        ("{range: [2, 64], metric: policy, at_least: 0.9}", "policy is no figure of a run"),
        ("{range: [2, 64], metric: slo_attainment, at_least: 0.9, tolerance: 0}", "search.tolerance"),
        ("{axis: seed, range: [2, 64], metric: slo_attainment, at_least: 0.9}", "search.axis"),
    ],
)
def test_mistakes_in_a_search_are_named(tmp_path, search, message):
    path = tmp_path / "plan.yaml"
    path.write_text(f"{{trace: synthetic, search: {search}}}", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        SweepPlan.load(path)


def test_a_search_at_servers_needs_the_baseline(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        "{trace: synthetic, engine: url, urls: {ecoserve: 'http://a'}, "
        "search: {range: [2, 64], metric: normalized_latency_mean_ms, at_most_times_unloaded: 2}}",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match="needs a server of policy vllm"):
        Searches.of(SweepPlan.load(path))


def test_runs_of_a_search_are_no_runs_of_the_plan(tmp_path):
    plan = plan_of(tmp_path)
    assert expand(plan) == []
    both = plan.model_copy(update={"rates": [3.0]})
    keys = {r.key for r in expand(both)}
    first: list[PlannedRun] = Searches.of(both).begin()
    assert len(keys) == 6
    assert not keys & {r.key for r in first}
    assert all(a != b for a, b in itertools.combinations([json.dumps(dict(r.settings)) for r in first], 2))
