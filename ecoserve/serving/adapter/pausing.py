"""Pausing a decode with its KV kept, and dropping the KV of a paused one: how it is done safely in vLLM.

The rules, each with its reason (checked for vLLM 0.32):

(a) A paused request is hidden until nothing of it is in flight: on its return vLLM computes its next input from the
    tokens it has, and an output still under way would be missing.
(b) It never returns in the ``schedule()`` that paused it: the model runner would see it leave and come at once.
(c) Model Runner V2 keeps the slot of every request it has not been prediction is gone. A paused one is named in
    ``preempted_req_ids``, which frees the slot (not the KV: that is the scheduler's), and V2 gets it back as new.
(d) vLLM's status for it is PREEMPTED: the one status that ``schedule()`` takes from a waiting queue and sends with all
    its block ids. Its computed tokens stay, so it is found to hold KV and to need one token.
(e) Dropping a paused request's KV: vLLM preempts running requests only, so it is RUNNING for the length of the call.
(f) ``reset_prefix_cache`` must drop paused KV too, or it cannot succeed.
(g) While vLLM is paused for new requests, the decode gate is open, or draining would never end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.v1.request import Request, RequestStatus

if TYPE_CHECKING:
    from ecoserve.serving.adapter.scheduler import EcoServeScheduler


def pause(scheduler: EcoServeScheduler, request: Request) -> None:
    """Take a running decode out of the batch; it waits in the decode queue with its KV."""
    if request.status is not RequestStatus.RUNNING or request.is_prefill_chunk:
        raise ValueError(f"request {request.request_id} is not generating, so it cannot be paused")
    scheduler.running.remove(request)
    request.status = RequestStatus.PREEMPTED
    request.spec_token_ids = []
    scheduler.paused_at[request.request_id] = scheduler.current_step
    scheduler.kv_holding_waiting.add_request(request)
    if scheduler.use_v2_model_runner:
        scheduler.reset_preempted_req_ids.add(request.request_id)
    if scheduler.on_pause is not None:
        scheduler.on_pause(request.request_id)


def drop(scheduler: EcoServeScheduler, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
    """Drop the KV of a running or paused request; it waits in the prefill queue and is computed again."""
    if request in scheduler.kv_holding_waiting:
        scheduler.kv_holding_waiting.remove_request(request)
        scheduler.deferred_waiting.discard(request)
        request.status = RequestStatus.RUNNING
    else:
        scheduler.running.remove(request)
    scheduler.paused_at.pop(request.request_id, None)
    scheduler._preempt_request(request, timestamp, drop_stale_output)


def may_resume(scheduler: EcoServeScheduler, request: Request) -> bool:
    """Rules (a) and (b); ``schedule()`` has already advanced ``current_step`` when it asks."""
    paused_at = scheduler.paused_at.get(request.request_id, -1)
    return int(request.num_in_flight_tokens) == 0 and scheduler.current_step > paused_at + 1
