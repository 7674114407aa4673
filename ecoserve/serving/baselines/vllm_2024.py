"""``vllm-2024``: vLLM's scheduler as it was in 2024, the opponent in the paper's tables.

A forward has whole prompts or decodes, never both: as long as the first waiting prompt fits, a forward is made of
prompts, and all decodes stall. Otherwise every decode goes on. KV on demand, first come, first served; the youngest is
preempted and computed again; a prompt starts only if 1 % of the blocks stay free.

Source: vLLM 0.2 to 0.6, ``_schedule_default``. Its swapping was for parallel sampling only. Host times and kernels are
today's, so that only the scheduler differs.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput

from ecoserve.serving.adapter.counting import CountingScheduler


class WholePromptScheduler(CountingScheduler):
    """vLLM's own scheduler, chunked prefill off, with prompts and decodes in forwards of their own.

    With prefix caching, a prompt that fits only for its cached part may share a forward with decodes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: whether decodes stalled in the last step and no prompt started: vLLM had reasons that are not looked at here
        self._in_vain = False

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        stalls = not self._in_vain and self._prompt_fits()
        if stalls:
            for request in self.running:
                # vLLM's own way to leave a decode out of one step, the next.
                request.next_decode_eligible_step = self.current_step + 2
        output = super().schedule(throttle_prefills)
        self._in_vain = stalls and not output.total_num_scheduled_tokens
        return output

    def _prompt_fits(self) -> bool:
        """Whether vLLM will start the first waiting prompt in this step."""
        if self._pause_state != PauseState.UNPAUSED or len(self.running) >= self.max_num_active_reqs:
            return False
        head: Any = self.waiting.peek_request() if self.waiting else None
        if head is None or self._is_blocked_waiting_status(head.status) or head.num_stale_output_tokens:
            return False
        blocks = -(-head.num_tokens // self.block_size)
        watermark = self.kv_cache_manager.watermark_blocks if self.running else 0
        return bool(blocks + watermark <= self.free_blocks)
