"""The paper's claims against every system that it names, today's vLLM, DistServe and a bound, on a modelled A100.

    python benchmarks/studies/paper_claims.py benchmarks/results/paper_claims.json --data DATA \\
        [--loads sharegpt,alpaca,arxiv] [--rows NAME;NAME] [--seeds 3] [--cpu-s 1200] [--page FILE.md]

llama-13b, two steps in flight, virtual time; requests carry an SLO of 5 times what an idle engine needs. Predicted
lengths rank with tau 0.6, as a trained predictor's do on Alpaca. For every row a search finds the highest rate at which
90 % of the requests are in SLO, and the highest at which mean latency per token is at most twice an idle engine's: on
one list of rates 15 % apart, seed 0, and between the last that holds and the first that does not by interpolation. Then
all rows serve at one rate, half as much again as the highest of vLLM of 2024, with every seed.

Runs that are in the file already are not run again; after ``--cpu-s`` seconds of CPU time no other is begun. What was
not run is in the file, and ``--page`` writes the tables into that document. DATA holds the traces.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import common
import numpy as np
from default_against_vllm import ALPACA

_A100: Final = {"gpu": "a100_sxm", "model": "llama-13b", "depth": 2}
#: Loads, and the lowest rate of their search.
LOADS: Final[dict[str, dict[str, Any]]] = {
    "sharegpt": {
        **_A100,
        "trace": "traces/sharegpt_lengths_llama2.csv.gz",
        "max_tokens": 2048,
        "max_model_len": 4096,
        "requests": 250,
    },
    "alpaca": {**ALPACA, **_A100, "requests": 800},
    "arxiv": {
        **_A100,
        "trace": "traces/arxiv_summarization_lengths_llama2.csv.gz",
        "max_tokens": 1024,
        "max_model_len": 8192,
        "requests": 150,
    },
}
LOWEST: Final = {"sharegpt": 0.7, "alpaca": 8.0, "arxiv": 0.3}
#: Rates of a search: the lowest, and each so many times the one before.
STEP: Final = 1.15
STEPS: Final = 24
SCALES: Final = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
SLO_SCALE: Final = 5.0
IN_SLO: Final = 0.9
#: Bound of the mean latency per token, times an idle engine's.
LATENCY: Final = 2.0
#: The common rate, over the highest rate in SLO of the paper's opponent.
OVER: Final = 1.5
OPPONENT: Final = "vLLM of 2024"
OURS: Final = "ecoserve"
PREDICTED: Final = "tau:0.6"
_SPLIT: Final = {"policy": "distserve", "lengths": "none"}
#: Rows, in the order in which they are run.
ROWS: Final[dict[str, dict[str, Any]]] = {
    OPPONENT: {"policy": "vllm-2024", "lengths": "none"},
    OURS: {"policy": "ecoserve", "lengths": PREDICTED},
    "vLLM": {"policy": "vllm", "lengths": "none"},
    "vLLM, priority, forwards of 512": {"policy": "vllm-priority", "lengths": PREDICTED, "max_num_batched_tokens": 512},
    "bound": {"policy": "bound", "lengths": "none"},
    "ecoserve, true lengths": {"policy": "ecoserve", "lengths": "true"},
    "ecoserve, no lengths": {"policy": "ecoserve", "lengths": "none"},
    "DistServe, 1 + 1 GPUs": {**_SPLIT, "replicas": 2, "prefill_replicas": 1},
    "DistServe, 1 + 2 GPUs": {**_SPLIT, "replicas": 3, "prefill_replicas": 1},
    "FastServe": {"policy": "fastserve", "lengths": "none"},
    "Sarathi-Serve": {"policy": "sarathi", "lengths": "none"},
    "FastGen": {"policy": "fastgen", "lengths": "none"},
    "MultiRes": {"policy": "multires", "lengths": PREDICTED},
    "ORCA": {"policy": "orca", "lengths": "none"},
    "Past-Future": {"policy": "past-future", "lengths": "none"},
    "HRRN": {"policy": "hrrn", "lengths": PREDICTED},
    "smallest volume first": {"policy": "volume", "lengths": PREDICTED},
    "the paper's mechanisms": {"policy": "ecoserve-paper", "lengths": PREDICTED},
}
#: The paper's claims, each "up to".
CLAIMS: Final = {
    "rate": ("throughput at equal latency, times", OPPONENT, "4"),
    "jct": ("lower mean JCT", OPPONENT, "91 %"),
    "in_slo": ("higher share in SLO", OPPONENT, "91 %"),
    "gpus": ("fewer GPUs at equal goodput", "DistServe", "78 %"),
}


def rates(load: str) -> list[float]:
    return [round(LOWEST[load] * STEP**k, 3) for k in range(STEPS)]


def run(load: str, row: str, rate: float, seed: int, data: Path) -> dict[str, Any]:
    """One run's figures. ``rate``: requests a second for each GPU."""
    from ecoserve.serving.simulate.cost import alone_s
    from ecoserve.serving.simulate.run import SimulateSettings, simulate
    from ecoserve.serving.simulate.settings import machine_of

    chosen = {**LOADS[load], **ROWS[row]}
    gpus = chosen.get("replicas", 1)
    chosen |= {"trace": str(data / chosen["trace"]), "requests": chosen["requests"] * gpus}
    settings = SimulateSettings(**chosen, rate_rps=rate * gpus, seed=seed, slo_scale=SLO_SCALE)
    result = simulate(settings)
    cost = machine_of(settings).cost
    alone = np.array([alone_s(cost, r.prompt_tokens, r.output_tokens, 2, 2048) for r in result.rows])
    e2el = np.array([r.e2el_s for r in result.rows], dtype=float)
    tokens = np.array([r.output_tokens for r in result.rows])
    summary = result.summary()
    return {
        "in_slo": [round(float((e2el <= scale * alone).mean()), 4) for scale in SCALES],
        "normalized_ms": round(1e3 * float((e2el / tokens).mean()), 2),
        "idle_ms": round(1e3 * float((alone / tokens).mean()), 2),
        "jct_s": round(float(e2el.mean()), 3),
        "jct_p99_s": round(float(np.percentile(e2el, 99)), 2),
        "ttft_s": round(summary["ttft_mean_ms"] / 1e3, 3),
        "tokens_per_s": round(summary["output_tokens_per_s"] / gpus, 1),
        "preemptions": summary["preemptions"],
        "kv_demand_peak": round(summary["kv_demand_peak"], 2),
    }


#: How far a run is on the right side of a bound: 0 at the bound, 1 a whole bound away.
MARGINS: Final[dict[str, Callable[[dict[str, Any]], float]]] = {
    "in_slo": lambda f: f["in_slo"][SCALES.index(SLO_SCALE)] / IN_SLO - 1.0,
    "latency": lambda f: 1.0 - f["normalized_ms"] / f["idle_ms"] / LATENCY,
}


def search(margin: Callable[[int], float | None], steps: int = STEPS) -> tuple[float | None, bool]:
    """Highest place on the list of rates with a margin of at least 0, interpolated; None: not even the first.

    ``margin``: of a place; None if there is no time left. The second value is whether the search came to its end; the
    first is then the best so far. Places rise to a doubled stride before they are halved.
    """
    known: dict[int, float] = {}
    low, high = -1, steps
    stride = 8
    while high - low > 1:
        place = (low + high) // 2 if high < steps or low + stride >= steps else low + stride
        found = margin(place)
        if found is None:
            return (float(low) if low >= 0 else None), False
        known[place] = found
        low, high = (place, high) if found >= 0 else (low, place)
    if low < 0:
        return None, True
    if high == steps:
        return float(low), True
    return low + known[low] / (known[low] - known[high]), True


class Runs:
    """The runs of the file, and those that there is time for."""

    def __init__(self, file: Path, command: str, data: Path, cpu_s: float) -> None:
        self.file, self.command, self.data = file, command, data
        self.until = time.process_time() + cpu_s
        self.content = common.read(file)
        self.known = {(r["load"], r["row"], r["rate"], r["seed"]): r["figures"] for r in self.content.get("runs", [])}

    def get(self, load: str, row: str, rate: float, seed: int = 0) -> dict[str, Any] | None:
        """A run's figures, made now if there is time; None if there is none."""
        key = (load, row, rate, seed)
        if key not in self.known:
            if time.process_time() >= self.until:
                return None
            self.known[key] = run(load, row, rate, seed, self.data)
            print(*key, self.known[key]["in_slo"][-1], self.known[key]["normalized_ms"], flush=True)
            self.save()
        return self.known[key]

    def save(self) -> None:
        runs = [
            dict(zip(("load", "row", "rate", "seed"), key, strict=True)) | {"figures": figures}
            for key, figures in self.known.items()
        ]
        self.content |= {"command": self.command, "scales": SCALES, "loads": LOADS, "rows": ROWS, "runs": runs}
        common.write(self.file, self.content)

    def highest(self, load: str, row: str, bound: str) -> tuple[float | None, bool]:
        """Requests a second for each GPU, and whether the search came to its end."""
        listed = rates(load)

        def margin(place: int) -> float | None:
            figures = self.get(load, row, listed[place])
            return None if figures is None else MARGINS[bound](figures)

        place, done = search(margin)
        return (None if place is None else round(LOWEST[load] * STEP**place, 3)), done


#: Rows whose searches come first: the claims are about them.
FIRST: Final = tuple(ROWS)[:5]


def measure(runs: Runs, loads: Sequence[str], rows: Sequence[str], seeds: int) -> None:
    """Load by load, the most telling first: the first rows' searches, all rows at the common rate, the other rows'."""
    searches: dict[str, dict[str, dict[str, Any]]] = runs.content.setdefault("searches", {})
    for load in loads:
        found = searches.setdefault(load, {})

        def find(some: Sequence[str], load: str = load, found: dict[str, Any] = found) -> None:
            for row in some:
                for bound in MARGINS:
                    rate, done = runs.highest(load, row, bound)
                    found.setdefault(row, {})[bound] = {"rate": rate, "done": done}

        find([row for row in rows if row in FIRST])
        rate = rate_for_all(found)
        at = [] if rate is None else [(row, rate) for row in rows]
        for seed in range(seeds):
            for row, common_rate in at:
                runs.get(load, row, common_rate, seed)
            if seed == 0:
                find([row for row in rows if row not in FIRST])
    runs.save()


def rate_for_all(searches: dict[str, Any]) -> float | None:
    found = searches.get(OPPONENT, {}).get("in_slo", {})
    return round(OVER * found["rate"], 3) if found.get("rate") and found["done"] else None


# -- tables ------------------------------------------------------------------------------------------------


def at_common_rate(content: dict[str, Any], load: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Rows with their figures at the common rate, one for each seed."""
    rate = rate_for_all(content["searches"].get(load, {}))
    for row in ROWS:
        found = [r["figures"] for r in content["runs"] if (r["load"], r["row"], r["rate"]) == (load, row, rate)]
        if rate is not None and found:
            yield row, found


def searches_table(content: dict[str, Any]) -> str:
    """Highest rates per GPU of every row and load, and the share of the bound's."""
    loads = [load for load in LOADS if load in content["searches"]]
    head = ["requests/s for each GPU", *(f"{load}: {what}" for load in loads for what in ("90 % in SLO", "2 x idle"))]
    rows = []
    for row in ROWS:
        cells = [row]
        for load in loads:
            for bound in MARGINS:
                found = content["searches"][load].get(row, {}).get(bound, {"rate": None, "done": False})
                most = content["searches"][load].get("bound", {}).get(bound, {}).get("rate")
                if found["rate"] is None:
                    cells.append(f"< {LOWEST[load]:g}" if found["done"] else "not run")
                    continue
                share = f" ({100 * found['rate'] / most:.0f} %)" if most else ""
                cells.append(f"{'' if found['done'] else '>= '}{found['rate']:.3g}{share}")
        rows.append(cells)
    return common.markdown(head, rows)


def common_rate_table(content: dict[str, Any]) -> str:
    head = ["load, rate", "row", "JCT, s", "JCT p99, s", "TTFT, s", "ms/token", "x bound", "tokens/s", "preemptions"]
    rows = []
    for load in content["searches"]:
        found = dict(at_common_rate(content, load))
        least = _mean(found["bound"], "normalized_ms") if "bound" in found else None
        for row, figures in found.items():
            name = f"{load}, {rate_for_all(content['searches'][load]):g}/s" if row == OPPONENT else ""
            low, high = (f(f_["jct_s"] for f_ in figures) for f in (min, max))
            ms = _mean(figures, "normalized_ms")
            cells = [name, row, f"{_mean(figures, 'jct_s'):.1f} [{low:.1f}, {high:.1f}]"]
            cells += [f"{_mean(figures, 'jct_p99_s'):.0f}", f"{_mean(figures, 'ttft_s'):.2f}", f"{ms:.0f}"]
            cells += [f"{ms / least:.2f}" if least else "", f"{_mean(figures, 'tokens_per_s'):.0f}"]
            rows.append([*cells, f"{_mean(figures, 'preemptions'):.0f}"])
    return common.markdown(head, rows)


def attainment_table(content: dict[str, Any]) -> str:
    head = ["load", "row", *(f"{scale:g}" for scale in SCALES), "seeds"]
    rows = []
    for load in content["searches"]:
        for row, figures in at_common_rate(content, load):
            shares = np.array([f["in_slo"] for f in figures]).mean(axis=0)
            name = load if row == OPPONENT else ""
            rows.append([name, row, *(f"{100 * share:.0f}" for share in shares), str(len(figures))])
    return common.markdown(head, rows)


def claims_table(content: dict[str, Any]) -> str:
    """The paper's claims, what ours and the bound reach, and ours against today's vLLM."""
    loads = list(content["searches"])
    head = ["claim", "the paper: up to", *(f"{load}: ours, bound" for load in loads), "ours against today's vLLM"]
    rows = []
    for key, (what, against, theirs) in CLAIMS.items():
        cells = [f"{what} ({against})", theirs]
        for load in loads:
            cells.append(", ".join(_claim(content, load, row, key, against) for row in (OURS, "bound")))
        today = [_claim(content, load, OURS, key, "vLLM") if key != "gpus" else "" for load in loads]
        rows.append([*cells, ", ".join(text for text in today if text)])
    return common.markdown(head, rows)


def _claim(content: dict[str, Any], load: str, row: str, key: str, against: str) -> str:
    """One row's gain over another, in the unit of the claim; "-" where a part was not run."""
    searches = content["searches"][load]

    def rate(name: str, bound: str) -> float:
        found = searches.get(name, {}).get(bound, {})
        return found["rate"] or math.nan if found.get("done") else math.nan

    if key == "rate":
        value = rate(row, "latency") / rate(against, "latency")
        return "-" if math.isnan(value) else f"{value:.2f}"
    if key == "gpus":
        split = [rate(name, "in_slo") for name in ROWS if name.startswith(against)]
        value = 1.0 - max((r for r in split if r == r), default=math.nan) / rate(row, "in_slo")
        return "-" if math.isnan(value) else f"{100 * value:.0f} %"
    found = dict(at_common_rate(content, load))
    if row not in found or against not in found:
        return "-"
    if key == "jct":
        return f"{100 * (1.0 - _mean(found[row], 'jct_s') / _mean(found[against], 'jct_s')):.0f} %"
    mine, other = (np.array([f["in_slo"] for f in found[name]]).mean(axis=0) for name in (row, against))
    # Where hardly any request is in SLO, a ratio says nothing.
    gains = [(m / o - 1.0, scale) for m, o, scale in zip(mine, other, SCALES, strict=True) if o >= 0.05]
    if not gains:
        return "-"
    gain, scale = max(gains)
    return f"{100 * gain:.0f} % (scale {scale:g})"


def _mean(figures: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.fmean(f[name] for f in figures)


def main() -> int:
    parser = common.arguments_of(__doc__)
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--data", type=Path, required=True, help="folder of the traces")
    parser.add_argument("--loads", default=",".join(LOADS), help="names of loads, separated by commas")
    parser.add_argument("--rows", default=";".join(ROWS), help="names of rows, separated by semicolons")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cpu-s", type=float, default=1200.0, help="CPU seconds after which no run is begun")
    parser.add_argument("--page", type=Path, help="document whose tables are made anew")
    given = parser.parse_args()
    words = ["benchmarks/results/" + given.output.name, "--data", "DATA", "--seeds", given.seeds]
    runs = Runs(given.output, common.command("paper_claims", *words), given.data, given.cpu_s)
    measure(runs, given.loads.split(","), given.rows.split(";"), given.seeds)
    if given.page is not None:
        content = common.read(given.output)
        tables = {
            "claims": claims_table, "highest rates": searches_table, "one rate": common_rate_table,
            "share in SLO by scale": attainment_table,
        }  # fmt: skip
        common.renew(given.page, "paper_claims", {n: (lambda t=t: t(content)) for n, t in tables.items()})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
