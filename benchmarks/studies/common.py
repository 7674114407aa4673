"""What the studies share: arguments, result files, Markdown tables in documents, and the memory of processes."""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil  # type: ignore[import-untyped]

from ecoserve.files import write_atomically

ROOT: Final = Path(__file__).resolve().parents[2]
RESULTS: Final = ROOT / "benchmarks" / "results"
#: Longest line of a result file, unless a single value is longer.
WIDTH: Final = 150
_EVERY_S: Final = 0.5

if (scripts := str(ROOT / "scripts")) not in sys.path:
    sys.path.append(scripts)


def arguments_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows a study's docstring as help."""
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def command(study: str, *words: object) -> str:
    """The command that made a result file, as it is noted in it."""
    return " ".join(map(str, (f"python benchmarks/studies/{study}.py", *words)))


# -- result files ------------------------------------------------------------------------------------------


def dumps(value: Any, indent: int = 0) -> str:
    """A value as JSON text; lists and objects that fit a line stand on one line."""
    line = json.dumps(value, ensure_ascii=False)
    if len(line) + indent <= WIDTH or not isinstance(value, dict | list) or not value:
        return line
    pad = " " * (indent + 1)
    if isinstance(value, dict):
        items = [f"{pad}{json.dumps(k, ensure_ascii=False)}: {dumps(v, indent + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(items) + "\n" + " " * indent + "}"
    if all(isinstance(v, int | float) for v in value):
        return line
    return "[\n" + ",\n".join(pad + dumps(v, indent + 1) for v in value) + "\n" + " " * indent + "]"


def write(file: Path, content: Any) -> None:
    """Write a result file, whole or not at all."""
    write_atomically(file, dumps(content) + "\n")


def read(file: str | Path) -> dict[str, Any]:
    """A result file, by its path or by its name in benchmarks/results; empty if it is missing."""
    path = Path(file) if Path(file).exists() else RESULTS / file
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


@contextmanager
def kept(folder: Path | None) -> Iterator[Path]:
    """``folder``, or a temporary one."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


# -- documents ---------------------------------------------------------------------------------------------


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    """A table in Markdown: the first column to the left, the others (``numbers``) to the right."""
    lines = [f"| {' | '.join(head)} |", "|---|" + ("---:|" if numbers else "---|") * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def filled(text: str, script: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """A document with each table made anew between its two marks, which name the script and the table.

    Raises:
        ValueError: if the marks of a table are not both there.
    """
    for name, made in tables.items():
        begin, end = f"<!-- {name}: made by benchmarks/studies/{script}.py -->", f"<!-- end of {name} -->"
        before, begins, rest = text.partition(begin)
        _, ends, after = rest.partition(end)
        if not (begins and ends):
            raise ValueError(f"there is no place for {name}: {begin} ... {end}")
        text = f"{before}{begin}\n\n{made()}\n\n{end}{after}"
    return text


def renew(document: Path, script: str, tables: Mapping[str, Callable[[], str]]) -> None:
    """Write a document with its tables made anew."""
    write_atomically(document, filled(document.read_text(encoding="utf-8"), script, tables))


# -- processes ---------------------------------------------------------------------------------------------


def server_environment() -> dict[str, str]:
    """The environment of a server of the tiny model on this machine; nothing of ours is inherited."""
    dropped = ("VLLM_API_KEY", "PROMETHEUS_MULTIPROC_DIR")
    env = {k: v for k, v in os.environ.items() if k not in dropped and not k.startswith("ECOSERVE_")}
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent), *filter(None, [env.get("PYTHONPATH")])])
    return env | {
        # Threads that wait for each other take the cores from all processes.
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        # The engine's process is its own worker: else vLLM makes another one of the CPU's single worker.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": path,
    }


@dataclass(frozen=True, slots=True)
class Watched:
    """How a command ended.

    Attributes:
        code, output, errors: its exit code, stdout and stderr.
        seconds, cpu_seconds: time by the clock, and processor time of it and its children.
        peak_pss_bytes, peak_rss_bytes: most memory of it and its children together; shared memory counted once in PSS.
        processes: most processes at a time.
    """

    code: int
    output: str
    errors: str
    seconds: float
    cpu_seconds: float
    peak_pss_bytes: int
    peak_rss_bytes: int
    processes: int


def watch(line: Sequence[str], environment: Mapping[str, str] | None = None, cwd: Path | None = None) -> Watched:
    """Run a command to its end and look at its memory twice a second; no other may be run meanwhile."""
    start, cpu = time.perf_counter(), _cpu_of_children()
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(list(line), env=dict(environment) if environment else None, cwd=cwd, **pipes)
    peaks = [0, 0, 0]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_EVERY_S):
            peaks[:] = map(max, peaks, _memory_of(process.pid))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        output, errors = process.communicate()
    finally:
        process.kill()
        ended.set()
        watcher.join()
    seconds = time.perf_counter() - start
    return Watched(process.returncode, output, errors, seconds, _cpu_of_children() - cpu, *peaks)


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _memory_of(pid: int) -> tuple[int, int, int]:
    """PSS and RSS of a process and its children, bytes, and how many they are."""
    pss = rss = count = 0
    try:
        root = psutil.Process(pid)
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return 0, 0, 0
    for one in family:
        try:
            memory = one.memory_full_info()
        except psutil.Error:
            continue
        pss += getattr(memory, "pss", memory.rss)
        rss += memory.rss
        count += 1
    return pss, rss, count
