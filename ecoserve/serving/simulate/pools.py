"""Prefill and decode on engines of their own, as DistServe (OSDI 2024) and vLLM's disaggregation have it.

A request's prompt is computed on an engine of the prefill pool, which gives its first token. Then it waits at an engine
of the decode pool until that has KV blocks for it, and its KV is fetched over a link; the prefill engine keeps its
blocks until then, so a full decode pool holds prefills back. Each engine is a real vLLM scheduler with a KV connector,
whose rules (blocks first, then an asynchronous load, freeing when it is sent) are vLLM's own. A preempted decode
computes its prompt again where it is.

An engine sends and fetches one request's KV at a time, at the bandwidth of its GPUs together.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from heapq import heappop, heappush
from typing import Any, Final

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata
from vllm.v1.outputs import KVConnectorOutput

from ecoserve.serving.routing import HORIZONS, Offer, OpenWork, Report, Router, past_lengths
from ecoserve.serving.runs import RequestRow
from ecoserve.serving.simulate.engine import WORD, make_request
from ecoserve.serving.simulate.kv_link import KVLink
from ecoserve.serving.simulate.replica import START, Flight, Live, Replica

#: After so many steps in a row without a token, the next one changes nothing.
IDLE_STEPS: Final = 2


class LinkConnector(KVConnectorBase_V1):
    """The scheduler's side of a KV connector: what is to be fetched, and which blocks wait until they are sent."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: (request id, tokens) of loads that have got their blocks
        self.loads: list[tuple[str, int]] = []

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        params = request.kv_transfer_params or {}
        tokens = request.num_prompt_tokens - num_computed_tokens if params.get("do_remote_prefill") else 0
        return max(0, tokens), tokens > 0

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        params = request.kv_transfer_params or {}
        if params.get("do_remote_prefill"):
            params["do_remote_prefill"] = False  # once: a preempted request computes its prompt again
            self.loads.append((request.request_id, num_external_tokens))

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return KVConnectorMetadata()

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        return bool((request.kv_transfer_params or {}).get("do_remote_decode")), None

    # A worker's side, which there is none of.

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None: ...

    def wait_for_layer_load(self, layer_name: str) -> None: ...

    def save_kv_layer(self, layer_name: str, kv_layer: Any, attn_metadata: Any, **kwargs: Any) -> None: ...

    def wait_for_save(self) -> None: ...


class PoolReplica(Replica):
    """An engine of a pool: transfers end at times of their own, and its scheduler hears of it before its next step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.link_free_s = 0.0
        #: (end, request id, whether it was sent) of transfers under way
        self._transfers: list[tuple[float, str, bool]] = []

    def transfers(self, end_s: float, name: str, sent: bool) -> None:
        heappush(self._transfers, (end_s, name, sent))

    def next_event(self) -> tuple[float, int] | None:
        event = super().next_event()
        if event is not None and event[1] == START and self._idle >= IDLE_STEPS and not self.inbox:
            # It waits for a transfer, under way or to come.
            return (max(self.now, self._transfers[0][0]), START) if self._transfers else None
        return event

    @property
    def stuck(self) -> bool:
        return self.next_event() is None and bool(self.scheduler.has_unfinished_requests())

    def act(self) -> None:
        event = self.next_event()
        if event is not None and event[1] == START:
            self.now = event[0]
        super().act()

    def receive(self, live: Live, at_s: float) -> None:
        if self._next is None or self._idle:
            self.now = max(self.now, at_s)
        self.hand(live)

    def take(self, flight: Flight) -> None:
        super().take(flight)
        if flight.output.total_num_scheduled_tokens:
            self._idle = 0

    def deliver(self) -> None:
        done = KVConnectorOutput(finished_sending=set(), finished_recving=set())
        while self._transfers and self._transfers[0][0] <= self.now:
            _, name, sent = heappop(self._transfers)
            (done.finished_sending if sent else done.finished_recving).add(name)
        if not done.is_empty():
            self.scheduler._update_from_kv_xfer_finished(done)
        super().deliver()


class PrefillReplica(PoolReplica):
    """Computes prompts and gives first tokens; hands every request that goes on to ``decodes``."""

    decodes: DecodePool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._whole: dict[str, Live] = {}

    def hand(self, live: Live, abort_at_s: float | None = None) -> None:
        whole = live.request
        self._whole[whole.request_id] = live
        to_fetch = {"kv_transfer_params": {"do_remote_decode": True}} if live.response_tokens > 1 else None
        first = make_request(whole.request_id, whole.prompt_token_ids, 1, whole.arrival_time, to_fetch, whole.priority)
        first.block_hashes = whole.block_hashes
        if self._idle:
            self.now = max(self.now, live.row.arrival_s)
        super().hand(Live(first, live.response_tokens, live.row), abort_at_s)

    def report(self, work: OpenWork, now: float) -> Report:
        """Prompt tokens are the work of this pool."""
        running, waiting = self.scheduler.get_request_counts()
        prompts = sum(own.row.prompt_tokens for own in (*self.live.values(), *self.inbox))
        work_left = (float(prompts),) * len(HORIZONS)
        return Report(now, running, waiting + len(self.inbox), work_left, self.kv_tokens)

    def _end(self, row: RequestRow) -> None:
        whole = self._whole.pop(row.request_id)
        if row.status != "completed" or row.output_tokens >= whole.response_tokens:
            super()._end(row)
            return
        del self.live[row.request_id]
        row.finish_s = None
        whole.request.append_output_token_ids(WORD)
        whole.request.kv_transfer_params = {"do_remote_prefill": True}
        self.decodes.take(whole, self)


class DecodeReplica(PoolReplica):
    pool: DecodePool

    def _end(self, row: RequestRow) -> None:
        self.pool.ended(self, row)
        super()._end(row)


class DecodePool:
    """The decode engines, the router before them, and the ``link`` that KV comes over."""

    def __init__(self, replicas: Sequence[DecodeReplica], router: Router[int], link: KVLink) -> None:
        self._replicas = replicas
        self._router = router
        self._link = link
        self._work = [OpenWork(r.kv_tokens) for r in replicas]
        self._history = past_lengths()
        self._from: dict[str, PrefillReplica] = {}
        for place, replica in enumerate(replicas):
            replica.pool = self
            replica.on_step = partial(self._fetch, place)

    def take(self, live: Live, source: PrefillReplica) -> None:
        request, now = live.request, source.now
        self._from[request.request_id] = source
        for place, (replica, work) in enumerate(zip(self._replicas, self._work, strict=True)):
            self._router.report(place, replica.report(work, now))
        lengths = self._history.distribution(request.max_tokens)
        offer = Offer(request.request_id, request.num_prompt_tokens, lengths)
        place = self._router.choose(offer)
        self._router.sent(offer, place, now)
        self._work[place].opened(offer)
        self._replicas[place].receive(live, now)

    def ended(self, replica: DecodeReplica, row: RequestRow) -> None:
        self._work[self._replicas.index(replica)].ended(row.request_id)
        self._history.record(row.output_tokens)
        del self._from[row.request_id]

    def _fetch(self, place: int, output: Any) -> None:
        """Begin the transfers whose blocks a decode engine has got."""
        target = self._replicas[place]
        loads = target.scheduler.connector.loads
        for name, tokens in loads:
            source = self._from[name]
            start = max(target.now, source.link_free_s, target.link_free_s)
            source.link_free_s = target.link_free_s = start + tokens * self._link.token_s
            end = start + self._link.latency_s + tokens * self._link.token_s
            if tokens:  # else all of it is in the target's prefix cache
                target.transfers(end, name, sent=False)
            source.transfers(end, name, sent=True)
        loads.clear()
