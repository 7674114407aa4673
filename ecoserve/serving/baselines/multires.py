"""``multires``: each time the waiting request whose demand is nearest to what is free, of compute and of KV.

Demand: tokens that its prefill computes, and KV of prompt and predicted response. Free: what is left of the step's
tokens, and free KV. Both as fractions of all there is; the distance is Euclid's. O(n) a pick, O(n^2) a batch. Otherwise
vLLM's own scheduler: KV on demand, the youngest is preempted.

Source: the multi-resource packing that EcoServe (arXiv 2411.06364) compares with.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import FCFSRequestQueue
from vllm.v1.request import Request

from ecoserve.errors import PredictionError
from ecoserve.serving.adapter.counting import CountingScheduler
from ecoserve.serving.adapter.predictions import prediction_of, response_limit


class NearestQueue(FCFSRequestQueue):
    """vLLM's queue with another head: the request of the least ``distance``, the first of equals."""

    def __init__(self, distance: Callable[[Request], float], taken: Callable[[Request], None]) -> None:
        self._distance = distance
        self._taken = taken
        #: the head, the same from when it is looked at until it is taken; vLLM allocates its KV in between
        self.head: Request | None = None

    def peek_request(self) -> Request:
        if self.head is None:
            self.head = min(self, key=self._distance)
        return self.head

    def pop_request(self) -> Request:
        request = self.peek_request()
        self.head = None
        self.remove(request)
        self._taken(request)
        return request


class NearestScheduler(CountingScheduler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting = NearestQueue(self.distance, self._takes)
        #: request id -> tokens of prompt and predicted response; without a prediction, all that it may have
        self._span: dict[str, float] = {}
        #: tokens that are left of the step
        self.free_tokens = 0

    def add_request(self, request: Request) -> None:
        params = request.sampling_params
        try:
            lengths = prediction_of(request.request_id, (params and params.extra_args) or {})
        except PredictionError:
            lengths = None
        limit = response_limit(request, self.max_model_len)
        response = limit if lengths is None else min(limit, lengths.quantile(0.5))
        self._span[request.request_id] = request.num_prompt_tokens + response
        super().add_request(request)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self.waiting.head = None
        started = sum(r.num_tokens_with_spec + r.num_output_placeholders - r.num_computed_tokens for r in self.running)
        self.free_tokens = max(0, self.max_num_scheduled_tokens - started)
        return super().schedule(throttle_prefills)

    def distance(self, request: Request) -> float:
        compute = (request.num_tokens - self.free_tokens) / self.max_num_scheduled_tokens
        kv = (self._span[request.request_id] / self.block_size - self.free_blocks) / self.usable_blocks
        return float(compute**2 + kv**2)

    def _takes(self, request: Request) -> None:
        self.free_tokens = max(0, self.free_tokens - request.num_tokens)

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        self._span.pop(request.request_id, None)
        return super()._free_request(request, delay_free_blocks)
