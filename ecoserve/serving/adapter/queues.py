"""The request queues in the place of vLLM's: sorted, and with a head that is visible only when it may start.

The *prefill queue* replaces ``waiting``, the *decode queue* replaces ``kv_holding_waiting`` (requests that wait with
their KV). What vLLM's ``schedule()`` relies on, and this module keeps:

- ``bool(queue)`` is asked repeatedly and means "is there a head to try"; the answer is cached until the queue changes.
- ``peek_request`` and ``pop_request`` agree. Keys are computed anew between steps, for :data:`REKEYED` requests a step
  (those at the front, and those whose keys are oldest), and for a request that is about to be the head: the work of a
  step does not grow with the queue. Until then a request stands by its old key.
- ``len`` counts hidden requests too: it keeps the engine alive.
- ``remove_requests`` tolerates requests that are not here.
- Requests in a blocked status (grammar being compiled, streaming input) are never hidden: vLLM must look at them in
  every step to see whether they are ready. They go first; vLLM skips them and puts them back.
- Requests are sorted by lane (LoRA adapter). Those in a closed lane (no place for another adapter) are passed over
  without a look: vLLM would ask for each of them, skip it and put it back.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request

from ecoserve.serving.core.orderings import SortKey

#: Place of a request: by key, then as it came.
Entry = tuple[SortKey, int, Request]

#: Keys computed anew in a step, at most, and where they are taken first: at the front of the queue.
REKEYED: Final = 32
FRONT: Final = 16
#: A key counts this often after :meth:`GatedQueue.rekey`: the length distribution behind it is computed anew, too.
CHANGED_COST: Final = 4
#: Requests whose key is computed anew in one search for the head, at most.
HEADS: Final = 8


class GatedQueue(RequestQueue):
    """A sorted queue whose head is visible only if the gate lets it through.

    Args:
        key: sort key of a request; asked when the request comes in, and again where keys move.
        gate: whether the head may start now. Not asked about requests in a blocked status.
        eligible: requests for which this is False are passed over (their output is still in flight).
        blocked: whether a request is in a blocked status.
        taken: called with every request that is popped after its gate; vLLM may still skip it.
        moves: whether keys depend on the time.
        lane: a request's lane. is_open: whether requests of a lane may start now.
        arrival: sort key of a request by its arrival, which never changes. by_arrival: whether the head is the first by
            it, instead of the first by ``key``.
    """

    def __init__(
        self,
        key: Callable[[Request], SortKey],
        gate: Callable[[Request], bool],
        eligible: Callable[[Request], bool],
        blocked: Callable[[Request], bool],
        taken: Callable[[Request], None],
        moves: Callable[[], bool] = lambda: False,
        lane: Callable[[Request], int] = lambda _: 0,
        is_open: Callable[[int], bool] = lambda _: True,
        arrival: Callable[[Request], tuple[float, float, str]] = lambda _: (0.0, 0.0, ""),
        by_arrival: Callable[[], bool] = lambda: False,
    ) -> None:
        self._key = key
        self._gate = gate
        self._eligible = eligible
        self._is_blocked = blocked
        self._taken = taken
        self._moves = moves
        self._lane = lane
        self._is_open = is_open
        self._arrival = arrival
        self._by_arrival = by_arrival
        #: all requests by arrival, and some that have left
        self._arrivals: list[tuple[tuple[float, float, str], int, Request]] = []
        self._lanes: dict[int, list[Entry]] = {}
        self._blocked: dict[Request, None] = {}
        #: where a request stands, and the step in which its key was computed; the oldest key comes first
        self._where: OrderedDict[Request, tuple[Entry, int]] = OrderedDict()
        self._step = 0
        #: keys of earlier steps are to be computed anew
        self._valid_from = 0
        #: the step of the last :meth:`rekey`
        self._changed = 0
        self._serial = 0
        self._head: Request | None = None
        self._known = False

    def new_step(self) -> None:
        """Forget the cached answer; requests whose blocked status has ended take their place in the order."""
        self._known = False
        self._step += 1
        for request in [r for r in self._blocked if not self._is_blocked(r)]:
            del self._blocked[request]
            self.add_request(request)
        if self._moves():
            self._valid_from = self._step
        self._rekey_some()

    def rekey(self) -> None:
        """What all keys depend on has changed: they are computed anew over the next steps."""
        self._step += 1
        self._valid_from = self._changed = self._step

    def _rekey_some(self) -> None:
        if not self._where or not self._is_old(next(iter(self._where))):
            return
        ready = heapq.merge(*(entries for lane, entries in self._lanes.items() if self._is_open(lane)))
        front = [request for _, _, request in islice(ready, FRONT)]
        budget = REKEYED
        for request in (*front, *islice(self._where, REKEYED)):
            if self._is_old(request):
                budget -= CHANGED_COST if self._where[request][1] < self._changed else 1
                if budget < 0:
                    break
                self._renew(request)

    def _is_old(self, request: Request) -> bool:
        return self._where[request][1] < self._valid_from

    def _renew(self, request: Request) -> bool:
        """Compute a request's key anew if it is old; whether the request has moved."""
        if not self._is_old(request):
            return False
        entry = self._where[request][0]
        key = self._key(request)
        moved = key != entry[0]
        if moved:
            self._drop(entry)
            entry = (key, entry[1], request)
            self._insert(entry)
        self._where[request] = entry, self._step
        self._where.move_to_end(request)
        return moved

    def _insert(self, entry: Entry) -> None:
        insort(self._lanes.setdefault(self._lane(entry[2]), []), entry)

    def _drop(self, entry: Entry) -> None:
        lane = self._lane(entry[2])
        entries = self._lanes[lane]
        del entries[bisect_left(entries, entry)]
        if not entries:
            del self._lanes[lane]

    def visible(self) -> Request | None:
        if not self._known:
            self._head = self._find()
            self._known = True
        return self._head

    def _find(self) -> Request | None:
        if self._blocked:
            return next(iter(self._blocked))
        first = self._first_come() if self._by_arrival() else self._renewed_first()
        return first if first is not None and self._gate(first) else None

    def _renewed_first(self) -> Request | None:
        first = self._first()
        for _ in range(HEADS):
            if first is None or not self._renew(first):
                break
            first = self._first()
        return first

    def _first_come(self) -> Request | None:
        """The first eligible request of the open lanes by arrival."""
        passed = []
        found = None
        while self._arrivals and found is None:
            entry = self._arrivals[0]
            request = entry[2]
            if not self._is_here(entry):
                heapq.heappop(self._arrivals)
            elif self._is_open(self._lane(request)) and self._eligible(request):
                found = request
            else:
                passed.append(heapq.heappop(self._arrivals))
        for entry in passed:
            heapq.heappush(self._arrivals, entry)
        return found

    def _is_here(self, arrival: tuple[Any, int, Request]) -> bool:
        known = self._where.get(arrival[2])
        return known is not None and known[0][1] == arrival[1]

    def overtaken(self, request: Request) -> bool:
        """Whether ``request``, which has just left, stood behind another by its key."""
        first = self._first()
        return first is not None and self._where[first][0][0] < self._key(request)

    def _first(self) -> Request | None:
        """The first eligible request of the open lanes."""
        best: Entry | None = None
        for lane, entries in self._lanes.items():
            if (best is None or entries[0] < best) and self._is_open(lane):
                first = next((e for e in entries if self._eligible(e[2])), None)
                if first is not None and (best is None or first < best):
                    best = first
        return None if best is None else best[2]

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
        self._where[request] = entry, self._step
        self._insert(entry)
        heapq.heappush(self._arrivals, (self._arrival(request), self._serial, request))

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
        # vLLM hands over those it has skipped, the last one first; blocked ones keep the order in which they came.
        for request in reversed(list(requests)):
            self.add_request(request)

    def remove_request(self, request: Request) -> None:
        """Take a request out; ValueError if it is not here."""
        self._known = False
        if request in self._blocked:
            del self._blocked[request]
            return
        known = self._where.pop(request, None)
        if known is None:
            raise ValueError(f"request {request.request_id} is not in the queue")
        self._drop(known[0])
        if len(self._arrivals) > 2 * len(self._where):
            self._arrivals = [a for a in self._arrivals if self._is_here(a)]
            heapq.heapify(self._arrivals)

    def remove_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            if request in self:
                self.remove_request(request)

    def __contains__(self, request: object) -> bool:
        return request in self._where or request in self._blocked

    def __bool__(self) -> bool:
        return self.visible() is not None

    def __len__(self) -> int:
        return len(self._where) + len(self._blocked)

    def __iter__(self) -> Iterator[Request]:
        yield from list(self._blocked)
        for _, _, request in list(heapq.merge(*self._lanes.values())):
            yield request
