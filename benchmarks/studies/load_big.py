"""Files far larger than memory should be, made and read as streams: rows a second, memory of all processes together.

Rule: a file is made of the texts of a trace, over and over, each repetition with a number in its prompts, so that no
row is a duplicate of another (the detection of duplicates must remember them all). Every way of reading must give the
same records, which their fingerprint tells. Called by ``benchmarks/studies/load_report.py --big``.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import common
from common import Watched, watch

from ecoserve.data import Record, load_trace, synthetic_trace

GIB: Final = 2**30
MIB: Final = 2**20
#: The bound that is promised.
MOST_BYTES: Final = 2 * GIB
#: Stands for the number of the repetition.
_MARK: Final = "@numb@"
_NUMBER: Final = "{:06d}"
_SYNTHETIC: Final = 20_000
#: Made-up answers are of these words, so that a character is as long as in English.
_WORDS: Final = "the answer goes on for as long as it was drawn and says nothing that anybody would want to read "
_CHARACTERS_PER_TOKEN: Final = 4
PROFILE: Final = "profile"
STREAM: Final = "stream"
#: A gzip file is as large as its text is, unpacked.
KINDS: Final = {"lines": "big.jsonl", "list": "big.json", "gzip": "big.jsonl.gz"}
_ECOSERVE: Final = Path(sys.executable).parent / "ecoserve"
_JOBS: Final = Path(__file__).resolve().parent / "load_jobs.py"


def rows_of(trace: Path | None) -> list[str]:
    """Alpaca's rows, as JSON, with the texts of ``trace`` (or made up), a mark in each prompt."""
    records = synthetic_trace(_SYNTHETIC).records if trace is None else load_trace(trace).records
    rows = []
    for record in records:
        answer = _made_up(record) if trace is None else record.response
        if record.prompt is not None and answer is not None:
            row = {"instruction": f"{_MARK} {record.prompt}", "input": "", "output": answer}
            rows.append(json.dumps(row, ensure_ascii=False))
    if not rows:
        raise SystemExit(f"{trace}: has no texts")
    return rows


def _made_up(record: Record) -> str:
    length = (record.response_tokens or 1) * _CHARACTERS_PER_TOKEN
    return (_WORDS * (length // len(_WORDS) + 1))[:length]


def _pieces(rows: Sequence[str], size: int, *, in_list: bool) -> Iterator[bytes]:
    """The text of a file of about ``size`` bytes, a repetition at a time; as many rows in a list as in lines."""
    between = ",\n" if in_list else "\n"
    text = between.join(rows)
    repetition = sum(len(row.encode()) + 1 for row in rows)
    yield b"[\n" if in_list else b""
    for number in range(-(-size // repetition)):
        yield ((between if number else "") + text.replace(_MARK, _NUMBER.format(number))).encode()
    yield b"\n]\n" if in_list else b"\n"


def make(path: Path, rows: Sequence[str], size: int, kind: str) -> int:
    """Write a file of ``size`` bytes of text; returns how many there are."""
    written = 0
    with path.open("wb") as raw:
        out = cast("BinaryIO", gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1) if kind == "gzip" else raw)
        with out:
            for piece in _pieces(rows, size, in_list=kind == "list"):
                out.write(piece)
                written += len(piece)
    return written


@dataclass(frozen=True, slots=True)
class Job:
    """One run: a kind of file, its size, and what reads it: ``stream`` or ``profile``."""

    kind: str
    gib: float
    reader: str

    @classmethod
    def parse(cls, text: str) -> Job:
        """Read ``KIND:GIB:READER``.

        Raises:
            ValueError: if it is something else.
        """
        kind, size, reader = text.split(":")
        if kind not in KINDS or reader not in (PROFILE, STREAM):
            raise ValueError(f"{text!r} is not KIND:GIB:READER")
        return cls(kind, float(size), reader)

    def run(self, path: Path) -> dict[str, Any]:
        """Read ``path``."""
        if self.reader == PROFILE:
            folder = str(path.parent / PROFILE)
            return _figures(watch([str(_ECOSERVE), "profile", str(path), "-o", folder, "--quiet"]))
        return _of_stream(watch([sys.executable, str(_JOBS), "stream", str(path), "{}"]))


def report(
    jobs: Sequence[Job], trace: Path | None, old: dict[str, Any], save: Callable[[dict[str, Any]], None]
) -> None:
    """Do ``jobs``; those that follow each other share their file, which is deleted at the end.

    Args:
        jobs: what to run.
        trace: where the texts are from; ``None``: they are made up.
        old: a report of before, whose runs are not made again.
        save: called with the report so far after every run.

    Raises:
        SystemExit: if reading fails, or two ways of reading a file of one size give different records.
    """
    source = "made up" if trace is None else trace.name
    runs: list[dict[str, Any]] = old["runs"] if old.get("texts_of") == source else []
    prints = {run["gib"]: run["trace_sha256"] for run in runs if "trace_sha256" in run}
    left = [job for job in jobs if not any(asdict(job).items() <= run.items() for run in runs)]
    texts = rows_of(trace)
    for (kind, gib), group in groupby(left, key=lambda job: (job.kind, job.gib)):
        with tempfile.TemporaryDirectory(prefix="ecoserve-big-") as folder:
            free = shutil.disk_usage(folder).free
            if free < 1.1 * gib * GIB:
                raise SystemExit(f"{folder}: only {free / GIB:.1f} GiB are free (TMPDIR names another place)")
            path = Path(folder) / KINDS[kind]
            sizes = {"text_bytes": make(path, texts, int(gib * GIB), kind), "file_bytes": path.stat().st_size}
            for job in group:
                run = {**asdict(job), **sizes, **job.run(path)}
                if "trace_sha256" in run and prints.setdefault(gib, run["trace_sha256"]) != run["trace_sha256"]:
                    raise SystemExit("not every way of reading gives the same records")
                runs.append(run)
                print(run, file=sys.stderr)
                most = max(run["peak_pss_mib"] for run in runs)
                save({"texts_of": source, "bound_mib": MOST_BYTES // MIB, "most_mib": most, "runs": runs})


def _of_stream(seen: Watched) -> dict[str, Any]:
    figures = _figures(seen)
    found = json.loads(seen.output)
    rate = round(found["rows_in"] / found["seconds"])
    names = ("rows_in", "kept", "dropped", "trace_sha256")
    return {**{name: found[name] for name in names}, "rows_per_s": rate, **figures}


def _figures(seen: Watched) -> dict[str, Any]:
    if seen.code:
        raise SystemExit(f"ended with code {seen.code}: {seen.errors.strip()[-500:]}")
    return {
        "seconds": round(seen.seconds, 1),
        "cpu_seconds": round(seen.cpu_seconds, 1),
        "processes": seen.processes,
        "peak_pss_mib": seen.peak_pss_bytes // MIB,
        "peak_rss_mib": seen.peak_rss_bytes // MIB,
    }


def table(found: dict[str, Any]) -> str:
    """The figures, as Markdown."""
    heads = ("file", "text", "read by", "rows", "s", "CPU s", "rows/s", "MiB/s", "most memory, MiB")
    rows = []
    for run in found["runs"]:
        # Until 0.1.0 the reader of a stream was a number of worker processes.
        old = f"a stream of 0.1.0, worker processes: {run['reader']}"
        reader = {PROFILE: "`ecoserve profile`", STREAM: "a stream"}.get(run["reader"], old)
        text = run["text_bytes"] / MIB
        cells = [f"`{KINDS[run['kind']]}`", f"{text / 1024:.1f} GiB", reader]
        cells += [f"{run['rows_in']:,}" if "rows_in" in run else "as above"]
        cells += [f"{run['seconds']:,.0f}", f"{run['cpu_seconds']:,.0f}" if "cpu_seconds" in run else "-"]
        cells += [f"{run['rows_per_s']:,}" if "rows_per_s" in run else "-"]
        cells += [f"{text / run['seconds']:.1f}", f"{run['peak_pss_mib']:,}"]
        rows.append(cells)
    return common.markdown(heads, rows, numbers=False)
