"""A run as a picture: a trace that Perfetto (ui.perfetto.dev) and ``chrome://tracing`` open.

The JSON trace event format, written as it happens; times are microseconds of the virtual clock. Each replica of each
run has a track of its steps and one of its host, counters of KV blocks and of requests, and a track for each request.
After the first ``requests`` requests have ended, or the time window, nothing more is written.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

from ecoserve.errors import RunError
from ecoserve.files import replacing
from ecoserve.serving.runs import RequestRow
from ecoserve.serving.simulate.replica import Step

#: States of a request; ``paused`` keeps its KV, ``preempted`` has lost it, ``recompute`` computes it again.
SPANS: Final = ("queued", "prefill", "decode", "paused", "preempted", "recompute")

_STEPS: Final = 1
_HOST: Final = 2
#: Request tracks come after those.
_FIRST_REQUEST: Final = 10


@contextmanager
def trace_file(path: Path, *, requests: int = 1000, window_s: tuple[float, float] | None = None) -> Iterator[TraceFile]:
    """A trace file, written whole when the block ends well, or not at all; ``.gz`` is compressed.

    ``requests``: draw only the first so many of each run. ``window_s``: only what happens between these virtual
    seconds. Raises RunError if it cannot be written.
    """
    try:
        with ExitStack() as stack:
            file: Any = stack.enter_context(replacing(path))
            if path.suffix == ".gz":
                # No name and no time in its head: equal runs give equal bytes.
                file = stack.enter_context(
                    gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=6)
                )
            trace = TraceFile(cast("IO[bytes]", file), requests, window_s or (0.0, float("inf")))
            yield trace
            trace.close()
    except OSError as error:
        raise RunError(f"cannot be written ({error.strerror or error})", where=str(path)) from error


class TraceFile:
    """Writes the events of one or more runs, one after another, into one file."""

    def __init__(self, file: IO[bytes], requests: int, window_s: tuple[float, float]) -> None:
        self._file = file
        self.requests = requests
        self.window_s = window_s
        self._processes = 0
        self._separator = b"\n"
        file.write(b'{"displayTimeUnit":"ms","traceEvents":[')

    def run(self, name: str) -> RunRecorder:
        return RunRecorder(self, name)

    def process(self, name: str) -> int:
        self._processes += 1
        self.emit("M", "process_name", self._processes, 0, {"name": name})
        return self._processes

    def track(self, pid: int, tid: int, name: str) -> None:
        self.emit("M", "thread_name", pid, tid, {"name": name})
        self.emit("M", "thread_sort_index", pid, tid, {"sort_index": tid})

    def emit(self, phase: str, name: str, pid: int, tid: int, args: dict[str, Any] | None, **more: Any) -> None:
        event = {"ph": phase, "name": name, "pid": pid, "tid": tid, **more, **({"args": args} if args else {})}
        self._file.write(self._separator + json.dumps(event, separators=(",", ":")).encode())
        self._separator = b",\n"

    def close(self) -> None:
        self._file.write(b"\n]}\n")


@dataclass(slots=True)
class _Track:
    pid: int
    tid: int
    span: str
    since_s: float
    preemptions: int = 0


class RunRecorder:
    """Turns what happens in one run into events of a :class:`TraceFile`."""

    def __init__(self, file: TraceFile, name: str) -> None:
        self._file = file
        self._name = name
        self._pids: dict[int, int] = {}
        self._tracks: dict[str, _Track] = {}
        self._arrived = 0
        self._begin_s, self._end_s = file.window_s
        #: the last values of each replica's counters
        self._counted: dict[tuple[int, str], dict[str, int]] = {}
        self._promised: dict[str, int] = {}

    # -- events of the simulation -----------------------------------------------------------------------------

    def arrived(self, replica: int, row: RequestRow) -> None:
        pid = self._pid(replica)
        self._arrived += 1
        if self._arrived > self._file.requests or row.arrival_s > self._end_s:
            return
        tid = _FIRST_REQUEST + self._arrived
        self._tracks[row.request_id] = _Track(pid, tid, "queued", row.arrival_s)
        self._file.track(pid, tid, f"{row.request_id} ({row.prompt_tokens} prompt tokens)")

    def stepped(self, replica: int, scheduler: Any, step: Step) -> None:
        if self._over(step.start_s):
            return
        pid = self._pid(replica)
        for name in [n for n in self._tracks if self._tracks[n].pid == pid and n in scheduler.requests]:
            self._look(self._tracks[name], scheduler, name, step)
        if step.start_s < self._begin_s:
            return
        work = step.work
        if step.output.total_num_scheduled_tokens:
            args = {
                "prefill_tokens": work.prefill_tokens,
                "prompts": len(work.chunks),
                "decodes": work.decodes,
                "context_tokens": work.context_tokens,
            }
            self._span(pid, _STEPS, "step", step.start_s, step.end_s, args)
            if step.host_s > 0:
                self._span(pid, _HOST, "host", step.began_s, step.began_s + step.host_s)
        g = step.gauges
        free = g.usable_blocks - g.held_blocks
        kv = {"held": g.held_blocks, "reserved": g.reserved_blocks, "lent": g.lent_blocks, "free": free}
        self._count(pid, "KV blocks", step.start_s, kv)
        queues = {"running": g.running, "waiting": g.waiting_prompts, "paused": g.waiting_generations}
        self._count(pid, "requests", step.start_s, queues)

    def ended(self, replica: int, row: RequestRow, at_s: float) -> None:
        track = self._tracks.pop(row.request_id, None)
        self._promised.pop(row.request_id, None)
        if track is not None:
            self._close(track, at_s, {"output_tokens": row.output_tokens})
            if row.status != "completed":
                self._instant(track, row.error or row.status, at_s)

    # -- what a request does -----------------------------------------------------------------------------------------

    def _look(self, track: _Track, scheduler: Any, name: str, step: Step) -> None:
        request = scheduler.requests[name]
        if request.num_preemptions > track.preemptions:
            track.preemptions = request.num_preemptions
            self._turn(track, "preempted", step.began_s)
            self._instant(track, "preemption", step.began_s, {"preemptions": track.preemptions})
        tokens = step.output.num_scheduled_tokens.get(name)
        if tokens is not None:
            prompt = tokens > 1 or not request.num_output_tokens
            span = ("recompute" if track.preemptions else "prefill") if prompt else "decode"
            self._turn(track, span, step.start_s)
        elif name in getattr(scheduler, "paused_at", ()) and track.span != "paused":
            self._turn(track, "paused", step.began_s)
            self._instant(track, "pause", step.began_s)
        self._reserved(track, scheduler, name, step.began_s)

    def _reserved(self, track: _Track, scheduler: Any, name: str, at_s: float) -> None:
        planner = getattr(scheduler, "planner", None)
        task = planner.ledger.tasks.get(name) if planner is not None else None
        if task is None:
            return
        before = self._promised.get(name, 0)
        if task.overdrawn and task.promised > before > 0:
            self._instant(track, "re-reservation", at_s, {"tokens": task.promised, "before": before})
        self._promised[name] = task.promised

    def _turn(self, track: _Track, span: str, at_s: float) -> None:
        if span != track.span:
            self._close(track, at_s)
            track.span, track.since_s = span, at_s

    def _close(self, track: _Track, at_s: float, args: Any = None) -> None:
        begin, end = max(track.since_s, self._begin_s), min(at_s, self._end_s)
        if end > begin or (end == begin and args):
            self._span(track.pid, track.tid, track.span, begin, end, args)

    def _over(self, at_s: float) -> bool:
        """Whether there is nothing more to draw; spans that are open are ended then."""
        if at_s > self._end_s:
            for track in self._tracks.values():
                self._close(track, self._end_s)
            self._tracks.clear()
            return True
        return not self._tracks and self._arrived >= self._file.requests

    # -- events --------------------------------------------------------------------------------------------------

    def _pid(self, replica: int) -> int:
        if replica not in self._pids:
            pid = self._pids[replica] = self._file.process(f"{self._name}, replica {replica}")
            self._file.track(pid, _STEPS, "steps (GPU)")
            self._file.track(pid, _HOST, "host")
        return self._pids[replica]

    def _span(self, pid: int, tid: int, name: str, begin_s: float, end_s: float, args: Any = None) -> None:
        begin = _us(begin_s)
        self._file.emit("X", name, pid, tid, args, ts=begin, dur=round(_us(end_s) - begin, 3))

    def _instant(self, track: _Track, name: str, at_s: float, args: Any = None) -> None:
        if self._begin_s <= at_s <= self._end_s:
            self._file.emit("i", name, track.pid, track.tid, args, s="t", ts=_us(at_s))

    def _count(self, pid: int, name: str, at_s: float, values: dict[str, int]) -> None:
        if self._counted.get((pid, name)) != values:
            self._counted[pid, name] = values
            self._file.emit("C", name, pid, 0, values, ts=_us(at_s))


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)
