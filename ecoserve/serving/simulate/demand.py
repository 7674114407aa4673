"""How much KV a load would hold at its peak if no request had to wait: what *pressure* is measured against.

The reference is vLLM's own scheduler (chunked prefill, first come first served, one token a step for each running
request) on an engine with room for all requests. There it has nothing to decide, so its steps are counted here without
it, some hundred times faster; a test compares the two. Prompts are taken to share nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from ecoserve.serving.simulate.cost import StepCost, StepWork
from ecoserve.serving.workload import LoadRequest


def demand_peak(
    load: Sequence[LoadRequest], cost: StepCost, depth: int, block_size: int, max_num_batched_tokens: int
) -> int:
    """Peak KV demand of a load on one engine, in blocks.

    Args:
        load: the requests, with their true lengths.
        cost: seconds of a step.
        depth: 1: a step's period is host + GPU; 2: the longer of the two.
        block_size: tokens a block.
        max_num_batched_tokens: tokens a step.
    """
    pending = deque(sorted(load, key=lambda r: r.arrival_s))
    waiting: deque[LoadRequest] = deque()
    partial: tuple[LoadRequest, int] | None = None
    written = np.zeros(0, dtype=np.int64)
    left = np.zeros(0, dtype=np.int64)
    now = 0.0
    peak = 0
    while pending or waiting or partial or len(written):
        if not (waiting or partial or len(written)):
            now = max(now, pending[0].arrival_s)
        while pending and pending[0].arrival_s <= now:
            waiting.append(pending.popleft())
        decoding = min(len(written), max_num_batched_tokens)
        budget = max_num_batched_tokens - decoding
        written[:decoding] += 1
        left[:decoding] -= 1
        context = int(written[:decoding].sum())
        work = StepWork(0, decoding, context, [], context, int(written[:decoding].max(initial=0)))
        done: list[LoadRequest] = []
        held = 0
        while budget and (partial or waiting):
            request, before = partial or (waiting.popleft(), 0)
            new = min(budget, request.prompt_tokens - before)
            budget -= new
            work.prefill_tokens += new
            work.context_tokens += before + new
            work.chunks.append((new, before))
            partial = None
            if before + new < request.prompt_tokens:
                partial = (request, before + new)
            else:
                done.append(request)
        if partial:
            held += -(-partial[1] // block_size)
        held += sum(-(-r.prompt_tokens // block_size) for r in done)
        peak = max(peak, held + int(np.sum(-(-written // block_size))))
        gpu, host = cost.seconds(work), cost.host_s(work)
        now += gpu + host if depth == 1 else max(gpu, host)
        alive = left > 0
        if done or not alive.all():
            fresh = [(r.prompt_tokens, r.response_tokens - 1) for r in done if r.response_tokens > 1]
            written = np.concatenate((written[alive], np.array([w for w, _ in fresh], dtype=np.int64)))
            left = np.concatenate((left[alive], np.array([n for _, n in fresh], dtype=np.int64)))
    return peak
