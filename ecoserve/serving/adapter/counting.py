"""Counting, without changing any decision: the same for vLLM's own scheduler and for ours.

Recomputed tokens are those scheduled again below the point that a request had reached when its KV was dropped; tokens
that the prefix cache gives back are not computed again and do not count.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from ecoserve.serving.core.counters import Counters, Gauges


class CountingScheduler(AsyncScheduler):
    """vLLM's scheduler with :class:`Counters` and :class:`Gauges`; the ``vllm`` rows of every comparison."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counters = Counters()
        #: request id -> times its KV was dropped; finished requests stay until they are taken
        self.preemptions_of: dict[str, int] = {}
        #: called with the id of a request that is paused
        self.on_pause: Callable[[str], None] | None = None
        self._reached: dict[str, int] = {}

    @property
    def usable_blocks(self) -> int:
        """Blocks that requests can use (one is vLLM's null block)."""
        return int(self.kv_cache_manager.block_pool.num_gpu_blocks) - 1

    @property
    def free_blocks(self) -> int:
        """Free blocks, those with cached content that may be evicted included."""
        return int(self.kv_cache_manager.block_pool.get_num_free_blocks())

    def gauges(self) -> Gauges:
        return Gauges(
            usable_blocks=self.usable_blocks,
            held_blocks=self.usable_blocks - self.free_blocks,
            running=len(self.running),
            waiting_prompts=len(self.waiting),
            waiting_generations=len(self.kv_holding_waiting),
        )

    # What AsyncScheduler adds counts tokens under way. vLLM gives a synchronous engine the class without it, so these
    # two do as well: with drafts or pipeline stages it matters.

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        if self.scheduler_config.async_scheduling:
            super()._update_after_schedule(scheduler_output)
        else:
            super(AsyncScheduler, self)._update_after_schedule(scheduler_output)

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        out: tuple[list[int], bool]
        if self.scheduler_config.async_scheduling:
            out = super()._update_request_with_output(request, new_token_ids, is_stale)
        else:
            out = super(AsyncScheduler, self)._update_request_with_output(request, new_token_ids, is_stale)
        return out

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        reached = request.num_computed_tokens
        super()._preempt_request(request, timestamp, drop_stale_output)
        name = request.request_id
        self.counters.preemptions += 1
        self.preemptions_of[name] = self.preemptions_of.get(name, 0) + 1
        self._reached[name] = max(reached, self._reached.get(name, 0))

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        output = super().schedule(throttle_prefills)
        self.counters.steps += 1
        if self._reached:
            for name in [n for n in self._reached if n in output.num_scheduled_tokens]:
                request = self.requests[name]
                end = request.num_computed_tokens
                start = end - output.num_scheduled_tokens[name]
                reached = self._reached[name]
                self.counters.recomputed_tokens += max(0, min(end, reached) - start)
                if end >= reached:
                    del self._reached[name]
        return output

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        out = super()._free_request(request, delay_free_blocks)
        self._reached.pop(request.request_id, None)
        self.preemptions_of.pop(request.request_id, None)
        self.counters.finished += 1
        return out
