"""EcoServeScheduler: vLLM's scheduler with predicted response lengths.

vLLM's own ``schedule()`` composes every batch. This class translates between it and the
:class:`~ecoserve.serving.core.planner.Planner`, which decides: vLLM's state into a ``Snapshot``, the ``StepPlan`` into
pauses and preemptions before ``schedule()``, and admission into the two queues that ``schedule()`` reads.

Given to vLLM by ``--scheduler-cls ecoserve.serving.adapter.scheduler.EcoServeScheduler``; its settings come from
``--additional-config '{"ecoserve": {...}}'``.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request, RequestStatus

from ecoserve.errors import ConfigError
from ecoserve.serving.adapter.event_log import EventLog
from ecoserve.serving.adapter.kv_layout import KVLayout
from ecoserve.serving.adapter.level_file import RunLevel
from ecoserve.serving.adapter.metrics import MULTIPROC_DIR, MetricsPublisher, Queue
from ecoserve.serving.adapter.pausing import PausingScheduler
from ecoserve.serving.adapter.policies import refuse_unsupported
from ecoserve.serving.adapter.predictions import response_limit, span_limit, task_of
from ecoserve.serving.adapter.queues import GatedQueue
from ecoserve.serving.core.counters import Gauges, Recorder, UnderpredictionAction
from ecoserve.serving.core.planner import Planner, Snapshot, StepPlan
from ecoserve.serving.core.settings import Level, SchedulerSettings
from ecoserve.serving.core.step_time import StepLoad
from ecoserve.serving.core.tasks import Task, TaskState

#: A difference of the clocks that has moved by more than this many seconds is a wall clock that was set.
_SET_S = 0.25


#: Statuses of a response that has ended by itself or at its limit.
ENDED = (RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_REPETITION)


def _may_have_reached_stop_string(request: Request) -> bool:
    """Whether an aborted response has presumably ended.

    Stop strings are found by the API server, which then aborts the request: the engine cannot tell that from a client
    that has left. Requests with stop strings end by them far more often than their clients leave.
    """
    aborted = request.status is RequestStatus.FINISHED_ABORTED and request.num_output_tokens > 0
    return aborted and request.sampling_params is not None and bool(request.sampling_params.stop)


class EngineClock:
    """The clock of a real engine: arrivals and deadlines on one monotonic time line.

    A request's ``arrival_time`` is the API server's wall clock, which may be set. It is converted once, by the
    difference of the two clocks; that is kept as long as the wall clock was not set, so that equal arrivals stay equal.
    """

    def __init__(self) -> None:
        self._ahead = time.time() - time.monotonic()

    def now(self) -> float:
        return time.monotonic()

    def arrival(self, arrival_time: float) -> float:
        """Never in the future, whatever the wall clock says."""
        now = time.monotonic()
        ahead = time.time() - now
        if abs(ahead - self._ahead) > _SET_S:
            self._ahead = ahead
        return min(now, arrival_time - self._ahead)


class PrivateBlocks(dict[str, int]):
    """Request id -> blocks that come free if it is preempted (held by no other request), counted when asked for."""

    def __init__(self, count: Callable[[str], int]) -> None:
        super().__init__()
        self._count = count

    def __missing__(self, name: str) -> int:
        self[name] = self._count(name)
        return self[name]


class EcoServeScheduler(PausingScheduler):
    """A vLLM scheduler with prefill and decode queues, KV policies, and pausing with the KV kept.

    Raises:
        ConfigError: at construction, for a setting that is wrong or a feature that is not supported.
    """

    max_num_scheduled_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        refuse_unsupported(self.vllm_config, self.kv_cache_config)
        self.settings = SchedulerSettings.from_config(self.vllm_config.additional_config)
        if self.settings.target_forward_tokens is not None and not self.scheduler_config.enable_chunked_prefill:
            raise ConfigError(
                "a forward can be filled up to a target only with chunked prefill",
                where="ecoserve scheduler setting target_forward_tokens",
                fix="enable chunked prefill, or leave the setting out",
            )
        path = self.settings.event_log
        if path is not None and (rank := self.parallel_config.data_parallel_index):
            path = path.with_stem(f"{path.stem}-rank{rank}")
        self.event_log = EventLog(path, self.settings.event_log_mb) if path is not None else None
        self.kv_layout = KVLayout(
            self.vllm_config, self.kv_cache_config, self.kv_cache_manager.coordinator.single_type_managers
        )
        self.planner = Planner(
            self.settings,
            usable_blocks=self.usable_blocks,
            kv_use=self.kv_layout.kv_use,
            max_model_len=self.max_model_len,
            max_step_tokens=self.max_num_scheduled_tokens,
            chunked_prefill=self.scheduler_config.enable_chunked_prefill,
            stages=self.parallel_config.pipeline_parallel_size,
            counters=self.counters,
            recorder=Recorder(self.counters, self._event_state, self.event_log),
        )
        #: a virtual loop puts its own in its place, with the same two methods
        self.clock: Any = EngineClock()
        #: the request that was popped last, its queue, and what to do once vLLM has started it
        self._popped: tuple[Request, Queue, Callable[[], None]] | None = None
        #: whether decodes may ask for other than one token a step
        self._uneven = bool(self.num_spec_tokens) or self.use_pp
        #: whether vLLM composes a batch now
        self._composing = False
        #: LoRA adapters of the requests that run
        self._adapters: set[int] = set()
        #: vLLM's own most tokens of a forward
        self._most_step_tokens = self.max_num_scheduled_tokens
        self._run_level = RunLevel(self.settings.level)
        #: whether level full would hold the head of the prefill queue back
        self._would_hold = False
        #: steps whose output is to come: vLLM's, when they were scheduled, what they compute
        self._under_way: deque[tuple[SchedulerOutput, float, StepLoad]] = deque()
        self._last_output_s = 0.0
        self._publisher: MetricsPublisher | None = None
        if self.log_stats and os.environ.get(MULTIPROC_DIR):
            self._publisher = MetricsPublisher(
                engine=self.parallel_config.data_parallel_index,
                model_name=str(self.vllm_config.model_config.served_model_name),
                settings=self.settings,
            )
        self.waiting = GatedQueue(
            key=lambda r: self.planner.prefill_key(self.task(r)),
            gate=self._prefill_gate,
            eligible=lambda r: not r.num_stale_output_tokens or r.drop_stale_output,
            blocked=self.is_blocked,
            taken=self._prefill_taken,
            moves=lambda: self.planner.ordering.moves,
            lane=self._adapter,
            is_open=self._adapter_fits,
            arrival=self._arrival,
            by_arrival=lambda: self.level == "shadow",
        )
        self.kv_holding_waiting = GatedQueue(
            key=lambda r: self.planner.decode_key(self.task(r)),
            gate=self._decode_gate,
            eligible=self.may_resume,
            blocked=self.is_blocked,
            taken=self._decode_taken,
            moves=lambda: self.planner.ordering.moves or self.planner.groups is not None,
            lane=self._adapter,
            is_open=self._adapter_fits,
            arrival=self._arrival,
            by_arrival=lambda: self.level == "shadow",
        )
        if self._publisher is not None:
            self._publisher.publish(self.counters, self.gauges())

    @property
    def level(self) -> Level:
        return self._run_level.current

    def task(self, request: Request) -> Task:
        return self.planner.ledger.tasks[request.request_id]

    def is_blocked(self, request: Request) -> bool:
        """Whether vLLM waits for something outside (a grammar, a streaming client) before it can go on."""
        return bool(self._is_blocked_waiting_status(request.status))

    # -- a step ------------------------------------------------------------------------------------------

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        planner = self.planner
        planner.begin_step(self.clock.now(), busy=bool(self.running))
        if planner.refresh_lengths():
            self.waiting.rekey()
            self.kv_holding_waiting.rekey()
        self._run_level.look()
        if self.level == "full":
            self._carry_out(planner.plan_step(self.snapshot()))
        else:
            planner.watch_step(self.snapshot())
            self.max_num_scheduled_tokens = self._most_step_tokens
        if not self.running and len(self.kv_holding_waiting):
            self._make_room()
        planner.begin_admission(self.current_step, self.free_blocks, self.paused_at)
        self._adapters = {self._adapter(r) for r in self.running} - {0} if self.lora_config else set()
        self.waiting.new_step()
        self.kv_holding_waiting.new_step()
        if self.level == "full":
            self._decodes_first()
        self._composing = True
        output = super().schedule(throttle_prefills)
        self._composing = False
        self._settle()
        self._note_step(output)
        for name in [n for n in self.paused_at if n in output.num_scheduled_tokens]:
            del self.paused_at[name]
            self.counters.resumes += 1
            planner.recorder.note("resumed", planner.ledger.tasks[name])
        if self.settings.check_every_step:
            self.check()
        return output

    def snapshot(self) -> Snapshot:
        """vLLM's state for the planner; the tasks' own values are brought up to date."""
        running = [self._updated(request) for request in self.running]
        holding = [self._updated(request) for request in self.kv_holding_waiting]
        self._count_shared(running, holding)
        return Snapshot(
            step=self.current_step,
            free_blocks=self.free_blocks,
            coming_blocks=sum(len(blocks) for _, blocks in self.deferred_frees),
            running=running,
            holding=holding,
            paused_at=self.paused_at,
            private_blocks=PrivateBlocks(self.kv_layout.private_blocks),
            places=self._places(),
            admitting=self.admitting,
        )

    def _count_shared(self, *holders: list[Task]) -> None:
        """Blocks that requests share, counted only where there are any."""
        tasks = [t for part in holders for t in part]
        sharing = self.cache_config.enable_prefix_caching and sum(t.blocks for t in tasks) > (
            self.usable_blocks - self.free_blocks
        )
        for task in tasks:
            if sharing:
                self.kv_layout.count_shared(task)
            else:
                task.shared_blocks = task.passing_shared = 0

    def _look_up(self, task: Task, request: Request) -> None:
        """What the prefix cache has of a waiting request's prompt; blocks that others hold cost it nothing."""
        task.settled = task.shared_blocks = task.passing_shared = 0
        if not self.kv_cache_manager.prefix_cache_lookup_enabled(request):
            return
        if not self.kv_layout.kv_use.lasting or len(self.kv_layout.managers) > 1:
            hit, task.settled, _ = self.kv_cache_manager.coordinator.find_longest_cache_hit(
                request.block_hashes, request.num_tokens - 1
            )
            task.shared_blocks = self.kv_layout.held_by_others(hit)
            return
        pool, hashes = (
            self.kv_cache_manager.block_pool,
            request.block_hashes[: (request.num_tokens - 1) // self.block_size],
        )

        def free(block_hash: Any) -> bool:
            cached = pool.get_cached_block(block_hash, [0])
            return cached is None or cached[0].ref_cnt == 0

        task.shared_blocks = bisect_left(hashes, True, key=free)

    def _decodes_first(self) -> None:
        """vLLM shares out a step's tokens in this order: a prompt's chunk must not take those of resumed decodes."""
        if any(r.is_prefill_chunk for r in self.running):
            self.running.sort(key=lambda r: bool(r.is_prefill_chunk))

    def _note_step(self, output: SchedulerOutput) -> None:
        """Keep what the step computes, until its output is there."""
        if not output.total_num_scheduled_tokens:
            return
        drafts = output.scheduled_spec_decode_tokens
        prompt_tokens = decodes = kv_tokens = 0
        pairs = 0.0
        for name, tokens in output.num_scheduled_tokens.items():
            computed = self.requests[name].num_computed_tokens
            if tokens > 1 and name not in drafts:
                prompt_tokens += tokens
                pairs += tokens * (computed - tokens / 2)
            else:
                decodes += tokens
                kv_tokens += computed
        self._under_way.append((output, self.clock.now(), StepLoad(prompt_tokens, decodes, kv_tokens, pairs)))

    def _learn_step(self, output: SchedulerOutput) -> None:
        """A step's output is there; an empty step's was not noted, and outputs that got lost are passed over."""
        while output.total_num_scheduled_tokens and self._under_way:
            step, scheduled_s, load = self._under_way.popleft()
            if step is output:
                now = self.clock.now()
                self.planner.forward_size.step_time.learn(load, now - max(scheduled_s, self._last_output_s))
                self._last_output_s = now
                return

    def _learn_drafts(self, scheduler_output: SchedulerOutput, model_runner_output: Any) -> None:
        """How many tokens decodes give a step: those without a draft count, too."""
        index, sampled = model_runner_output.req_id_to_index, model_runner_output.sampled_token_ids
        drafts = scheduler_output.scheduled_spec_decode_tokens
        turns = [n for n, tokens in scheduler_output.num_scheduled_tokens.items() if tokens == 1 or n in drafts]
        tokens = [len(sampled[index[n]]) for n in turns if n in index] if sampled else []
        given = [n for n in tokens if n]
        if given:
            self.planner.pace.turns(len(given), sum(given))

    def _updated(self, request: Request) -> Task:
        task = self.planner.ledger.tasks[request.request_id]
        task.written = computed = request.num_computed_tokens
        task.settled = computed - request.num_in_flight_tokens
        task.generated = request.num_output_tokens
        self.kv_layout.update(task)
        task.state = self._state(request)
        if task.state is TaskState.PREFILL:
            task.known_tokens = request.num_tokens + request.num_output_placeholders
        elif self._uneven and task.state is TaskState.DECODE:
            asks = request.num_tokens_with_spec + request.num_output_placeholders - computed
            task.asks = int(asks) if self.current_step + 1 >= request.next_decode_eligible_step else 0
        return task

    def _state(self, request: Request) -> TaskState:
        """Where vLLM has a request that is in no prefill queue; one whose KV a connector loads is being prefilled."""
        if request.status is RequestStatus.RUNNING:
            return TaskState.PREFILL if request.is_prefill_chunk else TaskState.DECODE
        return TaskState.PREFILL if request in self._inflight_prefills else TaskState.PAUSED

    def _carry_out(self, plan: StepPlan) -> None:
        if plan.token_budget is not None:
            self.max_num_scheduled_tokens = plan.token_budget
        for name in plan.pause:
            self.pause(self.requests[name])
        for name in plan.preempt:
            if plan.until_free is not None and self.free_blocks >= plan.until_free:
                break
            request = self.requests[name]
            self.planner.recorder.action(UnderpredictionAction.RECOMPUTED, self.task(request))
            self.counters.shortage_preemptions += 1
            self.preempt(request)

    def _make_room(self) -> None:
        """Nothing runs: the first request that holds KV and may go on must be able to."""
        ready = [r for r in self.kv_holding_waiting if not self.is_blocked(r)]
        if not any(r.num_in_flight_tokens for r in ready):
            tasks = [self._updated(r) for r in ready]
            self._carry_out(self.planner.make_room(tasks, self.paused_at, self.current_step))

    # -- the queues ----------------------------------------------------------------------------------------

    def _places(self) -> int:
        """Requests that vLLM lets run at a time: sessions between two turns keep their place."""
        return int(self.max_num_active_reqs) - int(self.num_waiting_for_streaming_input)

    def _full(self) -> bool:
        return len(self.running) >= self._places()

    def _prefill_gate(self, request: Request) -> bool:
        """Whether the head of the prefill queue may start; always when nothing runs and no decode is paused."""
        self._settle()
        if self._full():
            return False
        task = self.task(request)
        if task.generated != request.num_output_tokens:
            self.planner.on_late_output(task, request.num_output_tokens)
        self._look_up(task, request)
        idle = not self.running and not any(r.request_id in self.paused_at for r in self.kv_holding_waiting)
        fits = idle or self.level == "order" or self.planner.admits_prompt(task)
        self._would_hold = not fits
        return fits or self.level == "shadow"

    def _prefill_taken(self, request: Request) -> None:
        self._settle()
        task = self.task(request)
        forced = self.level == "full" and not self.running and not self.planner.kv_policy.admits_prompt(task)
        if self.level == "shadow":
            self.counters.shadow_held += self._would_hold
            self.counters.shadow_reordered += self.waiting.overtaken(request)
        self._popped = (request, "prefill", partial(self.planner.on_prompt_admitted, task, forced))

    def _decode_gate(self, request: Request) -> bool:
        """Whether the head of the decode queue may go on; always when nothing runs, or draining would never end."""
        self._settle()
        if self._full():
            return False
        if not (self.admitting and self.running and request.request_id in self.paused_at and self.level == "full"):
            return True
        return self.planner.admits_decode(self.task(request))

    def _decode_taken(self, request: Request) -> None:
        self._settle()
        self._popped = (
            request,
            "decode",
            lambda: self.planner.on_decode_admitted(self.task(request), self.current_step),
        )

    def _arrival(self, request: Request) -> tuple[float, float, str]:
        """vLLM's own order: as requests came, or by client priority first."""
        if self.scheduler_config.policy == "priority":
            return float(request.priority), request.arrival_time, request.request_id
        return 0.0, float(self.task(request).number), ""

    def _adapter(self, request: Request) -> int:
        return int(request.lora_request.lora_int_id) if self.lora_config and request.lora_request else 0

    def _adapter_fits(self, adapter: int) -> bool:
        """Whether vLLM has a place for this LoRA adapter (0: none) beside those of the requests that run."""
        if not adapter:
            return True
        self._settle()
        return adapter in self._adapters or len(self._adapters) < self.lora_config.max_loras

    def _settle(self) -> None:
        """Count the request that was popped last, unless vLLM has skipped it (LoRA): then it is put back as it was.

        A connector's asynchronous load is a start, too: the blocks are taken.
        """
        popped, self._popped = self._popped, None
        started = (RequestStatus.RUNNING, RequestStatus.WAITING_FOR_REMOTE_KVS)
        if popped is not None and popped[0].status in started:
            popped[2]()
            if self._publisher is not None:
                self._publisher.observe_wait(popped[1], self.clock.now() - self.task(popped[0]).waits_since_s)
            if adapter := self._adapter(popped[0]):
                self._adapters.add(adapter)

    # -- vLLM's life of a request ------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        if request.request_id not in self.requests:
            task = task_of(request, self.max_model_len, self.planner.history, self.counters)
            now = self.clock.now()
            task.set_arrival(self.clock.arrival(request.arrival_time))
            self.planner.on_arrival(task, now)
        super().add_request(request)

    def _update_request_as_session(self, session: Request, update: Any) -> None:
        super()._update_request_as_session(session, update)
        task = self.task(session)
        task.prompt_tokens = session.num_prompt_tokens
        task.limit = response_limit(session, self.max_model_len)
        task.most_tokens = span_limit(session, self.max_model_len)
        self.planner.on_new_turn(task)

    def _handle_stopped_request(self, request: Request) -> bool:
        if request.resumable:
            task = self.task(request)
            task.generated = request.num_output_tokens
            self.planner.on_turn_end(task)
        return super()._handle_stopped_request(request)

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        # A request that is ready only now has not been through the gate: it takes its place in the order first; unless
        # a connector has loaded its KV, for which it has been let in.
        was_blocked = self.is_blocked(request)
        ready = bool(super()._handle_blocked_waiting_request(request))
        return ready and (not was_blocked or self._holds_kv_blocks(request))

    def pause(self, request: Request) -> None:
        super().pause(request)
        self.planner.on_pause(self.task(request))

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        # The task waits for its prefill again before vLLM puts the request back into the prefill queue.
        self.planner.on_preempt(self.task(request))
        super()._preempt_request(request, timestamp, drop_stale_output)

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: Any) -> Any:
        self._learn_step(scheduler_output)
        if self.num_spec_tokens:
            self._learn_drafts(scheduler_output, model_runner_output)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        attainment = self.planner.attainment
        for name in attainment.awaits(scheduler_output.num_scheduled_tokens):
            if name in self.requests and self.requests[name].num_output_tokens:
                attainment.first_token(name, self.clock.now())
        if self.event_log is not None and not self.running:
            self.event_log.flush()
        if self._publisher is not None and (self._publisher.due() or not self.requests):
            self._publisher.publish(self.counters, self.gauges())
        return outputs

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        out = super()._free_request(request, delay_free_blocks)
        task = self.task(request)
        task.generated = request.num_output_tokens
        completed = request.status in ENDED or _may_have_reached_stop_string(request)
        self.planner.on_finish(task, self.current_step, self.clock.now(), completed)
        if completed and self._publisher is not None and task.predicted:
            self._publisher.observe_error(task.predicted_median, task.generated)
        return out

    def _request_blocks_can_be_freed(self, request: Request) -> bool:
        # vLLM asks before it preempts by itself: it waits while blocks of our preemptions are still to come.
        waits = self._composing and bool(self.deferred_frees)
        return not waits and bool(super()._request_blocks_can_be_freed(request))

    # -- what others read ----------------------------------------------------------------------------------

    @property
    def admitting(self) -> bool:
        """False while vLLM itself is paused (draining, sleeping)."""
        return bool(self._pause_state == PauseState.UNPAUSED)

    def gauges(self) -> Gauges:
        out = super().gauges()
        self.planner.show(out)
        return out

    def _event_state(self, task: Task) -> tuple[float, int, int, int]:
        return self.planner.now, self.current_step, self.kv_layout.held(task.request_id), self.free_blocks

    def check(self) -> None:
        """Recount the ledger from vLLM's own lists; raises :class:`LedgerError` with the equation that failed."""
        self.planner.observe(self.snapshot())
        waiting = {r.request_id for r in self.waiting}
        states = {
            name: TaskState.WAITING if name in waiting else self._state(request)
            for name, request in self.requests.items()
            if not request.is_finished()
        }
        blocks_of = self.kv_layout.ids()
        # Blocks that wait for a step under way, and those of finished requests that a connector still reads.
        leaving = {b.block_id for _, blocks in self.deferred_frees for b in blocks}
        for name in [n for n in blocks_of if n in self.requests and n not in states]:
            leaving.update(blocks_of.pop(name))
        self.planner.ledger.check(blocks_of, leaving, self.free_blocks, states)
