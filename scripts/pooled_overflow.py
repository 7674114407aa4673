"""How often does a pooled batch overflow, against the epsilon it was admitted with; and what would padding have cost?

    python scripts/pooled_overflow.py benchmarks/results/pooled_overflow.json

Requests arrive with log-normal predictions (medians log-normal around 150 tokens, log error 0.6, prompts of 64) and are
admitted into an empty cache until the forecast refuses one; then all run to their ends and nobody is admitted any more.
Their errors have a common share rho. A batch overflows if what it holds ever passes the cache. The forecasts are asked
with rho as it is, and as if there were none; without the discount of the far future, which counts on admission to
react.

Padding: each request is promised its quantile q, as many are admitted as fit, and q is the one at which the batch
overflows as often as the pooled one did.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import numpy as np

from ecoserve.files import write_atomically
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.forecast import Forecast
from ecoserve.serving.core.scenarios import Scenarios
from ecoserve.serving.core.tasks import Task, TaskState

BLOCK: Final = 16
LIMIT: Final = 1281
PROMPT: Final = 64
LONGEST: Final = 2048
SIGMA: Final = 0.6
#: No discount of the far future.
NEVER: Final = 1e12
EPSILONS: Final = (0.01, 0.05, 0.1, 0.3)
RHOS: Final = (0.0, 0.2, 0.5)
QUANTILES: Final = np.round(np.arange(0.01, 0.9, 0.01), 2)


class Batch:
    """Candidates of one trial: predictions, and what their lengths turn out to be."""

    def __init__(self, seed: int, rho: float, count: int = 400) -> None:
        rng = np.random.default_rng(seed)
        medians = 150.0 * np.exp(rng.normal(0.0, 0.8, count))
        errors = math.sqrt(rho) * rng.normal() + math.sqrt(1.0 - rho) * rng.normal(size=count)
        self.lengths = [LengthDistribution.lognormal(float(m), SIGMA, LONGEST) for m in medians]
        self.true = np.clip(np.rint(medians * np.exp(SIGMA * errors)), 1, LONGEST).astype(int)

    def overflows(self, count: int) -> bool:
        """Whether the first ``count`` together ever hold more than there is."""
        ends = np.sort(self.true[:count])
        # While the k-th shortest writes its last token, all that are not shorter hold as much.
        held = np.ceil((PROMPT + ends) / BLOCK) * np.arange(count, 0, -1)
        return bool(held.max() > LIMIT)

    def pooled(self, kind: type[Forecast] | type[Scenarios], rho: float, epsilon: float) -> int:
        """How many the forecast admits."""
        forecast = kind(BLOCK, LONGEST, rho, NEVER)
        forecast.rebase([])
        for i, lengths in enumerate(self.lengths):
            task = Task(f"r{i}", PROMPT, lengths, LONGEST, predicted=True, arrival_s=0.0, state=TaskState.WAITING)
            if not forecast.fits_with(task, LIMIT, epsilon):
                return i
            forecast.enter(task)
            forecast.add(task)
        raise AssertionError("more candidates are needed")

    def padded(self, quantile: float) -> int:
        """How many fit if each is promised this quantile."""
        windows = np.cumsum([-(-(PROMPT + d.quantile(quantile)) // BLOCK) for d in self.lengths])
        return int(np.searchsorted(windows, LIMIT, side="right"))


def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def rows(trials: int) -> list[dict[str, Any]]:
    """One row for each rho, forecast, assumption and epsilon."""
    out = []
    for rho in RHOS:
        batches = [Batch(seed, rho) for seed in range(trials)]
        padding = []
        for q in QUANTILES:
            counts = [b.padded(float(q)) for b in batches]
            share = mean(b.overflows(n) for b, n in zip(batches, counts, strict=True))
            padding.append((share, float(q), mean(counts)))
        for name, kind in (("spread", Forecast), ("scenarios", Scenarios)):
            for assumed in dict.fromkeys((rho, 0.0)):
                for epsilon in EPSILONS:
                    counts = [b.pooled(kind, assumed, epsilon) for b in batches]
                    share = mean(b.overflows(n) for b, n in zip(batches, counts, strict=True))
                    # The most that padding admits without overflowing oftener.
                    safe = [p for p in padding if p[0] <= share]
                    rival = max(safe, key=lambda p: p[2]) if safe else None
                    out.append(
                        {
                            "rho": rho,
                            "forecast": name,
                            "rho_assumed": assumed,
                            "epsilon": epsilon,
                            "overflow_share": round(share, 4),
                            "admitted": round(mean(counts), 2),
                            "padding_quantile": None if rival is None else rival[1],
                            "padding_admitted": None if rival is None else round(rival[2], 2),
                        }
                    )
    return out


def main() -> None:
    """Run the trials, write the file, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--trials", type=int, default=300)
    given = parser.parse_args()
    found = rows(given.trials)
    command = f"python scripts/pooled_overflow.py {given.out.name} --trials {given.trials}"
    lines = ",\n  ".join(json.dumps(row) for row in found)
    text = f'{{\n "command": {json.dumps(command)},\n "blocks": {LIMIT},\n "rows": [\n  {lines}\n ]\n}}\n'
    write_atomically(given.out, text)
    for row in found:
        print(*row.values())


if __name__ == "__main__":
    main()
