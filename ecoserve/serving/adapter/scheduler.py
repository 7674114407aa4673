"""EcoServeScheduler: vLLM's scheduler, told how long answers will be.

vLLM's own ``schedule()`` composes every batch. We decide around it:

- *before*: :class:`~ecoserve.serving.adapter.prepass.PrePass` brings the ledger up to date, moves finished prefills
  through the decode gate, walks the under-prediction ladder, and relieves a shortage of blocks before vLLM would have
  to.
- *inside*: the two queues (:mod:`~ecoserve.serving.adapter.queues`) say who is next and hide who must wait.
- *after*: counting.

Given to vLLM by ``--scheduler-cls ecoserve.serving.adapter.scheduler.EcoServeScheduler``; its settings come from
``--additional-config '{"ecoserve": {...}}'``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request, RequestStatus

from ecoserve.errors import ConfigError
from ecoserve.serving.adapter.clock import EngineClock, SchedulerClock
from ecoserve.serving.adapter.counting import CountingScheduler
from ecoserve.serving.adapter.event_log import EventLog
from ecoserve.serving.adapter.metrics import MULTIPROC_DIR, MetricsPublisher
from ecoserve.serving.adapter.pausing import drop, may_resume
from ecoserve.serving.adapter.predictions import response_limit, task_of
from ecoserve.serving.adapter.prepass import PrePass
from ecoserve.serving.adapter.queues import GatedQueue
from ecoserve.serving.adapter.scope import refuse_unsupported
from ecoserve.serving.adapter.settings import SchedulerSettings
from ecoserve.serving.core.attainment import Attainment
from ecoserve.serving.core.common_error import CommonError
from ecoserve.serving.core.correction import Correction
from ecoserve.serving.core.counters import Gauges
from ecoserve.serving.core.events import Recorder
from ecoserve.serving.core.groups import Groups
from ecoserve.serving.core.history import LengthHistory
from ecoserve.serving.core.kv import PoolForecast, make_forecast, make_policy
from ecoserve.serving.core.learning import Learner
from ecoserve.serving.core.ledger import Ledger
from ecoserve.serving.core.orderings import Ordering, SortKey
from ecoserve.serving.core.pace import Pace
from ecoserve.serving.core.tasks import Task, TaskState


class EcoServeScheduler(CountingScheduler):
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
        self.ledger = Ledger(self.usable_blocks, self.block_size)
        knobs = self.settings.knobs()
        self.forecast: PoolForecast = make_forecast(
            knobs, self.block_size, self.max_model_len, self.settings.rho or 0.0, self.settings.reaction_steps
        )
        self.kv_policy = make_policy(knobs, self.ledger, self.forecast)
        self.history = LengthHistory(self.settings.history_window, self.max_model_len)
        self.learner = Learner(
            Correction(self.settings.correction_rate) if self.settings.corrected() else None,
            CommonError() if self.settings.rho is None else None,
            self.forecast,
        )
        path = self.settings.event_log
        self.event_log = EventLog(path, self.settings.event_log_mb) if path is not None else None
        self.attainment = Attainment(self.counters)
        self.recorder = Recorder(self.counters, self._state_of, self.event_log)
        self.groups = Groups(self.settings.group_ratio, self.kv_policy.promise) if self.settings.grouped() else None
        #: request id -> step that paused it; only paused decodes are in here
        self.paused_at: dict[str, int] = {}
        #: replaced by the virtual loop's
        self.clock: SchedulerClock = EngineClock()
        #: the time of the step, frozen within one ``schedule()``
        self.now = self.clock.now()
        self._most_scheduled_tokens = self.max_num_scheduled_tokens
        self.pace = Pace(self.settings.target_forward_tokens or self.max_num_scheduled_tokens)
        self.ordering = Ordering(self.settings.ordering_knobs(), self.pace)
        self._numbers = 0
        #: another answer is believed than when the requests that are here came
        self._lengths_changed = False
        #: streaming sessions whose turn ended while they were in a queue
        self._turned: list[Request] = []
        self.prepass = PrePass(self)
        self._publisher: MetricsPublisher | None = None
        if self.log_stats and os.environ.get(MULTIPROC_DIR):
            self._publisher = MetricsPublisher(
                engine=self.parallel_config.data_parallel_index, policy=self.settings.policy
            )
        self.waiting = GatedQueue(
            key=self._prefill_key,
            gate=self.prepass.prefill_gate,
            eligible=lambda r: not r.num_stale_output_tokens or r.drop_stale_output,
            blocked=self.is_blocked,
            taken=self.prepass.prefill_taken,
            moves=lambda: self.ordering.moves,
        )
        self.kv_holding_waiting = GatedQueue(
            key=self._decode_key,
            gate=self.prepass.decode_gate,
            eligible=lambda r: may_resume(self, r),
            blocked=self.is_blocked,
            taken=self.prepass.decode_taken,
            moves=lambda: self.ordering.moves or self.groups is not None,
        )

    # -- the order of the queues -----------------------------------------------------------------------

    def _prefill_key(self, request: Request) -> SortKey:
        return self.ordering.prefill_key(self.ledger.tasks[request.request_id], self.now)

    def _decode_key(self, request: Request) -> SortKey:
        task = self.ledger.tasks[request.request_id]
        own = self.ordering.decode_key(task, self.now)
        return own if self.groups is None else self.groups.key(task, own)

    def is_blocked(self, request: Request) -> bool:
        """Whether vLLM waits for something outside (a grammar, a streaming client) before it can go on."""
        return bool(self._is_blocked_waiting_status(request.status))

    # -- vLLM's life of a request ------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        name = request.request_id
        if name not in self.requests:
            task = task_of(request, self.max_model_len, self.history, self.counters)
            task.number = self._numbers = self._numbers + 1
            self.now = self.clock.now()
            task.arrives(self.clock.arrival(request.arrival_time))
            self.learner.arrives(task)
            self.ordering.on_arrival(task)
            self.kv_policy.on_arrival(task)
            self.attainment.arrives(task)
            self.ledger.tasks[name] = task
        super().add_request(request)

    def _update_request_as_session(self, session: Request, update: Any) -> None:
        super()._update_request_as_session(session, update)
        task = self.ledger.tasks[session.request_id]
        task.prompt_tokens = session.num_prompt_tokens
        task.generated = 0
        task.promised = 0
        task.overdrawn = False
        task.prediction = None
        self.attainment.forget(task.request_id)
        task.limit = response_limit(session, self.max_model_len)
        self.prepass.set_lengths(task, self.history.distribution(task.limit))

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        self.now = self.clock.now()
        self.pace.step(self.now, busy=bool(self.running))
        if self.settings.target_forward_tokens is not None:
            self._fill_forward(self.settings.target_forward_tokens)
        if self._lengths_changed:
            self._refresh_lengths()
        self.prepass.run()
        output = super().schedule(throttle_prefills)
        self.prepass.resumed(output.num_scheduled_tokens)
        if self.settings.check_every_step:
            self.check()
        return output

    def _refresh_lengths(self) -> None:
        """The correction has changed its mind: so does everybody's place in the queues."""
        self._lengths_changed = False
        for task in self.ledger.tasks.values():
            lengths = self.learner.lengths_now(task, self.history.distribution(task.limit))
            if lengths is not None:
                self.prepass.set_lengths(task, lengths)
                self.prepass.update_posterior(task)
        self.waiting.rekey()
        self.kv_holding_waiting.rekey()

    def _fill_forward(self, target: int) -> None:
        """target forward size: prompts may fill this forward up to ``target`` tokens; generations always have their
        place.
        """
        decodes = sum(not r.is_prefill_chunk for r in self.running)
        self.max_num_scheduled_tokens = min(self._most_scheduled_tokens, max(target, decodes + 1))

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: Any) -> Any:
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for name in self.attainment.awaits(scheduler_output.num_scheduled_tokens):
            if name in self.requests and self.requests[name].num_output_tokens:
                self.attainment.first_token(name, self.clock.now())
        for request in self._turned:
            self._take_out(request)
            if request.request_id in self.requests:
                self._enqueue_waiting_request(request)
        self._turned.clear()
        if self.event_log is not None and not self.running:
            self.event_log.flush()
        if self._publisher is not None and (self._publisher.due() or not self.requests):
            self._publisher.publish(self.counters, self.gauges())
        return outputs

    def _handle_stopped_request(self, request: Request) -> bool:
        # The output that ends a session's turn may come when it was paused or dropped. vLLM then queues it anew and
        # afterwards takes all stopped requests out of the queues: the session would be lost.
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

    def _handle_blocked_waiting_request(self, request: Request) -> bool:
        # A request that is ready only now has not been through the gate: it takes its place in the order first.
        was_blocked = self.is_blocked(request)
        ready = bool(super()._handle_blocked_waiting_request(request))
        return ready and not was_blocked

    def _preempt_request(self, request: Request, timestamp: float, drop_stale_output: bool = False) -> None:
        # The task waits for a prompt again before vLLM puts the request back into the prefill queue.
        self.prepass.dropped(self.ledger.tasks[request.request_id])
        super()._preempt_request(request, timestamp, drop_stale_output)

    def _free_blocks(self, request: Request) -> None:
        super()._free_blocks(request)
        self.paused_at.pop(request.request_id, None)
        task = self.ledger.tasks.pop(request.request_id)
        generated = task.generated = request.num_output_tokens
        if self.groups is not None:
            self.groups.ended(task, self.current_step)
        self.kv_policy.on_release(task)
        completed = request.status in (RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED)
        self.attainment.ended(task, self.clock.now(), completed)
        self.recorder.note("finished" if completed else "aborted", task)
        self._lengths_changed |= self.learner.ended(task, generated if completed else None)
        if completed:
            self.history.record(generated)
            if self._publisher is not None and task.predicted:
                self._publisher.observe_error(task.predicted_median, generated)
            if task.promised > generated and not task.overdrawn:
                self.counters.over_predictions += 1

    def reset_prefix_cache(self, reset_running_requests: bool = False, reset_connector: bool = False) -> bool:
        if reset_running_requests:
            now = time.monotonic()
            for request in [r for r in self.kv_holding_waiting if r.request_id in self.paused_at]:
                drop(self, request, now, drop_stale_output=True)
        return bool(super().reset_prefix_cache(reset_running_requests, reset_connector))

    # -- what others may look at ---------------------------------------------------------------------------

    @property
    def admitting(self) -> bool:
        """False while vLLM itself is paused (draining, sleeping)."""
        return bool(self._pause_state == PauseState.UNPAUSED)

    def gauges(self) -> Gauges:
        """The state now, with the books' view of the KV."""
        out = super().gauges()
        self.ledger.held_blocks = out.held_blocks
        out.reserved_blocks = self.ledger.reserved_blocks()
        out.lent_blocks = self.kv_policy.lent_blocks(out.reserved_blocks)
        self.learner.show(out)
        return out

    def _state_of(self, task: Task) -> tuple[float, int, int, int]:
        blocks = self.kv_cache_manager.coordinator.single_type_managers[0].req_to_blocks.get(task.request_id, ())
        return self.now, self.current_step, len(blocks), self.free_blocks

    def check(self) -> None:
        """Recount the ledger from vLLM's own lists; raises :class:`LedgerError` with the equation that failed."""
        self.prepass.sync()
        waiting = {r.request_id for r in self.waiting}
        holding = {r.request_id for r in self.kv_holding_waiting}
        states: dict[str, TaskState] = {}
        for name, request in self.requests.items():
            if name in waiting:
                states[name] = TaskState.WAITING
            elif name in holding:
                states[name] = TaskState.PAUSED
            else:
                states[name] = TaskState.PREFILL if request.is_prefill_chunk else TaskState.DECODE
        self.ledger.check(self._blocks_of(), self.free_blocks, states)

    def _blocks_of(self) -> Mapping[str, list[int]]:
        manager = self.kv_cache_manager.coordinator.single_type_managers[0]
        return {n: [b.block_id for b in blocks if not b.is_null] for n, blocks in manager.req_to_blocks.items()}

    def task(self, request: Request) -> Task:
        """What the core knows of a request."""
        return self.ledger.tasks[request.request_id]
