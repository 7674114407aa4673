"""The highest rate at which nine tenths of the requests are within their SLO, on loads of different kinds.

    python benchmarks/studies/rates.py benchmarks/results/rates.json --data DATA --predictor CHECKPOINT \\
        [--loads alpaca,sharegpt] [--seeds 3] [--requests 1500]

Loads, SLO (scale 5) and lengths are those of ``default_against_vllm.py``; ecoserve has one setting for all. vLLM at its
best is chosen at the load's own rate, with 600 requests of one seed: priority = the predicted length, with forwards of
256 to 8,192 tokens, and the best of them with ``--watermark 0.05``. Rates are :data:`STEP` apart, and a rate counts as
reached if the mean over the seeds is. Figures beside it are those at the highest rate that vLLM at its best reaches.
Runs that are in the file already are not run again.
"""

from __future__ import annotations

import shlex
import statistics
from pathlib import Path
from typing import Any, Final

import common
import default_against_vllm as loads

STEP: Final = 1.06
SHARE: Final = 0.9
FORWARDS: Final = (256, 512, 1024, 2048, 4096, 8192)
LOADS: Final = (
    "alpaca",
    "alpaca 64 seats",
    "sharegpt",
    "azure conversations",
    "azure code",
    "arxiv",
    "mooncake",
    "coding agents",
)
#: Steps of the first stride of a search.
STRIDE: Final = 4


class Rates:
    def __init__(self, output: Path, command: str, data: Path, predictor: Path) -> None:
        self.output, self.command, self.data, self.predictor = output, command, data, predictor
        self.runs: dict[str, dict[str, float]] = common.read(output).get("runs", {})
        self.tables: dict[str, Any] = {}

    def run(self, load: str, row: str, step: int, seed: int, requests: int) -> dict[str, float]:
        """One run's figures; ``step``: its rate, in steps from the load's own."""
        rate = round(loads.LOADS[load]["rate_rps"] * STEP**step, 3)
        name = f"{load} | {row} | {rate:g}/s | seed {seed} | {requests}"
        if name not in self.runs:
            self.runs[name] = loads.run(load, row, seed, requests, self.data, self.predictor, rate_rps=rate)
            print(name, self.runs[name], flush=True)
            self.save()
        return self.runs[name]

    def mean(self, load: str, row: str, step: int, seeds: int, requests: int) -> dict[str, float]:
        found = [self.run(load, row, step, seed, requests) for seed in range(seeds)]
        return {n: round(statistics.fmean(f[n] for f in found), d) for n, d in loads.FIGURES.items()}

    def highest(self, load: str, row: str, seeds: int, requests: int) -> int | None:
        """The highest step that is reached; None if none of 48 below the load's own is."""

        def reached(step: int) -> bool:
            return self.mean(load, row, step, seeds, requests)["in_slo"] >= SHARE

        low, high = 0, STRIDE
        while not reached(low):
            low, high = low - STRIDE, low
            if low < -12 * STRIDE:
                return None
        while high > low + 1 and high == low + STRIDE and reached(high):
            low, high = high, high + STRIDE
        while high > low + 1:
            middle = (low + high) // 2
            low, high = (middle, high) if reached(middle) else (low, middle)
        return low

    def best_of_vllm(self, load: str) -> str:
        """The row of vLLM that meets the most SLOs at the load's own rate."""

        def merit(row: str) -> tuple[float, float]:
            figures = self.run(load, row, 0, 0, 600)
            return figures["in_slo"], -figures["normalized_ms"]

        best = max((f"vllm priority {n}" for n in FORWARDS), key=merit)
        return max((best, f"{best}, watermark 0.05"), key=merit)

    def measure(self, load: str, seeds: int, requests: int) -> None:
        best = self.best_of_vllm(load)
        rows = {"vllm": "vllm", "vllm at its best": best, "ecoserve": "ecoserve"}
        steps = {name: self.highest(load, row, seeds, requests) for name, row in rows.items()}
        at = steps["vllm at its best"]
        table: dict[str, Any] = {}
        for name, step in steps.items():
            rate = None if step is None else round(loads.LOADS[load]["rate_rps"] * STEP**step, 2)
            figures = {} if at is None else self.mean(load, rows[name], at, seeds, requests)
            table[name] = {"row": rows[name], "rate": rate, "at vLLM's best": figures}
        self.tables[load] = table
        self.save()

    def save(self) -> None:
        common.write(self.output, {"command": self.command, "tables": self.tables, "runs": self.runs})


HEAD: Final = ("load", "", "rate, req/s", "in SLO", "mean, s", "p99, s", "TPOT p99, ms", "tokens/s", "preemptions")


def table(content: dict[str, Any]) -> str:
    lines = []
    for load, rows in content["tables"].items():
        for name, row in rows.items():
            f = row["at vLLM's best"]
            best = f" ({row['row'].removeprefix('vllm priority ')})" if name == "vllm at its best" else ""
            figures = [f"{100 * f['in_slo']:.1f} %", f"{f['e2el_s']:.2f}", f"{f['e2el_p99_s']:.1f}"]
            figures += [f"{f['tpot_p99_ms']:.0f}", f"{f['tokens_per_s']:,.0f}", f"{f['preemptions']:.0f}"]
            lines.append([load if name == "vllm" else "", name + best, f"{row['rate']:.2f}", *figures])
    return common.markdown(HEAD, lines)


def main() -> int:
    for forward in FORWARDS:
        for policy, words in (("vllm-priority", ""), ("vllm-priority-watermark", ", watermark 0.05")):
            loads.ROWS[f"vllm priority {forward}{words}"] = {"policy": policy, "max_num_batched_tokens": forward}
    parser = common.arguments_of(__doc__)
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--data", type=Path, help="folder of the traces")
    parser.add_argument("--predictor", type=Path, help="checkpoint for Alpaca's lengths")
    parser.add_argument("--loads", default=",".join(LOADS), help="names of loads, separated by commas")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=1500)
    parser.add_argument("--page", type=Path, help="document whose table is made anew from OUTPUT; nothing is run")
    given = parser.parse_args()
    if given.page:
        content = common.read(given.output)
        common.renew(given.page, "rates", {given.output.stem: lambda: table(content)})
        return 0
    if given.data is None or given.predictor is None:
        parser.error("--data and --predictor are needed for runs")
    words = ["benchmarks/results/" + given.output.name, "--data", "DATA", "--predictor", "CHECKPOINT"]
    words += ["--loads", shlex.quote(given.loads), "--seeds", given.seeds, "--requests", given.requests]
    rates = Rates(given.output, common.command("rates", *words), given.data, given.predictor)
    for load in given.loads.split(","):
        rates.measure(load, given.seeds, given.requests)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
