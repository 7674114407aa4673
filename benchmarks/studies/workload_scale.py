"""What a million requests of an example workload cost: seconds and memory, read as a stream and loaded whole.

    python benchmarks/studies/workload_scale.py benchmarks/results/workload_scale.json [--requests N]

Each measurement is a process of its own; memory is its peak resident set, what the imports take included. Takes about
four minutes on one core. Other processes on the machine make the seconds more; CPU seconds are this process's own.
"""

from __future__ import annotations

import json
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import common

KINDS: Final = ("stream", "load")
#: The ones without texts as streams; the one with texts, which take the most, loaded whole as well.
MEASURED: Final = (("chat", "stream"), ("chat", "load"), ("chat_and_code", "stream"), ("bursts", "stream"))


def measure(kind: str, path: Path) -> dict[str, Any]:
    """Read the workload ``path`` in this process."""
    from ecoserve.data import load_trace, stream_trace

    began = time.perf_counter()
    # A command that does not keep the records reads a stream, batch by batch.
    batches = [load_trace(path).records] if kind == "load" else stream_trace(path).batches()
    requests = sum(len(batch) for batch in batches)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "requests": requests,
        "wall_s": round(time.perf_counter() - began, 1),
        "cpu_s": round(used.ru_utime + used.ru_stime, 1),
        "peak_memory_mb": round(used.ru_maxrss / 1024),
    }


def measured_apart(kind: str, workload: str, requests: int, folder: Path) -> dict[str, Any]:
    """:func:`measure` of an example with so many requests, in a process of its own."""
    text = (common.ROOT / "workloads" / f"{workload}.yaml").read_text(encoding="utf-8")
    path = folder / f"{workload}.yaml"
    path.write_text(re.sub(r"(?m)^requests: .*", f"requests: {requests}", text), encoding="utf-8")
    command = [sys.executable, __file__, "--measure", kind, str(path)]
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"workload": workload, "kind": kind, **json.loads(found.stdout)}


def main() -> int:
    """Measure all; returns the exit code."""
    parser = common.arguments_of(__doc__)
    parser.add_argument("output", type=Path, help="JSON file to write")
    parser.add_argument("--requests", type=int, default=1_000_000, help="of each workload")
    parser.add_argument("--measure", choices=KINDS, help="in this process, the workload OUTPUT")
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure, asked.output)))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for workload, kind in MEASURED:
            rows.append(measured_apart(kind, workload, asked.requests, Path(folder)))
            print(json.dumps(rows[-1]), file=sys.stderr)
    command = f"python benchmarks/studies/workload_scale.py {asked.output}"
    command += f" --requests {asked.requests}" if asked.requests != 1_000_000 else ""
    content = {"command": command, "python": platform.python_version(), "rows": rows}
    common.write(asked.output, content)
    print(json.dumps({"measured": len(rows), "output": str(asked.output)}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
