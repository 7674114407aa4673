"""Baselines, predictors and the upper bound in one table, on Alpaca, ShareGPT and AlpacaEval.

    python benchmarks/studies/predictor_table.py ../shared/data OUT.json --trace alpaca --baselines --predictor lightgbm
    python benchmarks/studies/predictor_table.py ../shared/data OUT.json --trace alpaca --predictor default=DIR0,DIR1

Each row is the mean over its seeds with their standard deviation, scored on dev rows: the trace's own dev, or, where it
has none, what a split by conversation and near-duplicate prompt holds out, another for each seed. A predictor is a name
with its checkpoints, one per seed (the seed of a checkpoint's training is that of its split), or ``lightgbm`` alone,
which is trained here. A call replaces the rows that it makes in OUT.json and leaves the others, each of which names the
command that made it. Embedding the prompts is most of the work; ``--embeddings FILE`` keeps them for the next call.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import common
from predictor_data import TRACES, Remembered, boosted, load, scored_on_dev, spread

from ecoserve.cli.evaluate_predictor import comparison_table
from ecoserve.data import Trace
from ecoserve.predictor import Bins, load_predictor
from ecoserve.predictor.baselines import side_by_side
from ecoserve.predictor.examples import training_parts
from ecoserve.predictor.runtime import let_waiting_threads_sleep

#: The order of the rows.
ORDER: Final = (
    "constant_median",
    "prompt_length",
    "history_window",
    "nearest_prompts",
    "lightgbm",
    "encoder",
    "default",
    "large",
    "ensemble",
)
LAST: Final = ("one_other_sample", "other_samples_mean")


def baseline_rows(trace: Trace, seeds: list[int], embed: Remembered) -> dict[str, dict[str, Any]]:
    """Name of each baseline -> its row."""
    runs: dict[str, list[dict[str, float]]] = {}
    for seed in seeds:
        parts = training_parts(trace, seed=seed)
        bins = Bins.fit(parts.fit.all_lengths())
        found = side_by_side(parts, parts.dev_records, bins, trained={}, embed=embed, latency=False)
        for name, values in found.items():
            runs.setdefault(name, []).append(values)
    return {name: {"seeds": seeds, **spread(values)} for name, values in runs.items()}


def predictor_row(trace: Trace, given: str, seeds: list[int]) -> tuple[str, dict[str, Any]]:
    """The row of ``NAME=CHECKPOINT,...``, or of ``lightgbm``, and its name."""
    name, _, folders = given.partition("=")
    if not folders:
        if name != "lightgbm":
            sys.exit(f"--predictor {name}: only lightgbm is trained here; give NAME=CHECKPOINT,...")
        every = {seed: training_parts(trace, seed=seed) for seed in seeds}
        runs = [scored_on_dev(boosted(parts, seed), parts) for seed, parts in every.items()]
        return name, {"seeds": seeds, **spread(runs)}
    runs, used = [], []
    for folder in folders.split(","):
        predictor = load_predictor(folder)
        used.append(predictor.config.seed)
        runs.append(scored_on_dev(predictor, training_parts(trace, seed=predictor.config.seed)))
    return name, {"seeds": used, "backend": predictor.config.backend, **spread(runs)}


def merged(file: Path, trace_name: str, trace: Trace, rows: dict[str, dict[str, Any]], command: str) -> dict[str, Any]:
    """The content of ``file`` with ``rows`` in the place of those of the same names."""
    content: dict[str, Any] = common.read(file.resolve())
    section = content.setdefault(trace_name, {})
    section |= {"sha256": trace.sha256, "length_source": trace.length_source}
    table = section.setdefault("table", {})
    table |= {name: {"command": command, **row} for name, row in rows.items()}
    names = [*ORDER, *(n for n in table if n not in ORDER and n not in LAST), *LAST]
    section["table"] = {name: table[name] for name in names if name in table}
    return content


def shown_command(arguments: list[str]) -> str:
    """The command as anybody would type it: names of files and folders without the places where they lie here."""
    words = [",".join(Path(w).name for w in a.split(",")) if "/" in a and "=" not in a else a for a in arguments]
    named = [
        f"{w.partition('=')[0]}={','.join(Path(p).name for p in w.partition('=')[2].split(','))}" if "=" in w else w
        for w in words
    ]
    return f"python benchmarks/studies/predictor_table.py {' '.join(named)}"


def main(arguments: list[str]) -> None:
    """Make the rows asked for, write the file, print the table."""
    parser = common.arguments_of(__doc__)
    parser.add_argument("data", type=Path, help="folder with the traces")
    parser.add_argument("out", type=Path, help="result file, made or updated")
    parser.add_argument("--trace", choices=list(TRACES), required=True)
    parser.add_argument("--baselines", action="store_true", help="make the rows that need no training, and the bound")
    parser.add_argument("--predictor", action="append", default=[], metavar="NAME=CKPT,CKPT,...")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--embeddings", type=Path, help="file that keeps the prompts' embeddings (.npz)")
    given = parser.parse_args(arguments)
    let_waiting_threads_sleep()
    trace = load(given.data, given.trace)
    rows: dict[str, dict[str, Any]] = {}
    if given.baselines:
        rows |= baseline_rows(trace, given.seeds, Remembered(given.embeddings))
    for predictor in given.predictor:
        name, row = predictor_row(trace, predictor, given.seeds)
        rows[name] = row
    content = merged(given.out, given.trace, trace, rows, shown_command(arguments))
    common.write(given.out, content)
    from rich.console import Console

    Console(width=100).print(comparison_table(content[given.trace]["table"]))


if __name__ == "__main__":
    main(sys.argv[1:])
