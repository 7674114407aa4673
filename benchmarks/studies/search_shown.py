"""Does the search of a sweep find the highest rate within 2 % in at most 12 runs? A dense grid says where it is.

    python benchmarks/studies/search_shown.py TRACE benchmarks/results/search.json

sweeps/highest_rate.yaml with the load made small: a GPU that is linear in its work, 70 blocks of KV, eight hundred
requests (of too few, most are served after the last arrival, whatever the rate), the first seed. Every setting is
searched for two bounds: SLO attainment of at least 0.9, and equal latency (at most twice the unloaded stock engine's
normalized latency). The grid: the range in steps of a quarter, the middle of where it first crosses the bound until
that is 3 % wide, and from 3 % below to 3 % above it steps of 1 %. Takes some minutes of CPU time; `--out DIR` keeps the
runs and goes on with them.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from short_json import dumps

from ecoserve.sweep.environment import hardware, versions
from ecoserve.sweep.execute import execute
from ecoserve.sweep.expansion import points_of
from ecoserve.sweep.plan import SweepPlan
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.search import SearchPlan
from ecoserve.sweep.searches import Searches
from ecoserve.sweep.summary import Meta, RunRow, SearchRow

PLAN = Path(__file__).parents[2] / "sweeps" / "highest_rate.yaml"
BOUNDS: dict[str, dict[str, Any]] = {
    "SLO attainment at least 0.9": {"metric": "slo_attainment", "at_least": 0.9},
    "equal latency": {"metric": "normalized_latency_mean_ms", "at_most_times_unloaded": 2.0},
}
RANGE = (2.0, 64.0)
COARSE, FINE, WIDTH = 1.25, 1.01, 1.03
SMALL = {"gpu": "linear", "model": None}
BLOCKS = 70


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("output", type=Path)
    parser.add_argument("--out", type=Path, default=None, help="folder for the runs; goes on with those it holds")
    parser.add_argument("--requests", type=int, default=800)
    arguments = parser.parse_args()
    out = arguments.out or Path(tempfile.mkdtemp(prefix="search-"))
    plan = SweepPlan.load(PLAN, trace=arguments.trace, predictor=str(PLAN.parent))
    small = {"seeds": [0], "requests": arguments.requests, "lengths": ["true"], "blocks": BLOCKS}
    plan = plan.model_copy(update={**small, "settings": plan.settings | SMALL})
    searches = {name: search(plan, bound, out / f"search-{i}") for i, (name, bound) in enumerate(BOUNDS.items())}
    grid = Grid(plan, out / "grid")
    grid.run(geometric(*RANGE, COARSE))
    found = []
    for name, rows in searches.items():
        for row in rows:
            low, high = grid.crossing(row)
            while low is not None and high is not None and high > low * (1 + 1e-9) * FINE:
                # Closer and closer in, without a look at what the search found.
                middle = math.sqrt(low * high)
                near = high <= low * WIDTH
                rates = geometric(low / WIDTH, high * WIDTH, FINE) if near else [float(f"{middle:.6g}")]
                grid.run(rates, only=row)
                low, high = grid.crossing(row)
                if near:
                    break
            found.append(shown(name, row, low, high))
            print(dumps(found[-1]), file=sys.stderr)
    result = {
        "command": "python benchmarks/studies/search_shown.py TRACE benchmarks/results/search.json",
        "plan": f"sweeps/highest_rate.yaml, seed 0, {plan.requests} requests, linear GPU, {BLOCKS} blocks",
        "settings": found,
        "most_runs": max(entry["runs"] for entry in found),
        "farthest_from_grid": max(abs(e["off_by"]) for e in found if e["off_by"] is not None),
        "grid_runs": grid.count,
        "versions": versions(),
        "hardware": hardware(),
    }
    arguments.output.write_text(dumps(result) + "\n", encoding="utf-8")
    print(dumps({k: result[k] for k in ("most_runs", "farthest_from_grid", "grid_runs")}))


def search(plan: SweepPlan, bound: dict[str, Any], out: Path) -> list[SearchRow]:
    """What the search comes to for every setting."""
    plan = plan.model_copy(update={"search": SearchPlan(range=RANGE, **bound)})
    folder = ResultFolder.create(out, Meta(), resume=True)
    execute([], folder, function=plan.run, jobs=0, searches=Searches(plan))
    return folder.summary().searches


class Grid:
    """Runs at many rates, written down as they come."""

    def __init__(self, plan: SweepPlan, out: Path) -> None:
        self.plan = plan
        self.folder = ResultFolder.create(out, Meta(), resume=True)
        self.count = 0

    def run(self, rates: list[float], only: SearchRow | None = None) -> None:
        runs = [
            point.run(rate, 0)
            for point in points_of(self.plan, None)
            if only is None or (point.settings["policy"], point.settings["lengths"]) == (only.policy, only.lengths)
            for rate in rates
        ]
        execute(runs, self.folder, function=self.plan.run, jobs=0)
        self.count = len(self.folder.summary().runs)

    def crossing(self, search: SearchRow) -> tuple[float | None, float | None]:
        """The highest rate of the grid below every one that misses the bound, and the lowest that misses it."""
        rows = [r for r in self.folder.summary().runs if (r.policy, r.lengths) == (search.policy, search.lengths)]
        rows.sort(key=lambda row: row.rate_rps or 0.0)
        met: float | None = None
        for row in rows:
            if not meets(row, search):
                return met, row.rate_rps
            met = row.rate_rps
        return met, None


def meets(row: RunRow, search: SearchRow) -> bool:
    value = float(getattr(row, search.metric))
    if search.at_least is not None:
        return value >= search.at_least
    return search.at_most is not None and value <= search.at_most


def shown(name: str, row: SearchRow, low: float | None, high: float | None) -> dict[str, Any]:
    off = None if low is None or row.rate_rps is None else row.rate_rps / low - 1
    return {
        "bound": name,
        "policy": row.policy,
        "lengths": row.lengths,
        "state": row.state,
        "runs": len(row.runs),
        "rate_rps": row.rate_rps,
        "missed_from_rps": row.missed_from_rps,
        "grid_rate_rps": low,
        "grid_missed_from_rps": high,
        "off_by": None if off is None else round(off, 5),
        "not_monotone": bool(row.missed_below_rps or row.met_above_rps),
    }


def geometric(low: float, high: float, factor: float) -> list[float]:
    count = round(math.log(high / low) / math.log(factor))
    return sorted({min(high, float(f"{low * factor**i:.6g}")) for i in range(count + 1)})


if __name__ == "__main__":
    main()
