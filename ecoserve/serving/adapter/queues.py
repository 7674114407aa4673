"""The request queues in the place of vLLM's: sorted, and with a head that is visible only when it may start.

The *prefill queue* replaces ``waiting``, the *decode queue* replaces ``kv_holding_waiting`` (requests that wait with
their KV). What vLLM's ``schedule()`` relies on, and this module keeps:

- ``bool(queue)`` is asked repeatedly and means "is there a head to try"; the answer is cached until the queue changes.
- ``peek_request`` and ``pop_request`` agree; the order is frozen within one ``schedule()``. Keys that depend on the
  time are computed anew between steps, at a cost of about :data:`REKEYED` keys a step.
- ``len`` counts hidden requests too: it keeps the engine alive.
- ``remove_requests`` tolerates requests that are not here.
- Requests in a blocked status (grammar being compiled, streaming input) are never hidden: vLLM must look at them in
  every step to see whether they are ready. They go first; vLLM skips them and puts them back.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request

from ecoserve.serving.core.orderings import SortKey

Entry = tuple[SortKey, int, Request]

#: Keys computed anew per step, on average, where keys depend on the time.
REKEYED = 64


class GatedQueue(RequestQueue):
    """A sorted queue whose head is visible only if the gate lets it through.

    Args:
        key: sort key of a request; asked when the request comes in, and again where keys move.
        gate: whether the head may start now. Not asked about requests in a blocked status.
        eligible: requests for which this is False are passed over (their output is still in flight).
        blocked: whether a request is in a blocked status.
        taken: called with every request that is popped after its gate; vLLM may still skip it.
        moves: whether keys depend on the time.
    """

    def __init__(
        self,
        key: Callable[[Request], SortKey],
        gate: Callable[[Request], bool],
        eligible: Callable[[Request], bool],
        blocked: Callable[[Request], bool],
        taken: Callable[[Request], None],
        moves: Callable[[], bool] = lambda: False,
    ) -> None:
        self._key = key
        self._gate = gate
        self._eligible = eligible
        self._is_blocked = blocked
        self._taken = taken
        self._moves = moves
        self._steps_since = 0
        self._sorted: list[Entry] = []
        self._blocked: dict[Request, None] = {}
        self._where: dict[Request, Entry] = {}
        self._serial = 0
        self._head: Request | None = None
        self._known = False

    def new_step(self) -> None:
        """Forget the cached answer; requests whose blocked status has ended take their place in the order."""
        self._known = False
        for request in [r for r in self._blocked if not self._is_blocked(r)]:
            del self._blocked[request]
            self.add_request(request)
        self._steps_since += 1
        if self._moves() and self._steps_since * REKEYED >= len(self._sorted):
            self.rekey()

    def rekey(self) -> None:
        """Compute all keys anew; only between two calls of ``schedule()``."""
        self._steps_since = 0
        self._sorted = sorted((self._key(request), serial, request) for _, serial, request in self._sorted)
        self._where = {entry[2]: entry for entry in self._sorted}

    def visible(self) -> Request | None:
        if not self._known:
            self._head = self._find()
            self._known = True
        return self._head

    def _find(self) -> Request | None:
        if self._blocked:
            return next(iter(self._blocked))
        for _, _, request in self._sorted:
            if self._eligible(request):
                return request if self._gate(request) else None
        return None

    # -- vLLM's interface ------------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        """Put a request in its place; one that is here already moves."""
        self._known = False
        if request in self:
            self.remove_request(request)
        if self._is_blocked(request):
            self._blocked[request] = None
            return
        self._serial += 1
        entry = (self._key(request), self._serial, request)
        self._where[request] = entry
        insort(self._sorted, entry)

    def pop_request(self) -> Request:
        request = self.peek_request()
        was_blocked = request in self._blocked
        self.remove_request(request)
        if not was_blocked:
            self._taken(request)
        return request

    def peek_request(self) -> Request:
        head = self.visible()
        if head is None:
            raise IndexError("no visible request in the queue")
        return head

    def prepend_request(self, request: Request) -> None:
        """The order is by key, so this is :meth:`add_request`."""
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.add_request(request)

    def remove_request(self, request: Request) -> None:
        """Take a request out; ValueError if it is not here."""
        self._known = False
        if request in self._blocked:
            del self._blocked[request]
            return
        entry = self._where.pop(request, None)
        if entry is None:
            raise ValueError(f"request {request.request_id} is not in the queue")
        del self._sorted[bisect_left(self._sorted, entry)]

    def remove_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            if request in self:
                self.remove_request(request)

    def __contains__(self, request: object) -> bool:
        return request in self._where or request in self._blocked

    def __bool__(self) -> bool:
        return self.visible() is not None

    def __len__(self) -> int:
        return len(self._sorted) + len(self._blocked)

    def __iter__(self) -> Iterator[Request]:
        yield from list(self._blocked)
        for _, _, request in list(self._sorted):
            yield request
