"""Runs a command and watches the memory of it and of all the processes it starts.

Rule: what counts is PSS, in which memory that several processes share is counted once; where the system does not tell
it, the sum of their resident sets, which is more. It is looked at twice a second: a shorter peak may be missed.
"""

from __future__ import annotations

import resource
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import psutil  # type: ignore[import-untyped]

_EVERY_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Watched:
    """What became of a command.

    Attributes:
        code: its exit code.
        output: what it printed to stdout.
        errors: what it printed to stderr.
        seconds: how long it took.
        cpu_seconds: processor time of it and its children.
        peak_pss_bytes: the most memory of it and its children together.
        peak_rss_bytes: the same as a sum of resident sets.
        processes: the most processes at a time.
    """

    code: int
    output: str
    errors: str
    seconds: float
    cpu_seconds: float
    peak_pss_bytes: int
    peak_rss_bytes: int
    processes: int


def watch(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Watched:
    """Run ``command`` to its end; nothing else may be run by this process meanwhile."""
    start, cpu = time.perf_counter(), _cpu_of_children()
    process = subprocess.Popen(
        list(command),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=None if environment is None else dict(environment),
    )
    peaks = [0, 0, 0]
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_EVERY_S):
            for i, seen in enumerate(_memory_of(process.pid)):
                peaks[i] = max(peaks[i], seen)

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
    """Processor time of all children of this process that have ended, seconds."""
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
