"""Profiles of public traces, condensed to what docs/results/profiles.md cites, and the memory that a profile takes.

    python benchmarks/studies/profiles_shown.py profiles ../shared/data -o OUT [--predictor CKPT] [--only alpaca_t07]
    python benchmarks/studies/profiles_shown.py memory small.jsonl large.jsonl
    python benchmarks/studies/profiles_shown.py rows 13000000

Every profile is made by the command line itself, in a process of its own, and its arguments stand in the result. The
first writes ``benchmarks/results/profile_NAME.json`` for each trace it finds, and the pages to OUT/NAME; the second
``benchmarks/results/profile_memory.json``: peak memory of all processes together (proportional set size), per file. The
third ``profile_memory_rows.json``: what profiling a table of so many rows takes that are drawn by chance, not read.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import common

_VICUNA: Final = ["--sample-field", "vicuna_7b_tokens"]

#: Name of the result -> the trace's file and how it is read.
TRACES: Final[dict[str, tuple[str, list[str]]]] = {
    "sharegpt": ("sharegpt.json.gz", []),
    "sharegpt_llama2": ("traces/sharegpt_lengths_llama2.csv.gz", []),
    **{
        f"alpaca_t{name}": ("alpaca.json.gz", ["--length-field", f"vicuna_7b_tokens[{i}]", *_VICUNA])
        for i, name in enumerate(("00", "03", "05", "07"))
    },
    "alpaca_eval": ("alpaca_eval.json.gz", []),
    "azure_conv": ("traces/azure_2023_conv.csv", []),
    "azure_code": ("traces/azure_2023_code.csv", []),
    "reasoning_gym": ("reasoning_gym_answers.json.gz", []),
    "thinking": ("thinking_lengths.jsonl.gz", []),
    "coding_agents": ("traces/coding_agent_sessions.jsonl.gz", []),
}
#: Name of the result -> trace A, how it is read, trace B, how that is read.
PAIRS: Final[dict[str, tuple[str, list[str], str, list[str]]]] = {
    "alpaca_against_sharegpt": (
        "alpaca.json.gz",
        ["--length-field", "vicuna_7b_tokens[3]", *_VICUNA],
        "sharegpt.json.gz",
        ["--compare-length-field", "none"],
    ),
    "azure_conv_against_code": ("traces/azure_2023_conv.csv", [], "traces/azure_2023_code.csv", []),
    "alpaca_t07_against_t00": (
        "alpaca.json.gz",
        ["--length-field", "vicuna_7b_tokens[3]", *_VICUNA],
        "alpaca.json.gz",
        ["--compare-length-field", "vicuna_7b_tokens[0]"],
    ),
}
#: A folder of clients, of which a workload of 20,000 requests is made.
SERVEGEN: Final = "servegen_r1"
#: The trace of which it is also asked what a predictor tells, where one is given.
WITH_PREDICTOR: Final = "alpaca_t07"
_DROPPED: Final = {
    "curves", "windows", "histogram_edges", "histogram_a", "histogram_b", "survival", "shared_points", "schema_version",
    "log_likelihood", "bic",
}  # fmt: skip


def condense(summary: Any, places: dict[str, str]) -> Any:
    """A summary without what only plots show, and with numbers to five digits.

    Args:
        summary: what the command wrote.
        places: where things lie on this machine -> what stands for that.
    """
    if isinstance(summary, dict):
        return {k: condense(v, places) for k, v in summary.items() if k not in _DROPPED}
    if isinstance(summary, list):
        return [condense(v, places) for v in summary]
    if isinstance(summary, float):
        return float(f"{summary:.5g}")
    if isinstance(summary, str):
        for place, name in places.items():
            summary = summary.replace(place, name)
    return summary


def profile(name: str, data: Path, out: Path, options: list[str], predictor: Path | None = None) -> None:
    """Run the command and keep what it found."""
    places = {f"{data}/": "", f"{out}/": ""}
    if predictor is not None:
        options = [*options, "--predictor", str(predictor)]
        places[str(predictor)] = "CKPT"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "summary.json"
        arguments = ["profile", *options]
        began = time.monotonic()
        command = [sys.executable, "-m", "ecoserve.cli.main", *arguments]
        subprocess.run([*command, "-o", str(out / name), "--json", str(path), "--quiet"], check=True, cwd=common.ROOT)
        took = time.monotonic() - began
        found = condense(json.loads(path.read_text()), places)
    result = {"commands": [shlex.join(["ecoserve", *condense(arguments, places)])], "seconds": round(took, 1), **found}
    common.write(common.RESULTS / f"profile_{name}.json", result)
    print(f"{name}: {took:.1f} s", flush=True)


def profiles(data: Path, out: Path, predictor: Path | None, only: list[str]) -> int:
    """All profiles whose traces are there."""
    for name, (trace, options) in TRACES.items():
        if (data / trace).exists() and (not only or name in only):
            profile(name, data, out, [str(data / trace), *options])
    if (clients := data / SERVEGEN).is_dir() and (not only or SERVEGEN in only):
        out.mkdir(parents=True, exist_ok=True)
        file = out / f"{SERVEGEN}.yaml"
        file.write_text(f"requests: 20000\nservegen: {{clients: {clients.resolve()}}}\n")
        profile(SERVEGEN, data, out, [str(file)])
    name = f"{WITH_PREDICTOR}_predicted"
    if predictor is not None and (not only or name in only):
        trace, options = TRACES[WITH_PREDICTOR]
        profile(name, data, out, [str(data / trace), *options], predictor)
    for name, (a, options_a, b, options_b) in PAIRS.items():
        if (data / a).exists() and (data / b).exists() and (not only or name in only):
            profile(name, data, out, [str(data / a), *options_a, "--compare", str(data / b), *options_b])
    return 0


def memory(files: list[Path]) -> int:
    """Peak memory and time of profiling each file."""
    measured = []
    for file in files:
        with tempfile.TemporaryDirectory() as folder:
            summary = Path(folder) / "summary.json"
            command = [
                sys.executable,
                "-m",
                "ecoserve.cli.main",
                "profile",
                str(file),
                "--json",
                str(summary),
                "--quiet",
            ]
            seen = common.watch(command, cwd=common.ROOT)
            if seen.code:
                return seen.code
            trace = json.loads(summary.read_text())["trace"]
        measured.append(
            {
                "file_mb": round(file.stat().st_size / 1e6, 1),
                "format": trace["format"],
                "records": trace["records"],
                "peak_mb": round(seen.peak_pss_bytes / 1e6, 1),
                "seconds": round(seen.seconds, 1),
            }
        )
        print(json.dumps(measured[-1]), flush=True)
    result = {"commands": ["python benchmarks/studies/profiles_shown.py memory FILE ..."], "files": measured}
    common.write(common.RESULTS / "profile_memory.json", result)
    return 0


def rows(n: int) -> int:
    """Peak memory of profiling a table of ``n`` rows, each prompt asked twice."""
    import resource
    from dataclasses import replace

    import numpy as np

    from ecoserve.data import LoadReport, Record, Trace
    from ecoserve.data.profiling import profile_trace, read_table

    rng = np.random.default_rng(0)
    small = read_table(Trace((Record("c", response_tokens=1),), "rows", "records", "", "trace", LoadReport(n, n)))
    columns: dict[str, Any] = {
        name: np.resize(getattr(small, name), n)
        for name in ("turn", "thinking", "model", "split", "censored", "max_tokens")
    }
    table = replace(
        small,
        **columns,
        response=(rng.lognormal(5, 0.7, n) + 1).astype(np.int32),
        prompt=(rng.lognormal(5, 1, n) + 1).astype(np.int32),
        arrival=np.arange(n) / 10.0,
        prompt_hash=np.resize(rng.integers(1, 2**63, (n + 1) // 2, dtype=np.uint64), n),
        conversation=rng.integers(1, 2**63, n, dtype=np.uint64),
        sample_count=np.zeros(n, dtype=np.uint16),
        samples=np.zeros(0, dtype=np.int32),
    )
    profile_trace(table)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {
        "commands": [f"python benchmarks/studies/profiles_shown.py rows {n}"],
        "rows": n,
        "table_mb": round(table.nbytes / 1e6, 1),
        "peak_mb": round(peak / 1e6, 1),
    }
    common.write(common.RESULTS / "profile_memory_rows.json", result)
    print(json.dumps(result), flush=True)
    return 0


def main() -> int:
    """The command line."""
    parser = common.arguments_of(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("profiles")
    made.add_argument("data", type=Path, help="the folder with the traces")
    made.add_argument("-o", "--output", type=Path, default=Path("results/profiles"))
    made.add_argument("--predictor", type=Path, help="a checkpoint trained on Alpaca")
    made.add_argument("--only", action="append", default=[], help="name of a result; may be repeated")
    commands.add_parser("memory").add_argument("files", type=Path, nargs="+")
    commands.add_parser("rows").add_argument("rows", type=int)
    a = parser.parse_args()
    if a.command == "rows":
        return rows(a.rows)
    if a.command == "memory":
        return memory([file.resolve() for file in a.files])
    return profiles(a.data, a.output, a.predictor, a.only)


if __name__ == "__main__":
    sys.exit(main())
