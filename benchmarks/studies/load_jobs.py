"""What benchmarks/studies/load_report.py measures, each in a process of its own; it prints one line of JSON.

    python benchmarks/studies/load_jobs.py load TRACE '{"length_field": "vicuna_7b_tokens[3]"}'
    python benchmarks/studies/load_jobs.py stream TRACE '{"limit": 1000}'

``load`` loads a trace and takes time and memory; ``check`` saves it in our own format and loads it again, and
recognises languages; ``stream`` reads one batch by batch and keeps nothing.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from ecoserve.data import Trace, load_trace, save_trace, stream_trace
from ecoserve.data.records import LoadReport
from ecoserve.errors import TraceError


def peak_bytes() -> int:
    """The most memory that this process has had (resident)."""
    status = Path("/proc/self/status")
    if status.exists():
        # What getrusage says begins with the memory of the process that started this one.
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def counts_of(report: LoadReport) -> dict[str, Any]:
    """A report's counts, the largest first."""

    def ordered(counts: dict[str, int]) -> dict[str, int]:
        return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

    return {
        "rows_in": report.rows_in,
        "kept": report.kept,
        "dropped": ordered(report.dropped),
        "noted": ordered(report.noted),
    }


def round_trip(trace: Trace, folder: Path) -> str:
    """``equal`` if ``trace`` comes back from its own file as it was, else what differs."""
    again = load_trace(save_trace(trace, folder / "saved.jsonl.gz"))
    if again.records != trace.records:
        pairs = zip(again.records, trace.records, strict=False)
        at = next((i for i, (new, old) in enumerate(pairs) if new != old), min(len(again), len(trace)))
        return f"record {at} differs ({len(again)} of {len(trace)} records)"
    for name in ("sha256", "length_source", "prompt_length_source"):
        if getattr(again, name) != getattr(trace, name):
            return f"{name} differs"
    return "equal" if not again.report.dropped else f"dropped: {again.report.dropped}"


def load(path: str, options: dict[str, Any]) -> dict[str, Any]:
    """Load ``path`` and say what came of it; ``refused`` is the line a user reads if it is no trace."""
    before = peak_bytes()
    start, cpu = time.perf_counter(), time.process_time()
    try:
        trace = load_trace(path, **options)
    except TraceError as error:
        return {"refused": str(error)}
    seconds, cpu_seconds, peak = time.perf_counter() - start, time.process_time() - cpu, peak_bytes()
    records = trace.records
    return {
        "format": trace.format,
        **counts_of(trace.report),
        "censored": sum(r.censored for r in records),
        "with_text": sum(r.response is not None for r in records),
        "with_arrival": sum(r.arrival_s is not None for r in records),
        "conversations": len({r.conversation for r in records}),
        "response_tokens": sum(r.response_tokens or 0 for r in records),
        "length_source": trace.length_source,
        "prompt_length_source": trace.prompt_length_source,
        "trace_sha256": trace.sha256,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "peak_bytes": peak,
        "start_bytes": before,
    }


def check(path: str, options: dict[str, Any]) -> dict[str, Any]:
    """Load ``path``, save it in our own format and load it again; recognise the languages of its prompts."""
    # Only here: it brings libraries along that would count as memory of loading.
    from ecoserve.data.profiling import read_table

    trace = load_trace(path, **options)
    with tempfile.TemporaryDirectory() as folder:
        verdict = round_trip(trace, Path(folder))
    sample = read_table(trace).languages
    counts = Counter(sample.names[code] for code in sample.codes.tolist())
    return {"round_trip": verdict, "prompts_recognised": len(sample.codes), "languages": dict(counts.most_common())}


def stream(path: str, options: dict[str, Any]) -> dict[str, Any]:
    """Read ``path`` as a stream, keeping nothing."""
    start = time.perf_counter()
    records = stream_trace(path, **options)
    tokens = 0
    for batch in records.batches():
        tokens += sum(record.response_tokens or 0 for record in batch)
    return {
        "format": records.format,
        **counts_of(records.report),
        "response_tokens": tokens,
        "trace_sha256": records.sha256,
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    """Do the job that the command line names."""
    what, path, options = sys.argv[1:4]
    print(json.dumps({"load": load, "check": check, "stream": stream}[what](path, json.loads(options))))


if __name__ == "__main__":
    main()
