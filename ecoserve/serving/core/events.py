"""Events of requests: what the planner did about an under-prediction or a shortage, and what it cost.

Each :class:`UnderpredictionAction` has a counter of that name (:class:`~ecoserve.serving.core.counters.Counters`). The
:class:`Recorder` counts, and hands the event to a log if there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from ecoserve.serving.core.counters import Counters
from ecoserve.serving.core.tasks import Task


class UnderpredictionAction(StrEnum):
    """What is done about an outlived promise or a shortage of KV; cheapest first."""

    OWN_SPACE = "own_space"  # unlent space of its own window
    RE_RESERVED = "re_reserved"  # a new promise from the posterior
    GLOBAL_RESERVE = "global_reserve"  # a block of the reserve
    PAUSED = "paused"  # waits with its KV
    GUEST_MOVED = "guest_moved"  # a host reached its guest, which got a window of its own or stopped
    RECOMPUTED = "recomputed"  # preempted: its KV was dropped


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    Attributes:
        at_s: on the scheduler's clock. step: the scheduler's step.
        kind: a :class:`UnderpredictionAction`, or ``admitted``, ``resumed``, ``finished``, ``aborted``.
        predicted: median length at arrival, tokens; generated: tokens out; promised: length reserved.
        blocks: KV blocks that the request holds. free_blocks: free KV blocks.
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
        counters: incremented.
        state: (time, step, blocks that a request holds, free blocks), asked only if there is a log.
        log: called with every event, or None.
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
        """Another event; its counter is the caller's."""
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
