"""SLO attainment: TTFT and TPOT of each request that states one, against its own bounds.

Times are those at which the scheduler sees a token, on its clock; what the API server adds is not included. The TTFT is
judged when the first token is out; a request that ends without one has missed it if the time was over, and is not
counted otherwise (its client left). The TPOT, the mean over the tokens after the first, is judged when a response
completes; a response of a single token cannot miss it.
"""

from __future__ import annotations

from collections.abc import Iterable

from ecoserve.serving.core.counters import Counters
from ecoserve.serving.core.tasks import Task


class Attainment:
    """Counts ``ttft_met``, ``ttft_missed``, ``tpot_met`` and ``tpot_missed`` of one scheduler."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        #: requests with an SLO whose first token is not out
        self._waiting: dict[str, Task] = {}
        #: those whose first token is out, and when that was
        self._first_s: dict[str, float] = {}

    def arrives(self, task: Task) -> None:
        """A request is handed over."""
        if task.ttft_slo_s is not None or task.tpot_slo_s is not None:
            self._counters.slo_requests += 1
            self._waiting[task.request_id] = task

    def awaits(self, request_ids: Iterable[str]) -> list[str]:
        """Those of ``request_ids`` that have an SLO and no first token yet."""
        return [name for name in request_ids if name in self._waiting] if self._waiting else []

    def first_token(self, request_id: str, now: float) -> None:
        """The first token of a request that awaits it is out."""
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
