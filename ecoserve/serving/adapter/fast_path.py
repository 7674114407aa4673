"""The decode-only fast path: a step in which every running request just goes on by one token.

vLLM's ``schedule()`` asks its KV cache manager about every running request in every step, though only one in
``block_size`` of them needs a block. Where nobody can be admitted, preempted or held back, what it returns is known
beforehand; :meth:`FastPath.compose` then builds the same ``SchedulerOutput`` and leaves the scheduler as it would be:

- ``allocate_slots`` is vLLM's own, called in vLLM's order, for the requests that need a block or have filled one that
  the prefix cache is to know; for all others it would do nothing and return nothing.
- The queues are asked as ``schedule()`` asks them, so the gates decide as ever; a visible head that could be admitted
  is left to ``schedule()``.
- What ``schedule()`` drains is drained (new blocks, copies, freed encoder entries), and ``_update_after_schedule``
  is vLLM's own.

Everything else (prefills, a request that has all the tokens it may have under way, too few blocks, draining,
throttled prefills) goes to ``schedule()`` untouched: :meth:`FastPath.compose` changes nothing before it is sure. There
the needless questions are answered in the manager's place (:meth:`FastPath.slots`).

:mod:`~ecoserve.serving.adapter.fast_path_rules` says when it is off altogether.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import CachedRequestData, SchedulerOutput
from vllm.v1.request import Request, RequestStatus

from ecoserve.serving.adapter.fast_path_rules import unknown, unsuited

if TYPE_CHECKING:
    from ecoserve.serving.adapter.scheduler import EcoServeScheduler

_LOG = logging.getLogger(__name__)


class FastPath:
    """The fast path of one scheduler.

    Args:
        scheduler: whose steps these are.
        wanted: the setting.
    """

    def __init__(self, scheduler: EcoServeScheduler, wanted: bool = True) -> None:
        self.s = scheduler
        #: why it is not taken at all; None if it is taken where it can be
        self.off = (unknown() or unsuited(scheduler)) if wanted else "switched off by the setting"
        if wanted and self.off is not None:
            _LOG.warning("EcoServe's decode-only fast path is off: %s. Steps take longer, nothing else.", self.off)
        group = scheduler.kv_cache_manager.coordinator.single_type_managers[0]
        self._blocks_of = group.req_to_blocks
        self._cached = group.num_cached_block
        self._caches = bool(group.enable_caching)
        self._block_size = int(group.block_size)
        self._nothing = scheduler.kv_cache_manager.empty_kv_cache_blocks
        self._allocate = scheduler.kv_cache_manager.allocate_slots
        if self.off is None:
            scheduler.kv_cache_manager.allocate_slots = self.slots

    def compose(self, throttle_prefills: bool) -> SchedulerOutput | None:
        """What ``schedule()`` would return, with everything that it would do done; None, and nothing done, if not sure.

        Called in the place of ``schedule()``, after the pre-pass.
        """
        s = self.s
        running = s.running
        if (
            self.off is not None
            or throttle_prefills
            or not running
            or s._inflight_prefills
            or s._pause_state != PauseState.UNPAUSED
            or len(running) >= min(s.max_num_scheduled_tokens, s.scheduler_config.max_num_batched_tokens)
        ):
            return None
        cached = self._look(running)
        if cached is None:
            return None
        data, needy = cached
        s.current_step += 1  # the queues' rules count this step as begun
        if self._somebody_starts():
            s.current_step -= 1
            return None
        s.kv_cache_manager.new_step_starts()
        for at, request in needy:
            new = self._allocate(request, 1, num_lookahead_tokens=0)
            assert new is not None, "the blocks were counted"
            data.new_block_ids[at] = new.get_block_ids(allow_none=True)
        s.prefill_capacity_bound = s.get_request_counts()[1] > len(s.deferred_waiting)
        return self._output(data)

    def slots(self, request: Request, num_new_tokens: int, *args: Any, **others: Any) -> Any:
        """``allocate_slots`` of the manager; not even asked where a running request has the slot for its next token.

        ``schedule()`` gives a waiting request more arguments than a running one.
        """
        if num_new_tokens == 1 and not args and len(others) == 1 and request.status is RequestStatus.RUNNING:
            name, computed, size = request.request_id, request.num_computed_tokens, self._block_size
            if computed < len(self._blocks_of[name]) * size and not (
                self._caches and min(computed + 1, request.num_tokens) // size > self._cached.get(name, 0)
            ):
                return self._nothing
        return self._allocate(request, num_new_tokens, *args, **others)

    def _look(self, running: list[Request]) -> tuple[CachedRequestData, list[tuple[int, Request]]] | None:
        """The running requests' part of the output, and who needs its slots looked after; None if they differ."""
        step = self.s.current_step + 1
        last = self.s.max_model_len - 1
        size, blocks_of, cached = self._block_size, self._blocks_of, self._cached
        names: list[str] = []
        computed_of: list[int] = []
        outputs_of: list[int] = []
        needy: list[tuple[int, Request]] = []
        missing = 0
        for request in running:
            computed, ahead, tokens = request.num_computed_tokens, request.num_output_placeholders, request.num_tokens
            if (
                tokens + ahead - computed != 1
                or request.is_prefill_chunk
                or computed >= last
                or request.next_decode_eligible_step > step
                or (ahead and computed + 2 - ahead >= request.num_prompt_tokens + request.max_tokens)
                or request.spec_token_ids
            ):
                return None
            name = request.request_id
            if computed >= len(blocks_of[name]) * size:
                needy.append((len(names), request))
                missing += 1
            elif self._caches and tokens // size > cached.get(name, 0):
                needy.append((len(names), request))
            names.append(name)
            computed_of.append(computed)
            outputs_of.append(request.num_output_tokens + ahead)
        if missing > self.s.free_blocks:
            return None
        data = CachedRequestData(
            req_ids=names,
            resumed_req_ids=set(),
            new_token_ids=[],
            all_token_ids={},
            new_block_ids=[None] * len(names),
            num_computed_tokens=computed_of,
            num_output_tokens=outputs_of,
        )
        return data, needy

    def _somebody_starts(self) -> bool:
        """Whether ``schedule()`` would look at a waiting request; the queues are asked in its order."""
        s = self.s
        visible = bool(s.kv_holding_waiting) or bool(s.waiting)
        return visible and len(s.running) + s.num_waiting_for_streaming_input < s.max_num_active_reqs

    def _output(self, data: CachedRequestData) -> SchedulerOutput:
        s = self.s
        scheduled = dict.fromkeys(data.req_ids, 1)
        if not s.use_v2_model_runner:
            before = s.prev_step_scheduled_req_ids
            if not scheduled.keys() <= before:
                for request in s.running:
                    if request.request_id not in before:
                        data.all_token_ids[request.request_id] = request.all_token_ids.copy()
            before.clear()
            before.update(scheduled)
        manager, encoder = s.kv_cache_manager, s.encoder_cache_manager
        manager.take_boundary_state_offloads()
        copies, retained = manager.take_kv_cache_block_copies()
        if copies:
            s._free_cow_retained_blocks(retained, s.sched_step_seq + 1)
        output = SchedulerOutput(
            scheduled_new_reqs=[],
            scheduled_cached_reqs=data,
            num_scheduled_tokens=scheduled,
            total_num_scheduled_tokens=len(scheduled),
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
            preempted_req_ids=s.reset_preempted_req_ids,
            finished_req_ids=s.finished_req_ids,
            free_encoder_mm_hashes=encoder.get_freed_mm_hashes(),
            new_block_ids_to_zero=s._get_new_block_ids_to_zero(),
            kv_cache_block_copies=copies or None,
            ec_manager_metadata=encoder.get_manager_metadata(),
        )
        s._update_after_schedule(output)
        return output
