"""The planner: everything that is decided about requests, without an engine.

The adapter reports what happens (``on_arrival``, ``on_finish`` ...), and in every step carries out the
:class:`StepPlan` of :meth:`Planner.plan_step`, calls :meth:`Planner.begin_admission`, and asks ``admits_prompt`` and
``admits_decode`` about the heads of the two queues while vLLM composes the batch.

A step is planned in this order. *Prefill to decode*: a request whose prefill has finished gets its promise, or waits in
the decode queue with its KV. *Under-predictions*: a response that has outlived its promise gets a new one from its
posterior, or a block of the reserve, or is paused. *Shortage*: if the blocks that running requests need now are not
free, :func:`~ecoserve.serving.core.shortage.relieve` says which are paused or preempted, and none is admitted.

Work conservation is the adapter's: when nothing runs, the head of a queue is admitted in any case, and
:meth:`Planner.make_room` names the paused requests that give way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.counters import Attainment, Counters, Gauges, Recorder, UnderpredictionAction
from ecoserve.serving.core.forecast import Forecast
from ecoserve.serving.core.forward_size import ForwardSize
from ecoserve.serving.core.history import LengthHistory
from ecoserve.serving.core.kv_policy import KVPolicy, ranks
from ecoserve.serving.core.kv_use import KVUse
from ecoserve.serving.core.learning import CommonError, Correction, Learner
from ecoserve.serving.core.ledger import Ledger
from ecoserve.serving.core.orderings import Ordering, Pace, SortKey
from ecoserve.serving.core.policies import GROUPS, KV_POLICIES, ORDERINGS, load
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.shortage import relieve
from ecoserve.serving.core.tasks import Task, TaskState

#: A distribution that gives the present length less than this probability has been outlived.
OUTLIVED = 1e-3

#: Holders whose lengths are computed anew in a step, at most, when the correction's source has changed.
RENEWED = 8

#: A decode that has waited for its promise this many steps is passed by no more.
PATIENCE = 1024


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The engine before a step. The tasks' own values (``written``, ``generated``, ``state``, ``blocks``) are current.

    Attributes:
        step: steps so far. free_blocks: free KV blocks. coming_blocks: those that come free when a step under way ends.
        running: in vLLM's order. holding: requests that wait with their KV, in the order of their queue.
        paused_at: request id -> step in which it was paused. A session between two turns holds KV and is not in it.
        private_blocks: request id -> blocks that come free if it is preempted.
        places: requests that may run at a time. admitting: False while vLLM drains.
    """

    step: int
    free_blocks: int
    running: Sequence[Task]
    holding: Sequence[Task]
    paused_at: Mapping[str, int]
    private_blocks: Mapping[str, int]
    coming_blocks: int = 0
    places: int = 1
    admitting: bool = True


@dataclass(slots=True)
class StepPlan:
    """What the adapter does before vLLM composes the batch, in this order; request ids.

    Attributes:
        pause: decodes that leave the batch with their KV.
        preempt: requests whose KV is dropped, until ``until_free`` blocks are free (None: all of them).
        token_budget: most tokens of this step's forward; None: vLLM's own.
    """

    pause: list[str] = field(default_factory=list)
    preempt: list[str] = field(default_factory=list)
    until_free: int | None = None
    token_budget: int | None = None


class Planner:
    """The decisions of one scheduler.

    Args:
        usable_blocks: of the KV cache. kv_use: how requests use them.
        max_model_len: longest sequence, tokens. max_step_tokens: vLLM's most tokens of a forward.
        chunked_prefill: whether a prompt may be computed in chunks. stages: of the pipeline.
        counters: incremented here and by the adapter. recorder: given every event.
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        *,
        usable_blocks: int,
        kv_use: KVUse,
        max_model_len: int,
        max_step_tokens: int,
        chunked_prefill: bool = True,
        stages: int = 1,
        counters: Counters,
        recorder: Recorder,
    ) -> None:
        parts = settings.parts
        self.settings = settings
        self.counters = counters
        self.recorder = recorder
        self.ledger = Ledger(usable_blocks, kv_use)
        self.forecast = Forecast(kv_use, max_model_len, settings.rho or 0.0, quantile=settings.ordering_quantile)
        self.pace = Pace(settings.target_forward_tokens or max_step_tokens, stages=stages)
        self._max_model_len = max_model_len
        self.forward_size = ForwardSize(settings, max_step_tokens, self.forecast, chunked_prefill, kv_use.least_chunk)
        self.ordering: Ordering = load(ORDERINGS[parts.ordering])(settings, self.pace)
        self.kv_policy: KVPolicy = load(KV_POLICIES[parts.kv_policy])(
            settings, self.ledger, self.forecast, self.ordering
        )
        self.groups = load(GROUPS)(settings.group_ratio, self.kv_policy.promise) if parts.groups else None
        self.history = LengthHistory(settings.history_window, max_model_len, running=self._ages)
        self.learner = Learner(
            Correction(settings.correction_rate) if parts.correction else None,
            CommonError() if settings.rho is None else None,
            self.forecast,
        )
        self.attainment = Attainment(counters)
        #: the time of the step, frozen within it
        self.now = 0.0
        self._arrivals = 0
        self._version = 0
        self._renewing = 0
        #: streaming sessions whose turn is over, until the next one
        self._between_turns: set[str] = set()
        self._shortage = False
        self._paused_promised = False
        self._spare_blocks = 0

    # -- what happens to requests --------------------------------------------------------------------------

    def on_arrival(self, task: Task, now: float) -> None:
        self._arrivals += 1
        task.number = self._arrivals
        self.now = now
        self.learner.arrives(task)
        self.ordering.on_arrival(task)
        self.kv_policy.on_arrival(task)
        self.attainment.arrives(task)
        self.ledger.tasks[task.request_id] = task
        self.forward_size.waits(task)

    def on_turn_end(self, task: Task) -> None:
        """A turn of a streaming session has ended after ``task.generated`` tokens; the session may go on."""
        self._learn(task, ended=True)
        self._between_turns.add(task.request_id)

    def on_new_turn(self, task: Task) -> None:
        """A streaming session goes on with a new prompt: ``prompt_tokens`` and ``limit`` are those of the new turn."""
        self._between_turns.discard(task.request_id)
        task.generated = 0
        task.promised = 0
        task.overdrawn = False
        task.prediction = None
        self.attainment.forget(task.request_id)
        self._set_lengths(task, self.history.distribution(task.limit))

    def on_late_output(self, task: Task, generated: int) -> None:
        """An output that was in flight when the request was preempted has arrived."""
        task.generated = generated
        self._update_posterior(task)

    def on_finish(self, task: Task, step: int, now: float, completed: bool) -> None:
        """A request has left with ``task.generated`` tokens; ``completed``: by itself or at its limit."""
        del self.ledger.tasks[task.request_id]
        self.forward_size.waits_no_more(task)
        if self.groups is not None:
            self.groups.ended(task, step)
        self.kv_policy.on_release(task)
        self.attainment.ended(task, now, completed)
        self.counters.aborted += not completed
        self.recorder.note("finished" if completed else "aborted", task)
        if task.request_id in self._between_turns:
            self._between_turns.discard(task.request_id)
        else:
            self._learn(task, completed)
        if completed:
            self.counters.over_predictions += task.promised > task.generated and not task.overdrawn

    def on_pause(self, task: Task) -> None:
        task.state = TaskState.PAUSED
        task.waits_since_s = self.now
        self.kv_policy.begin_step()

    def on_preempt(self, task: Task) -> None:
        """A request's KV is being dropped: it waits for its prefill again, with nothing promised."""
        task.state = TaskState.WAITING
        task.waits_since_s = self.now
        task.written = task.settled = 0
        task.tables = ()
        task.promised = 0
        task.preemptions += 1
        self.kv_policy.on_release(task)
        self.forward_size.waits(task)

    # -- the order of the queues -----------------------------------------------------------------------------

    def prefill_key(self, task: Task) -> SortKey:
        self._renew_lengths(task)
        return self.ordering.key(task, self.now, prompt=True)

    def decode_key(self, task: Task) -> SortKey:
        self._renew_lengths(task)
        own = self.ordering.key(task, self.now, prompt=False)
        return own if self.groups is None else self.groups.key(task, own)

    def refresh_lengths(self) -> bool:
        """Learn from the next few responses; whether all keys are to be computed anew.

        If the correction has changed its source, holders get their lengths anew here, a few a step, and waiting
        requests with their key (:meth:`prefill_key`).
        """
        self.learner.step()
        changed = self.learner.version != self._version
        if changed:
            self._version = self.learner.version
            self._renewing = 2
        if self._renewing:
            # Once more when none is stale: those admitted in the last step are holders only now.
            stale = list(islice((t for t in self.ledger.holders() if self.learner.is_stale(t)), RENEWED))
            self._renewing = 2 if stale else self._renewing - 1
            for task in stale:
                self._renew_lengths(task)
        return changed

    def _renew_lengths(self, task: Task) -> None:
        if self.learner.is_stale(task):
            lengths = self.learner.lengths_now(task, self.history.distribution(task.limit))
            if lengths is not None:
                self._set_lengths(task, lengths)
                self._update_posterior(task)

    def _learn(self, task: Task, ended: bool) -> None:
        """A response is over; ``ended``: by itself or at its limit. At its limit it might have been longer."""
        if task.generated:
            self.learner.over(task, task.generated, ended)
            self.history.record(task.generated, ended and task.generated < task.limit)

    def _ages(self) -> Iterator[int]:
        """Tokens of each response that has started and is not over."""
        tasks, over = self.ledger.tasks, self._between_turns
        return (t.generated for t in self.ledger.holders() if t.request_id in tasks and t.request_id not in over)

    # -- a step ----------------------------------------------------------------------------------------------

    def begin_step(self, now: float, busy: bool) -> None:
        self.now = now
        self.pace.step(now, busy)
        self.forecast.tokens_per_step = self.pace.tokens_per_step

    def observe(self, engine: Snapshot) -> None:
        self.ledger.held_blocks = self.ledger.usable_blocks - engine.free_blocks
        self.ledger.set_holders([*engine.running, *engine.holding])
        for task in engine.running:
            task.passed_by = task.idle = False
        for task in engine.holding:
            since = engine.paused_at.get(task.request_id)
            task.passed_by = since is not None and engine.step - since > PATIENCE
            task.idle = since is None and task.state is TaskState.PAUSED

    def watch_step(self, engine: Snapshot) -> None:
        """A step in which vLLM decides by itself; admission may be asked all the same."""
        self._shortage = False
        self.observe(engine)
        self.kv_policy.begin_step()
        for task in self.ledger.holders():
            self._update_posterior(task)

    def plan_step(self, engine: Snapshot) -> StepPlan:
        plan = StepPlan()
        self.observe(engine)
        free_tokens = self.ledger.kv_use.tokens_in(engine.free_blocks)
        plan.token_budget = self.forward_size.tokens(engine.running, free_tokens, self.now)
        self.kv_policy.begin_step()
        for task in self.ledger.holders():
            if task.state is not TaskState.DECODE:
                self._update_posterior(task)
        running = list(engine.running)
        for task in engine.running:
            if task.state is TaskState.DECODE:
                if not task.promised:
                    self._enter_decode(task, running, engine.admitting, plan)
                elif task.generated >= task.promised:
                    self._outlived(task, running, engine.admitting, plan)
        if engine.admitting:
            for task in self.kv_policy.gives_way(running, engine.places, self.now):
                self._pause(task, running, plan)
        for guest in self.kv_policy.overdue_guests():
            self._host_arrives(guest, running, engine.admitting, plan)
        self._relieve_shortage(engine, running, plan)
        return plan

    def begin_admission(self, step: int, free_blocks: int, paused_at: Mapping[str, int]) -> None:
        """The plan has been carried out: admission may ask. ``step``, ``paused_at``: as in :class:`Snapshot`."""
        holders = [t for t in self.ledger.holders() if t.state is not TaskState.WAITING]
        self.ledger.set_holders(holders)
        self.ledger.held_blocks = self.ledger.usable_blocks - free_blocks
        paused = [self.ledger.tasks[name] for name in paused_at]
        if paused:
            running = (t for t in holders if t.state is not TaskState.PAUSED)
            free_blocks -= sum(self._needs(t, self.settings.resume_steps) for t in running)
        self._spare_blocks = free_blocks
        self._paused_promised = any(t.promised for t in paused)
        if self.groups is not None:
            self.groups.begin_step(step, [(t, self.ordering.key(t, self.now, prompt=False)) for t in paused])
        self.kv_policy.begin_step()

    # -- admission -------------------------------------------------------------------------------------------

    def admits_prompt(self, task: Task) -> bool:
        # Decodes that wait although they have a promise were paused for want of blocks: they go before any prompt.
        if self._shortage or self._paused_promised:
            return False
        return self.kv_policy.admits_prompt(task)

    def on_prompt_admitted(self, task: Task, forced: bool) -> None:
        """A prefill has started; ``forced``: although the policy does not admit it."""
        self.counters.forced_admissions += forced
        waited_s = self.now - task.arrival_s
        self.counters.past_ageing_limit += not task.preemptions and waited_s > self.settings.max_wait_s
        self.kv_policy.admitted(task)
        self.forward_size.waits_no_more(task)
        self.learner.starts(task)
        self.recorder.note("admitted", task)

    def admits_decode(self, task: Task) -> bool:
        if self._shortage or self._resume_needs(task) > self._spare_blocks:
            return False
        return task.promised > task.generated or self.kv_policy.admits_decode(task)

    def on_decode_admitted(self, task: Task, step: int) -> None:
        self._spare_blocks -= self._resume_needs(task)
        if self.groups is not None:
            self.groups.started(task, step)
        if task.promised <= task.generated:
            self.counters.re_reservations += task.overdrawn
            self.kv_policy.reserve_for(task, max(task.generated + 1, self.kv_policy.promise(task)))

    def make_room(self, ready: Sequence[Task], paused_at: Mapping[str, int], step: int) -> StepPlan:
        """Nothing runs: which paused requests give way so that the first of ``ready`` can go on.

        ``ready``: requests that hold KV and wait for nothing outside (paused decodes, and sessions with new input).
        """
        head = next((t for t in ready if step >= paused_at.get(t.request_id, -1) + 1), None)
        if head is None:
            return StepPlan()
        others = [t for t in ready if t is not head and t.request_id in paused_at]
        victims = sorted(others, key=lambda t: (t.preemptions, t.written))
        # If that is not enough (sessions that wait for their client cannot be preempted), the head itself gives way.
        if head.request_id in paused_at and len(victims) + 1 < len(ready):
            victims.append(head)
        blocks = self.ledger.kv_use.missing(head, head.prompt_tokens + head.generated + 1)
        return StepPlan(preempt=[t.request_id for t in victims], until_free=blocks)

    # -- gauges ----------------------------------------------------------------------------------------------

    def show(self, gauges: Gauges) -> None:
        self.ledger.held_blocks = gauges.held_blocks
        gauges.reserved_blocks = self.ledger.reserved_blocks()
        gauges.lent_blocks = self.kv_policy.lent_blocks(gauges.reserved_blocks)
        self.learner.show(gauges)

    # -- prefill to decode, and outlived promises --------------------------------------------------------------

    def _enter_decode(self, task: Task, running: list[Task], admitting: bool, plan: StepPlan) -> None:
        self._update_posterior(task)
        alone = self._alone(task, running)
        waits_for_group = self.groups is not None and admitting and not alone
        if not waits_for_group and (self.kv_policy.admits_new_decode(task) or alone):
            self.kv_policy.reserve_for(task, self.kv_policy.promise(task))
        elif admitting:
            self._pause(task, running, plan)

    def _outlived(self, task: Task, running: list[Task], admitting: bool, plan: StepPlan) -> None:
        kv_policy, action = self.kv_policy, self.recorder.action
        if not task.overdrawn:
            task.overdrawn = True
            self.counters.under_predictions += 1
        self._update_posterior(task)
        if kv_policy.extends(task):
            action(UnderpredictionAction.OWN_SPACE, task)
        elif kv_policy.admits_decode(task):
            self.counters.re_reservations += 1
            kv_policy.reserve_for(task, kv_policy.promise(task))
            action(UnderpredictionAction.RE_RESERVED, task)
        elif kv_policy.lends_reserve(task) or self._alone(task, running):
            kv_policy.reserve_for(task, task.generated + self.ledger.kv_use.block_size)
            action(UnderpredictionAction.GLOBAL_RESERVE, task)
        elif admitting:
            action(UnderpredictionAction.PAUSED, task)
            self._pause(task, running, plan)

    def _host_arrives(self, guest: Task, running: list[Task], admitting: bool, plan: StepPlan) -> None:
        """A host has reached the KV that it lent: its guest gets a window of its own, or stops."""
        self.recorder.action(UnderpredictionAction.GUEST_MOVED, guest)
        moved = not admitting or self.kv_policy.rehome(guest)
        self.kv_policy.evict(guest)
        if moved:
            return
        guest.promised = guest.generated
        if guest.state is TaskState.DECODE:
            self.recorder.action(UnderpredictionAction.PAUSED, guest)
            self._pause(guest, running, plan)

    def _relieve_shortage(self, engine: Snapshot, running: list[Task], plan: StepPlan) -> None:
        assert plan.token_budget is not None
        prefills = [t for t in running if t.state is TaskState.PREFILL]
        # A prompt's next chunk: the whole forward, if no other prompt stays.
        chunks = {t: min(plan.token_budget, t.known_tokens - t.written) for t in prefills}
        needs = {t: self._missing(t, t.written + chunk) for t, chunk in chunks.items()}
        growth = self.ledger.kv_use.growth(1 + self.ledger.kv_use.ahead) * (len(running) - len(prefills))
        self._shortage = sum(needs.values()) + growth > engine.free_blocks
        if self._shortage:
            needs |= {t: self._needs(t, 1) for t in running if t not in chunks}
            self._shortage = sum(needs.values()) > engine.free_blocks
        if not self._shortage:
            return
        self.counters.shortage_steps += 1
        new = [t for t in engine.running if t.state is TaskState.PAUSED]
        paused = [t for t in engine.holding if t.request_id in engine.paused_at] + new
        relief = relieve(
            needs,
            running,
            paused,
            {t: engine.private_blocks[t.request_id] for t in (*running, *paused)},
            self._ranks([*running, *paused]),
            engine.free_blocks + engine.coming_blocks,
            self.settings.paused_share * self.ledger.usable_blocks,
        )
        plan.preempt += [t.request_id for t in relief.drop]
        for task in relief.pause:
            self.recorder.action(UnderpredictionAction.PAUSED, task)
            self._pause(task, running, plan)

    def _ranks(self, tasks: list[Task]) -> dict[Task, tuple[float, float]]:
        priority, rank = ranks(tasks, self.forecast, self.ordering)
        return {t: (float(p), float(r)) for t, p, r in zip(tasks, priority, rank, strict=True)}

    def _pause(self, task: Task, running: list[Task], plan: StepPlan) -> None:
        running.remove(task)
        plan.pause.append(task.request_id)
        self.on_pause(task)

    def _alone(self, task: Task, running: list[Task]) -> bool:
        return len(running) == 1 and running[0] is task

    # -- lengths and blocks ------------------------------------------------------------------------------------

    def _set_lengths(self, task: Task, lengths: LengthDistribution) -> None:
        task.lengths = lengths
        if task.row >= 0:
            self.forecast.enter(task)

    def _update_posterior(self, task: Task) -> None:
        """Replace an outlived distribution by its posterior: else the forecast takes the request's KV as gone."""
        if task.lengths.survival(task.generated) < OUTLIVED and task.generated < task.limit:
            self._set_lengths(task, task.lengths.given_longer_than(task.generated).closed_at(task.limit))

    def _needs(self, task: Task, steps: int) -> int:
        """Blocks that a running request must get for its next ``steps`` steps."""
        # All of a prompt: a prefill that stops half-way is of no use.
        if task.state is TaskState.PREFILL:
            return self._missing(task, task.known_tokens)
        if not task.asks and steps == 1:
            return 0
        # Drafts under way count as written, although some will be refused.
        most_tokens = task.most_tokens + self.ledger.kv_use.ahead
        return self._missing(task, min(task.written + steps, most_tokens))

    def _resume_needs(self, task: Task) -> int:
        return max(1, self._missing(task, task.written + self.settings.resume_steps))

    def _missing(self, task: Task, tokens: int) -> int:
        """Blocks that a holder must still get for a step that brings it to ``tokens`` tokens, drafts besides."""
        kv_use = self.ledger.kv_use
        return kv_use.missing(task, min(tokens + kv_use.ahead, self._max_model_len))
