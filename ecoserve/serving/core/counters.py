"""What the scheduler counts and reports: counters, gauges, events of requests, SLO attainment.

One definition of each figure, with its help text, for the metrics endpoint, runs and tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ecoserve.serving.core.tasks import Task


def _counted(help_text: str, initial: Any = 0) -> Any:
    return field(default=initial, metadata={"help": help_text})


@dataclass(slots=True)
class Counters:
    """Events since the scheduler was made. Every field only grows."""

    steps: int = _counted("Scheduler steps.")
    pauses: int = _counted("Decoding requests paused: stopped with their KV kept.")
    resumes: int = _counted("Paused requests that were resumed.")
    preemptions: int = _counted("Requests whose KV was dropped, to be computed again.")
    recomputed_tokens: int = _counted("Tokens computed again after preemptions.")
    shortage_preemptions: int = _counted("Preemptions whose victim ecoserve chose in a shortage (the rest are vLLM's).")
    under_predictions: int = _counted("Responses that outlived their reservation.")
    over_predictions: int = _counted("Responses that ended before their reservation.")
    re_reservations: int = _counted("New reservations for responses that outlived the old one.")
    underprediction_own_space: int = _counted("Under-predictions covered by the request's own unlent space.")
    underprediction_re_reserved: int = _counted("Under-predictions covered by a new reservation from the posterior.")
    underprediction_global_reserve: int = _counted("Under-predictions covered by the global reserve.")
    underprediction_paused: int = _counted("Under-predictions resolved by a pause.")
    underprediction_guest_moved: int = _counted("Under-predictions resolved by moving the guest off its host.")
    underprediction_recomputed: int = _counted("Under-predictions resolved by preempting a victim.")
    predictions_used: int = _counted("Requests scheduled by a prediction that came with them.")
    predictions_missing: int = _counted("Requests without a prediction, scheduled by the history of finished lengths.")
    predictions_refused: int = _counted("Predictions that were not a valid length distribution.")
    slos_refused: int = _counted("SLO fields of requests that were not durations.")
    slo_requests: int = _counted("Requests that reached the scheduler with an SLO.")
    ttft_met: int = _counted("Requests whose first token came within their TTFT.")
    ttft_missed: int = _counted("Requests whose first token came later, or not in time before they ended.")
    tpot_met: int = _counted("Completed requests whose further tokens came within their TPOT.")
    tpot_missed: int = _counted("Completed requests whose further tokens came more slowly.")
    forced_admissions: int = _counted("Requests admitted against the policy because nothing else was running.")
    shortage_steps: int = _counted("Steps in which running requests needed more KV blocks than were free.")
    past_ageing_limit: int = _counted("Requests that had waited longer than max_wait_s when they first started.")
    shadow_reordered: int = _counted("Requests that vLLM's order started while level full would have started another.")
    shadow_held: int = _counted("Requests that vLLM's admission started while level full would have held them back.")
    aborted: int = _counted("Requests that left before they had ended: their client left, or the server stopped.")
    finished: int = _counted("Requests that left the scheduler.")


@dataclass(slots=True)
class Gauges:
    """The state after the last step: KV blocks, numbers of requests, and what the correction does."""

    usable_blocks: int = _counted("KV blocks that requests can use.")
    held_blocks: int = _counted("KV blocks that requests hold.")
    reserved_blocks: int = _counted("KV blocks reserved for requests beyond what they hold.")
    lent_blocks: int = _counted("Reserved KV blocks lent to guests.")
    running: int = _counted("Running requests.")
    waiting_prompts: int = _counted("Requests that wait for their prefill.")
    waiting_generations: int = _counted("Requests that wait to decode, holding KV.")
    length_scale: float = _counted("Factor by which the correction scales predicted lengths when it scales them.", 1.0)
    coverage_90: float = _counted("Share of recent responses within their 0.9 quantile.", 0.9)
    length_source: str = _counted("1 for the source of lengths in use.", "predicted")
    common_error: float = _counted("Share of the lengths' uncertainty that requests have in common.", 0.0)


class Attainment:
    """SLO attainment: counts ``ttft_met``, ``ttft_missed``, ``tpot_met`` and ``tpot_missed`` of one scheduler.

    Times are those at which the scheduler sees a token; what the API server adds is not included. The TTFT is judged
    when the first token is out; a request that ends without one has missed it if the time was over, and is not counted
    otherwise (its client left). The TPOT, the mean over the tokens after the first, is judged when a response
    completes; a response of a single token cannot miss it.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        #: requests with an SLO whose first token is not out
        self._waiting: dict[str, Task] = {}
        #: those whose first token is out, and when that was
        self._first_s: dict[str, float] = {}

    def arrives(self, task: Task) -> None:
        if task.ttft_slo_s is not None or task.tpot_slo_s is not None:
            self._counters.slo_requests += 1
            self._waiting[task.request_id] = task

    def awaits(self, request_ids: Iterable[str]) -> list[str]:
        return [name for name in request_ids if name in self._waiting] if self._waiting else []

    def first_token(self, request_id: str, now: float) -> None:
        task = self._waiting.pop(request_id)
        self._first_s[request_id] = now
        self._judge_first(task, now)

    def ended(self, task: Task, now: float, completed: bool) -> None:
        """A request has left with ``task.generated`` tokens; ``completed``: by itself or at its limit."""
        name = task.request_id
        if name in self._waiting:
            if task.generated:
                self.first_token(name, now)
            else:
                del self._waiting[name]
                if now > task.first_token_due_s():
                    self._counters.ttft_missed += 1
        first = self._first_s.pop(name, None)
        if first is None or not completed or task.tpot_slo_s is None:
            return
        met = now - first <= task.tpot_slo_s * (task.generated - 1)
        self._counters.tpot_met += met
        self._counters.tpot_missed += not met

    def forget(self, request_id: str) -> None:
        """The request goes on as something else (a session's next turn)."""
        self._waiting.pop(request_id, None)
        self._first_s.pop(request_id, None)

    def _judge_first(self, task: Task, now: float) -> None:
        if task.ttft_slo_s is None:
            return
        met = now <= task.first_token_due_s()
        self._counters.ttft_met += met
        self._counters.ttft_missed += not met


class UnderpredictionAction(StrEnum):
    """What is done about an outlived promise or a shortage of KV, cheapest first; each has a counter of its name."""

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


class Recorder:
    """Counts under-prediction actions, and hands every event to ``log`` if there is one.

    ``state`` gives (time, step, blocks that a request holds, free blocks), and is asked only for a log.
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
