"""Mispredictions as events: what happened, to whom, at what price.

Every rung of the under-prediction ladder has a name here, and a counter of that name
(:class:`~ecoserve.serving.core.counters.Counters`). Whoever decides something tells the :class:`Recorder`, once: it
counts, and hands the event on to a log if there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from ecoserve.serving.core.counters import Counters
from ecoserve.serving.core.tasks import Task


class UnderpredictionAction(StrEnum):
    """How an outlived reservation, or a shortage of KV, was met; cheapest first."""

    OWN_SPACE = "own_space"  # unlent space of its own
    RE_RESERVED = "re_reserved"  # a new reservation from the posterior
    GLOBAL_RESERVE = "global_reserve"  # a block of the reserve
    PAUSED = "paused"  # stopped, KV kept, waits as a decode
    GUEST_MOVED = "guest_moved"  # a host came: its guest got a window of its own, or stopped
    RECOMPUTED = "recomputed"  # the victim's KV was dropped


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        at_s: on the scheduler's clock. step: the scheduler's step.
        kind: a :class:`UnderpredictionAction`, or ``admitted``, ``resumed``, ``finished``, ``aborted``.
        predicted: median length told at arrival, tokens; generated: tokens out; promised: length reserved.
        blocks: KV blocks that the request holds. free_blocks: blocks that nobody holds.
    """

    at_s: float
    step: int
    request: str
    kind: str
    predicted: int
    generated: int
    promised: int
    blocks: int
    free_blocks: int

    def as_row(self) -> dict[str, Any]:
        """The event as one JSON object."""
        return asdict(self)


class Recorder:
    """Counts events and hands them on.

    Args:
        counters: what is counted.
        state: (time, step, blocks that a request holds, free blocks), asked only if there is a log.
        log: is given every event, or None.
    """

    def __init__(
        self,
        counters: Counters,
        state: Callable[[Task], tuple[float, int, int, int]],
        log: Callable[[Event], None] | None = None,
    ) -> None:
        self._counters = counters
        self._state = state
        self._log = log

    def action(self, action: UnderpredictionAction, task: Task) -> None:
        """An under-prediction was handled by ``action``."""
        name = f"underprediction_{action.value}"
        setattr(self._counters, name, getattr(self._counters, name) + 1)
        self.note(action.value, task)

    def note(self, kind: str, task: Task) -> None:
        """Something else happened; its counter is the caller's."""
        if self._log is None:
            return
        at, step, blocks, free = self._state(task)
        self._log(
            Event(
                at_s=round(at, 6),
                step=step,
                request=task.request_id,
                kind=kind,
                predicted=task.predicted_median,
                generated=task.generated,
                promised=task.promised,
                blocks=blocks,
                free_blocks=free,
            )
        )
