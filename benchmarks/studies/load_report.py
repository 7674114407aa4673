"""Every file of a folder loaded: what it is, what was kept and dropped and why, time, memory, round trip.

    python benchmarks/studies/load_report.py ../shared/data    # benchmarks/results/load_report.json
    python benchmarks/studies/load_report.py --rows alpaca.json.gz --big lines:5:stream lines:5:profile
    python benchmarks/studies/load_report.py --tables # only the tables of docs/guides/data.md

Each file is loaded in a process of its own (load_jobs.py), several times for the time. A file that is no
trace is listed with the line that a user would read. ``--big`` (load_big.py) makes files of so many GiB in a
temporary folder, reads them as streams, and writes benchmarks/results/load_big.json; runs that are in it are not made
again. Both write their figures into the tables of docs/guides/data.md; a test holds them together.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import common
import load_big
from common import watch

from ecoserve.sweep.identity import hardware, versions

DOCUMENT: Final = common.ROOT / "docs" / "guides" / "data.md"
JOBS: Final = Path(__file__).resolve().parent / "load_jobs.py"
MIB: Final = 2**20

#: Name of a file -> how it is loaded besides as it is.
OPTIONS: Final[dict[str, tuple[dict[str, Any], ...]]] = {
    "alpaca.json.gz": (
        {},
        {"length_field": "vicuna_7b_tokens[3]", "sample_field": "vicuna_7b_tokens", "model": "vicuna-7b"},
    ),
}


def load_file(path: Path, options: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Load ``path`` in ``repeats`` fresh processes; seconds are the median's, memory the most.

    Raises:
        RuntimeError: if one of them fails, or they do not agree.
    """
    runs: list[dict[str, Any]] = []
    for _ in range(repeats):
        runs.append(_job("load", path, options))
        if "refused" in runs[-1]:
            return {"refused": runs[-1]["refused"].removeprefix(f"{path}: ")}
    measured = ("seconds", "cpu_seconds", "peak_bytes", "start_bytes")
    found = {name: value for name, value in runs[0].items() if name not in measured}
    if any({name: value for name, value in run.items() if name not in measured} != found for run in runs):
        raise RuntimeError(f"{path}: two processes did not load the same")
    for name in ("seconds", "cpu_seconds"):
        found[name] = round(statistics.median(run[name] for run in runs), 2)
    found["peak_mib"] = max(run["peak_bytes"] for run in runs) // MIB
    found["peak_mib_before"] = max(run["start_bytes"] for run in runs) // MIB
    return {**found, **_job("check", path, options)}


def _job(what: str, path: Path, options: dict[str, Any]) -> dict[str, Any]:
    seen = watch([sys.executable, str(JOBS), what, str(path), json.dumps(options)])
    if seen.code:
        raise RuntimeError(f"{path}: {seen.errors}")
    found: dict[str, Any] = json.loads(seen.output)
    return found


def report_folder(folder: Path, repeats: int) -> dict[str, Any]:
    """The report of every file under ``folder``."""
    loaded: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        data = path.read_bytes()
        about = {"file": name, "bytes": len(data), "file_sha256": hashlib.sha256(data).hexdigest()}
        for options in OPTIONS.get(path.name, ({},)):
            found = load_file(path, options, repeats)
            print(f"{name}: {found.get('refused') or found['kept']}", file=sys.stderr)
            if "refused" in found:
                refused.append({**about, **found})
            else:
                loaded.append({**about, "options": options, **found})
    if not loaded:
        raise SystemExit(f"{folder}: nothing in it is a trace")
    return {"loaded": loaded, "no_traces": refused}


def folder_table(report: dict[str, Any]) -> str:
    """The report's rows, as Markdown."""
    heads = [
        "file",
        "format",
        "rows in",
        "kept",
        "dropped",
        "noted",
        "cut off",
        "lengths",
        "languages",
        "s",
        "MiB",
        "round trip",
    ]
    rows = []
    for row in report["loaded"]:
        noted = {what: n for what, n in row["noted"].items() if what != "answers cut off"}
        options = "".join(f"<br>`{k}={v}`" for k, v in row["options"].items())
        cells = [f"`{row['file']}`{options}", row["format"], f"{row['rows_in']:,}", f"{row['kept']:,}"]
        cells += [_listed(row["dropped"]), _listed(noted), f"{row['censored']:,}" if row["censored"] else "-"]
        cells += [row["length_source"].partition(":")[0], _languages(row["languages"])]
        cells += [f"{row['cpu_seconds']:.2f}", str(row["peak_mib"])]
        rows.append([*cells, row["round_trip"]])
    refused = [[f"`{row['file']}`", _cell(row["refused"])] for row in report["no_traces"]]
    other = common.markdown(["file that is no trace", "what `load_trace` says"], refused, numbers=False)
    return f"{common.markdown(heads, rows, numbers=False)}\n\n{other}"


def _languages(counts: dict[str, int]) -> str:
    """The three most frequent ones in percent, and how many others there are."""
    shown = [f"{name} {100 * n / sum(counts.values()):.1f} %" for name, n in list(counts.items())[:3]]
    return ", ".join(shown) + (f", {len(counts) - 3} more" if len(counts) > 3 else "") or "-"


def _listed(counts: dict[str, int]) -> str:
    return _cell("; ".join(f"{n:,} {what}" for what, n in counts.items())) or "-"


def _cell(text: str) -> str:
    """``text`` so that Markdown shows it in a cell as it is."""
    for sign in "\\|<>*_`[]":
        text = text.replace(sign, f"\\{sign}")
    return text


def tables() -> dict[str, Callable[[], str]]:
    """The tables of docs/guides/data.md whose result files are there."""
    made = {"load report": ("load_report.json", folder_table), "big files": ("load_big.json", load_big.table)}
    return {name: partial(table, found) for name, (file, table) in made.items() if (found := common.read(file))}


def main() -> None:
    """Write a report."""
    parser = common.arguments_of(__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="load every file under it")
    what = "measure big files instead: a kind (lines, list, gzip), GiB of text, and 'stream' or 'profile'"
    parser.add_argument("--big", type=load_big.Job.parse, nargs="+", metavar="KIND:GIB:READER", help=what)
    parser.add_argument("--rows", type=Path, metavar="TRACE", help="with --big: texts to fill them with")
    parser.add_argument("--repeats", type=int, default=3, help="processes that each file is loaded in (default: 3)")
    parser.add_argument("--tables", action="store_true", help="only renew the tables of docs/guides/data.md")
    parser.add_argument("--out", type=Path, help="the result file (default: in benchmarks/results)")
    given = parser.parse_args()
    if not given.tables:
        if (given.big is None) == (given.folder is None):
            parser.error("give a folder, --big GIB or --tables")
        about: dict[str, Any] = {"command": f"python benchmarks/studies/load_report.py {' '.join(sys.argv[1:])}"}
        about |= {"versions": versions(), "hardware": hardware()}
        file = given.out or common.RESULTS / ("load_report.json" if given.big is None else "load_big.json")

        def save(report: dict[str, Any]) -> None:
            common.write(file, {**about, **report})

        if given.big is not None:
            old = common.read(file)
            load_big.report(given.big, given.rows, old, save)
        else:
            save(report_folder(given.folder, given.repeats))
    if DOCUMENT.exists():
        common.renew(DOCUMENT, "load_report", tables())


if __name__ == "__main__":
    main()
