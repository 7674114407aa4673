"""A run as a picture: a trace that Perfetto (ui.perfetto.dev) and ``chrome://tracing`` open.

Rule: the JSON trace event format, written as it happens, so that a long run needs no memory; times are microseconds of
the virtual clock. For each replica of each run there is

- a track of its steps, with what each computed, and one of its host where that takes time;
- counters: blocks of KV held, promised beyond that (reserved), lent, free; requests running and waiting;
- a track for each request: what became of it, span after span (:data:`SPANS`), and its events as instants:
  preemption, pause, re-reservation (a new promise for an answer that outlived the old one).

It stays small: after the first ``requests`` requests have ended, or at the end of the time window, nothing more is
written.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import IO, Any, Final, cast

from ecoserve.errors import RunError
from ecoserve.files import replacing
from ecoserve.serving.runs import RequestRow
from ecoserve.serving.simulate.replica import Step

#: What a request can be doing: waiting for its first step; prompt; generating; stopped with its KV kept; its KV
#: dropped; computing again what it lost.
SPANS: Final = ("queued", "prefill", "decode", "paused", "preempted", "recompute")

_STEPS: Final = 1
_HOST: Final = 2
#: Request tracks come after those.
_FIRST_REQUEST: Final = 10

Event = dict[str, Any]


@contextmanager
def trace_file(path: Path, *, requests: int = 1000, window_s: tuple[float, float] | None = None) -> Iterator[TraceFile]:
    """A trace file that is there, whole, when the block ends well; ``.gz`` is compressed.

    Args:
        path: the file.
        requests: of each run, only the first so many are drawn.
        window_s: draw only what happens between these virtual seconds.

    Raises:
        RunError: if it cannot be written.
    """
    try:
        with replacing(path) as file:
            if path.suffix == ".gz":
                # No name and no time in its head: equal runs give equal bytes.
                with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=6) as packed:
                    yield from _write(packed, requests, window_s)
            else:
                yield from _write(file, requests, window_s)
    except OSError as error:
        raise RunError(f"cannot be written ({error.strerror or error})", where=str(path)) from error


def _write(
    file: IO[bytes] | BufferedIOBase, requests: int, window_s: tuple[float, float] | None
) -> Iterator[TraceFile]:
    trace = TraceFile(cast("IO[bytes]", file), requests, window_s or (0.0, float("inf")))
    yield trace
    trace.close()


class TraceFile:
    """Writes the events of one or more runs, one after another, into one file."""

    def __init__(self, file: IO[bytes], requests: int, window_s: tuple[float, float]) -> None:
        self._file = file
        self.requests = requests
        self.window_s = window_s
        self._processes = 0
        self._events = 0
        file.write(b'{"displayTimeUnit":"ms","traceEvents":[')

    def run(self, name: str) -> RunRecorder:
        """The recorder of one more run, whose tracks begin with ``name``."""
        return RunRecorder(self, name)

    def process(self, name: str) -> int:
        """A new group of tracks; returns its number."""
        self._processes += 1
        self.emit({"ph": "M", "name": "process_name", "pid": self._processes, "tid": 0, "args": {"name": name}})
        return self._processes

    def emit(self, event: Event) -> None:
        """Write one event."""
        self._file.write(b",\n" if self._events else b"\n")
        self._file.write(json.dumps(event, separators=(",", ":")).encode())
        self._events += 1

    def close(self) -> None:
        """Write what ends the file."""
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
        self._counted: dict[tuple[int, str], tuple[int, ...]] = {}
        self._promised: dict[str, int] = {}

    # -- what it is told ---------------------------------------------------------------------------------------

    def arrived(self, replica: int, row: RequestRow) -> None:
        """A track for the request, if it is one of the first."""
        pid = self._pid(replica)
        self._arrived += 1
        if self._arrived > self._file.requests or row.arrival_s > self._end_s:
            return
        tid = _FIRST_REQUEST + self._arrived
        self._tracks[row.request_id] = _Track(pid, tid, "queued", row.arrival_s)
        args = {"name": f"{row.request_id} ({row.prompt_tokens} prompt tokens)"}
        self._emit({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": args})
        self._emit({"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": {"sort_index": tid}})

    def stepped(self, replica: int, scheduler: Any, step: Step) -> None:
        """The step, the counters, and what its requests do now."""
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
        kv = (g.held_blocks, g.reserved_blocks, g.lent_blocks, g.usable_blocks - g.held_blocks)
        self._count(pid, "KV blocks", step.start_s, ("held", "reserved", "lent", "free"), kv)
        queues = (g.running, g.waiting_prompts, g.waiting_generations)
        self._count(pid, "requests", step.start_s, ("running", "waiting", "paused"), queues)

    def ended(self, replica: int, row: RequestRow, at_s: float) -> None:
        """The end of its last span."""
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
        ledger = getattr(scheduler, "ledger", None)
        task = ledger.tasks.get(name) if ledger is not None else None
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

    def _close(self, track: _Track, at_s: float, args: Event | None = None) -> None:
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
            for tid, name in ((_STEPS, "steps (GPU)"), (_HOST, "host")):
                self._emit({"ph": "M", "name": "thread_name", "pid": pid, "tid": tid, "args": {"name": name}})
                args = {"sort_index": tid}
                self._emit({"ph": "M", "name": "thread_sort_index", "pid": pid, "tid": tid, "args": args})
        return self._pids[replica]

    def _span(self, pid: int, tid: int, name: str, begin_s: float, end_s: float, args: Event | None = None) -> None:
        begin = _us(begin_s)
        event: Event = {
            "ph": "X",
            "name": name,
            "pid": pid,
            "tid": tid,
            "ts": begin,
            "dur": round(_us(end_s) - begin, 3),
        }
        self._emit(event | ({"args": args} if args else {}))

    def _instant(self, track: _Track, name: str, at_s: float, args: Event | None = None) -> None:
        if self._begin_s <= at_s <= self._end_s:
            event: Event = {"ph": "i", "s": "t", "name": name, "pid": track.pid, "tid": track.tid, "ts": _us(at_s)}
            self._emit(event | ({"args": args} if args else {}))

    def _count(self, pid: int, name: str, at_s: float, names: tuple[str, ...], values: tuple[int, ...]) -> None:
        if self._counted.get((pid, name)) != values:
            self._counted[pid, name] = values
            args = dict(zip(names, values, strict=True))
            self._emit({"ph": "C", "name": name, "pid": pid, "tid": 0, "ts": _us(at_s), "args": args})

    def _emit(self, event: Event) -> None:
        self._file.emit(event)


def _us(seconds: float) -> float:
    """Microseconds, to the nanosecond."""
    return round(seconds * 1e6, 3)
