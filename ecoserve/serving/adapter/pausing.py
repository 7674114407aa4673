"""Pausing a decode with its KV kept, and preempting a paused one: how it is done safely in vLLM.

The rules, each with its reason (checked for vLLM 0.32):

(a) A paused request is hidden until nothing of it is in flight: on its return vLLM computes its next input from the
    tokens it has, and an output still under way would be missing.
(b) It never returns in the ``schedule()`` that paused it: the model runner would see it leave and come at once.
(c) Model Runner V2 keeps the slot of every request that it does not know to be gone. A paused one is named in
    ``preempted_req_ids``, which frees the slot (not the KV: that is the scheduler's), and V2 gets it back as new.
(d) vLLM's status for it is PREEMPTED: the one status that ``schedule()`` takes from a waiting queue and sends with all
    its block ids. Its computed tokens stay, so it is found to hold KV and to need one token.
(e) vLLM preempts running requests only, so a paused request is RUNNING for the length of that call.
(f) ``reset_prefix_cache`` must preempt paused requests too, or it cannot succeed.
(g) A streaming session's turn may end while it is paused or preempted. vLLM then queues it anew and afterwards takes
    all stopped requests out of the queues: it is queued again after that.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request, RequestStatus

from ecoserve.serving.adapter.counting import CountingScheduler


class PausingScheduler(CountingScheduler):
    """A counting scheduler that can pause. ``kv_holding_waiting`` must be a queue that sorts by itself."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: request id -> step that paused it; only paused decodes are in here
        self.paused_at: dict[str, int] = {}
        #: sessions whose turn ended while they were in a queue
        self._turned: list[Request] = []

    def pause(self, request: Request) -> None:
        """Take a running decode out of the batch; it waits in the decode queue with its KV."""
        if request.status is not RequestStatus.RUNNING or request.is_prefill_chunk:
            raise ValueError(f"request {request.request_id} is not generating, so it cannot be paused")
        self.running.remove(request)
        request.status = RequestStatus.PREEMPTED
        request.spec_token_ids = []
        self.paused_at[request.request_id] = self.current_step
        self.kv_holding_waiting.add_request(request)
        if self.use_v2_model_runner:
            self.reset_preempted_req_ids.add(request.request_id)
        self.counters.pauses += 1
        if self.on_pause is not None:
            self.on_pause(request.request_id)

    def preempt(self, request: Request, drop_stale_output: bool = False) -> None:
        """Drop the KV of a running or paused request; it waits in the prefill queue and is computed again."""
        if request in self.kv_holding_waiting:
            self.kv_holding_waiting.remove_request(request)
            self.deferred_waiting.discard(request)
            request.status = RequestStatus.RUNNING
        else:
            self.running.remove(request)
        self.paused_at.pop(request.request_id, None)
        self._preempt_request(request, time.monotonic(), drop_stale_output or self.requires_kv_delivery)

    def may_resume(self, request: Request) -> bool:
        """Rules (a) and (b); ``schedule()`` has already advanced ``current_step`` when it asks."""
        paused_at = self.paused_at.get(request.request_id, -1)
        # Output that will be dropped (of a session's last turn) is not waited for.
        dropped = request.num_stale_output_tokens if request.drop_stale_output else 0
        return int(request.num_in_flight_tokens) == dropped and self.current_step > paused_at + 1

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        if reset_running_requests:
            for request in [r for r in self.kv_holding_waiting if r.request_id in self.paused_at]:
                self.preempt(request, drop_stale_output=True)
        return bool(super().reset_prefix_cache(reset_running_requests, reset_connector))

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: Any) -> Any:
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for request in self._turned:
            self._take_out(request)
            if request.request_id in self.requests:
                self._enqueue_waiting_request(request)
        self._turned.clear()
        return outputs

    def _handle_stopped_request(self, request: Request) -> bool:
        queued = request in self.kv_holding_waiting or request in self.waiting
        if queued:
            self._take_out(request)
        finished = bool(super()._handle_stopped_request(request))
        if queued and not finished:
            self._turned.append(request)
        return finished

    def _take_out(self, request: Request) -> None:
        self.paused_at.pop(request.request_id, None)
        self.waiting.remove_requests([request])
        self.kv_holding_waiting.remove_requests([request])

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        out = super()._free_request(request, delay_free_blocks)
        self.paused_at.pop(request.request_id, None)
        return out
