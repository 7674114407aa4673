"""Watching one scheduler of a live engine: times, KV, preemptions of each request. It changes no decision.

Rule: the same instrument for vLLM's own scheduler and for ours, put onto the object itself, so that what is measured is
the very class that serves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ecoserve.serving.core.counters import Counters
from ecoserve.serving.runs import EngineTotals, mispredictions


class SchedulerWatch:
    """Times and counts one :class:`~ecoserve.serving.adapter.counting.CountingScheduler`, from now on.

    Args:
        scheduler: of an engine that runs in this process.
        clock: seconds; the KV's shares are averaged over it.
    """

    def __init__(self, scheduler: Any, clock: Callable[[], float] = time.monotonic) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._before = asdict(scheduler.counters)
        self.schedule_s: list[float] = []
        self.update_s: list[float] = []
        #: internal request id -> preemptions, of requests that have left the scheduler
        self.preemptions_of: dict[str, int] = {}
        self._area = [0.0, 0.0, 0.0]
        self._last = (clock(), (0.0, 0.0, 0.0))
        self._begin = self._last[0]
        self._end = self._begin
        scheduler.schedule = self._timed(scheduler.schedule, self.schedule_s)
        scheduler.update_from_output = self._timed(scheduler.update_from_output, self.update_s, self._sample)
        scheduler._free_blocks = self._noting(scheduler._free_blocks)

    def restart(self) -> None:
        """Forget what was seen so far (a warm-up)."""
        self._before = asdict(self._scheduler.counters)
        self.schedule_s.clear()
        self.update_s.clear()
        self.preemptions_of.clear()
        self._area = [0.0, 0.0, 0.0]
        self._last = (self._clock(), (0.0, 0.0, 0.0))
        self._begin = self._end = self._last[0]

    def totals(self) -> EngineTotals:
        """What was counted, up to the last step."""
        now = asdict(self._scheduler.counters)
        new = Counters(**{name: value - self._before[name] for name, value in now.items()})
        span = self._end - self._begin
        used, reserved, lent = (a / span if span > 0 else None for a in self._area)
        return EngineTotals(
            preemptions=new.preemptions,
            recomputed_tokens=new.recomputed_tokens,
            pauses=new.pauses,
            re_reservations=new.re_reservations,
            steps=new.steps,
            mispredictions=mispredictions([new]),
            kv_used_mean=used,
            kv_reserved_mean=reserved,
            kv_lent_mean=lent,
            schedule_s=tuple(self.schedule_s),
            update_s=tuple(self.update_s),
        )

    def _sample(self) -> None:
        now = self._clock()
        then, shares = self._last
        for i, share in enumerate(shares):
            self._area[i] += share * (now - then)
        g = self._scheduler.gauges()
        usable = max(1, g.usable_blocks)
        self._last = (now, (g.held_blocks / usable, g.reserved_blocks / usable, g.lent_blocks / usable))
        self._end = now

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
