"""KV over time, thinned while a run goes on: exact averages over equal intervals, at most a few hundred.

Intervals begin short; whenever the run outgrows :data:`MOST` of them, neighbours are merged and the width doubles. Time
for which no state is given counts as an empty cache.

*Wasted* blocks are those reserved beyond what the response will need and not lent, and those held by paused requests.
Only a simulation knows the former.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

#: The most intervals that are kept of a run.
MOST: Final = 200
#: Width of the first intervals, in seconds.
FIRST_WIDTH_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class KVPoint:
    """Averages over one interval of one replica, as shares of its usable KV.

    Attributes:
        replica: its number.
        at_s: when the interval begins, on the run's clock. seconds: its length.
        held: blocks taken. reserved: reserved beyond what is written. lent: of these, lent to guests.
        wasted: see the module; None where it is not known.
    """

    replica: int
    at_s: float
    seconds: float
    held: float
    reserved: float
    lent: float
    wasted: float | None


class KVSeries:
    """Averages states of one replica's KV, given in order of time, over equal intervals.

    Args:
        usable_blocks: blocks that shares are of.
        replica: its number.
        start_s: when the run begins, on its clock.
    """

    def __init__(self, usable_blocks: int, replica: int = 0, start_s: float = 0.0) -> None:
        self.usable_blocks = max(1, usable_blocks)
        self.replica = replica
        self.width_s = FIRST_WIDTH_S
        #: over the whole run: block-seconds held, reserved and lent, and the seconds
        self.block_seconds = [0.0, 0.0, 0.0]
        self.seconds = 0.0
        self._start_s = self._end_s = start_s
        #: block-seconds of each interval: held, reserved, lent, wasted
        self._area: list[list[float]] = []
        self._waste_known = True

    @property
    def interval(self) -> int:
        """Number of intervals that the states so far reach into."""
        return len(self._area)

    def add(self, at_s: float, seconds: float, held: float, reserved: float, lent: float, wasted: float | None) -> None:
        """The state for ``seconds`` from ``at_s`` on, in blocks."""
        if wasted is None:
            self._waste_known = False
        state = (held, reserved, lent, wasted or 0.0)
        self.seconds += seconds
        for k in range(3):
            self.block_seconds[k] += state[k] * seconds
        begin = max(0.0, at_s - self._start_s)
        end = begin + seconds
        while end > MOST * self.width_s:
            self._merge()
        first, last = int(begin / self.width_s), int(end / self.width_s)
        while len(self._area) <= last:
            self._area.append([0.0, 0.0, 0.0, 0.0])
        for i in range(first, last + 1):
            share = min(end, (i + 1) * self.width_s) - max(begin, i * self.width_s)
            if share > 0:
                area = self._area[i]
                for k, blocks in enumerate(state):
                    area[k] += blocks * share
        self._end_s = max(self._end_s, at_s + seconds)

    def points(self) -> list[KVPoint]:
        """The averages so far; the last interval ends where the last state did."""
        found = []
        for i, area in enumerate(self._area):
            at = i * self.width_s
            seconds = min(self.width_s, self._end_s - self._start_s - at)
            if seconds <= 0:
                break
            held, reserved, lent, wasted = (a / seconds / self.usable_blocks for a in area)
            known = wasted if self._waste_known else None
            found.append(KVPoint(self.replica, self._start_s + at, seconds, held, reserved, lent, known))
        return found

    def _merge(self) -> None:
        """Double the width of the intervals."""
        self.width_s *= 2
        area = self._area
        if len(area) % 2:
            area.append([0.0, 0.0, 0.0, 0.0])
        self._area = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(area[::2], area[1::2], strict=True)]


def wasted_blocks(scheduler: Any, response_tokens: Mapping[str, int]) -> float:
    """Blocks wasted now (see the module); 0 for a scheduler that neither reserves nor pauses.

    Args:
        scheduler: a ``CountingScheduler`` or a subclass.
        response_tokens: true lengths by request id; a request that is not named is taken to need all it reserved.
    """
    planner = getattr(scheduler, "planner", None)
    if planner is None:
        return 0.0
    ledger, over, paused = planner.ledger, 0, 0
    for task in ledger.holders():
        written = ledger.blocks(task.written)
        true = response_tokens.get(task.request_id)
        if true is not None:
            needed = max(written, ledger.blocks(task.prompt_tokens + true))
            over += max(0, ledger.promised_blocks(task) - needed)
        if task.state.value == "paused":
            paused += written
    return float(max(0, over - planner.kv_policy.lent_blocks()) + paused)
