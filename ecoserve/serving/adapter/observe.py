"""Measuring one scheduler of a live engine: times, KV, preemptions of each request. It changes no decision."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ecoserve.serving.core.counters import Counters
from ecoserve.serving.runs import EngineTotals, KVSeries


class SchedulerWatch:
    """Times and counts one :class:`~ecoserve.serving.adapter.counting.CountingScheduler` of this process, from now on.

    It is put onto the object itself, so that the measured class is the one that serves. KV shares are averaged over
    ``clock``, seconds.
    """

    def __init__(self, scheduler: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self.schedule_s: list[float] = []
        self.update_s: list[float] = []
        #: internal request id -> preemptions, of requests that have left the scheduler
        self.preemptions_of: dict[str, int] = {}
        self.restart()
        scheduler.schedule = self._timed(scheduler.schedule, self.schedule_s)
        scheduler.update_from_output = self._timed(scheduler.update_from_output, self.update_s, self._sample)
        scheduler._free_blocks = self._noting(scheduler._free_blocks)

    def restart(self) -> None:
        """Forget what was seen so far (a warm-up)."""
        self._before = asdict(self._scheduler.counters)
        self.schedule_s.clear()
        self.update_s.clear()
        self.preemptions_of.clear()
        begin = self._clock()
        self._kv = KVSeries(self._scheduler.usable_blocks, start_s=begin)
        self._last = (begin, (0, 0, 0))

    def totals(self) -> EngineTotals:
        """What was counted, up to the last step."""
        now = asdict(self._scheduler.counters)
        new = Counters(**{name: value - self._before[name] for name, value in now.items()})
        return EngineTotals.of([new], [self._kv], schedule_s=tuple(self.schedule_s), update_s=tuple(self.update_s))

    def _sample(self) -> None:
        now = self._clock()
        then, (held, reserved, lent) = self._last
        self._kv.add(then, now - then, held, reserved, lent, None)
        g = self._scheduler.gauges()
        self._last = (now, (g.held_blocks, g.reserved_blocks, g.lent_blocks))

    def _timed(
        self, call: Callable[..., Any], into: list[float], after: Callable[[], None] | None = None
    ) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.perf_counter()
            result = call(*args, **kwargs)
            into.append(time.perf_counter() - begun)
            if after is not None:
                after()
            return result

        return timed

    def _noting(self, free: Callable[..., Any]) -> Callable[..., Any]:
        def noting(request: Any) -> Any:
            self.preemptions_of[request.request_id] = request.num_preemptions
            return free(request)

        return noting
