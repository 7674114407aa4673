"""How long one step takes, in virtual seconds, as a function of its work alone; and the peak KV demand of a load."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ecoserve.serving.workload import LoadRequest


@dataclass(slots=True)
class StepWork:
    """What one step computes.

    Attributes:
        prefill_tokens: prompt tokens, over all chunks.
        decodes: requests that generate their next token.
        context_tokens: tokens of KV that the step's attention reads, over all requests, the new ones included.
        chunks: (new tokens, tokens of context before them) of each piece of a prompt; recomputed tokens are prompt
            tokens, tokens that the prefix cache gave back are context.
        decode_context_tokens: the decodes' part of ``context_tokens``.
        decode_longest_tokens: that of the decode with the longest context.
    """

    prefill_tokens: int = 0
    decodes: int = 0
    context_tokens: int = 0
    chunks: list[tuple[int, int]] = field(default_factory=list)
    decode_context_tokens: int = 0
    decode_longest_tokens: int = 0

    @property
    def requests(self) -> int:
        return self.decodes + len(self.chunks)


class StepCost(Protocol):
    """A model of the machine: the work of one step to seconds."""

    def seconds(self, work: StepWork) -> float:
        """Seconds of the GPU, with the gap to the next step that remains even if the host is ahead."""

    def host_s(self, work: StepWork) -> float:
        """Seconds the host needs to schedule the step, prepare its inputs, launch it and take its output."""

    def launch_s(self, work: StepWork) -> float: ...


class LinearCost(BaseModel):
    """A step cost that is linear in its work, the host's time included.

    The defaults are of the size of a 13B model on one A100-class GPU; they are a stand-in to test scheduling with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    step_s: float = Field(0.013, ge=0, description="seconds of any step")
    prefill_token_s: float = Field(1.04e-4, ge=0, description="seconds a prompt token")
    decode_s: float = Field(0.0, ge=0, description="seconds a decoding request")
    context_token_s: float = Field(4e-7, ge=0, description="seconds a token of KV read")

    def seconds(self, work: StepWork) -> float:
        return (
            self.step_s
            + self.prefill_token_s * work.prefill_tokens
            + self.decode_s * work.decodes
            + self.context_token_s * work.context_tokens
        )

    def host_s(self, work: StepWork) -> float:
        return 0.0

    def launch_s(self, work: StepWork) -> float:
        return 0.0


class NoHost:
    """A step cost without the host's time."""

    def __init__(self, cost: StepCost) -> None:
        self.seconds = cost.seconds

    def host_s(self, work: StepWork) -> float:
        return 0.0

    launch_s = host_s


@dataclass(frozen=True, slots=True)
class Slower:
    """A machine whose every second takes ``factor`` seconds."""

    cost: StepCost
    factor: float

    def seconds(self, work: StepWork) -> float:
        return self.factor * self.cost.seconds(work)

    def host_s(self, work: StepWork) -> float:
        return self.factor * self.cost.host_s(work)

    def launch_s(self, work: StepWork) -> float:
        return self.factor * self.cost.launch_s(work)


def alone_s(cost: StepCost, prompt_tokens: int, response_tokens: int, depth: int, max_tokens_a_step: int) -> float:
    """Seconds from arrival to last token on an engine that has nothing else to do, ``depth`` steps in flight."""
    if isinstance(cost, LinearCost):
        context = prompt_tokens + response_tokens / 2
        each = cost.step_s + cost.decode_s + cost.context_token_s * context
        return response_tokens * each + cost.prefill_token_s * prompt_tokens
    total = 0.0
    for before in range(0, prompt_tokens, max_tokens_a_step):
        new = min(max_tokens_a_step, prompt_tokens - before)
        work = StepWork(new, 0, before + new, [(new, before)])
        total += cost.seconds(work) + cost.host_s(work)
    context = prompt_tokens + response_tokens // 2
    work = StepWork(0, 1, context, [], context, context)
    gpu, host = cost.seconds(work), cost.host_s(work)
    return total + (response_tokens - 1) * (gpu + host if depth == 1 else max(gpu, host))


def demand_peak(
    load: Sequence[LoadRequest], cost: StepCost, depth: int, block_size: int, max_num_batched_tokens: int
) -> int:
    """Peak KV, in blocks, that a load would hold if no request had to wait: what *pressure* is measured against.

    The reference is vLLM's own scheduler (chunked prefill, first come first served) with room for all: there it
    has nothing to decide, so its steps are counted here without it; a test compares the two. Prompts are taken to share
    nothing. ``depth`` 1: a step's period is host + GPU; 2: the longer of the two.
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
