"""What happens before every ``schedule()``, and the gates that its queues ask.

In this order, once per step:

1. *Sync*: vLLM's counts into the ledger.
2. *prefill to decode*: a prefill that has finished goes through the decode gate, or waits in the decode queue with
its KV kept. vLLM
   would decode it at once.
3. *Ladder*: a response that has outlived its reservation gets a new one from its posterior, or the global reserve, or
   it is paused.
4. *Shortage*: if the blocks that running requests need now are not free, :func:`ecoserve.serving.core.shortage.relieve`
   says who is paused and whose KV is dropped; nobody is admitted in this step.
5. *Stock*: the KV policy takes stock for the admission questions of this step.

Work conservation: when nothing runs and nothing is in flight, the head of the decode queue, else of the prefill
queue, is let
through whatever the policy says, and room is made for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from vllm.v1.request import Request, RequestStatus

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter.pausing import drop, pause
from ecoserve.serving.core.events import UnderpredictionAction
from ecoserve.serving.core.shortage import relieve
from ecoserve.serving.core.tasks import Task, TaskState

if TYPE_CHECKING:
    from ecoserve.serving.adapter.scheduler import EcoServeScheduler

#: A distribution that gave the present length less than this probability has been outlived.
OUTLIVED = 1e-3

#: A decode that has waited for its promise this many steps is passed by no more.
PATIENCE = 1024


class PrePass:
    """The decisions around one ``schedule()`` of one scheduler."""

    def __init__(self, scheduler: EcoServeScheduler) -> None:
        self.s = scheduler
        self._shortage = False
        self._spare_blocks = 0
        self._pressed = False
        self._popped: tuple[Request, Callable[[Task], None]] | None = None
        self._blocks_of = scheduler.kv_cache_manager.coordinator.single_type_managers[0].req_to_blocks

    # -- the pre-pass ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Everything that is decided before vLLM composes the batch."""
        s = self.s
        self.sync()
        s.kv_policy.begin_step()
        for task in s.ledger.holders():
            if task.state is not TaskState.DECODE:
                self.update_posterior(task)
        # The holders are those who run, in their order, and then those who wait with their KV.
        for request, task in zip(list(s.running), s.ledger.holders(), strict=False):
            if task.state is TaskState.DECODE:
                if not task.promised:
                    self._enter_decode(request, task)
                elif task.generated >= task.promised:
                    self._outlived(request, task)
        for guest in s.kv_policy.overdue_guests():
            self._host_arrives(guest)
        self._relieve_shortage()
        if not s.running and len(s.kv_holding_waiting):
            self._make_room_for_one()
        # Only paused decodes are measured by it.
        self._spare_blocks = s.free_blocks - self._needed(s.settings.resume_steps) if s.paused_at else 0
        self._pressed = any(s.ledger.tasks[name].promised for name in s.paused_at)
        s.ledger.set_holders([t for t in s.ledger.holders() if t.state is not TaskState.WAITING])
        if s.groups is not None:
            waiting = [s.ledger.tasks[name] for name in s.paused_at]
            s.groups.begin_step(s.current_step, [(t, s.ordering.decode_key(t, s.now)) for t in waiting])
        s.kv_policy.begin_step()
        s.waiting.new_step()
        s.kv_holding_waiting.new_step()

    def sync(self) -> None:
        """vLLM's counts into the ledger."""
        s = self.s
        s.ledger.held_blocks = s.usable_blocks - s.free_blocks
        tasks = s.ledger.tasks
        holders = []
        for request in s.running:
            task = tasks[request.request_id]
            task.written = request.num_computed_tokens
            task.generated = request.num_output_tokens
            task.state = TaskState.PREFILL if request.is_prefill_chunk else TaskState.DECODE
            task.passed_by = False
            holders.append(task)
        for request in s.kv_holding_waiting:
            task = tasks[request.request_id]
            task.written = request.num_computed_tokens
            task.generated = request.num_output_tokens
            task.state = TaskState.PAUSED
            since = s.paused_at.get(request.request_id)
            task.passed_by = since is not None and s.current_step - since > PATIENCE
            holders.append(task)
        s.ledger.set_holders(holders)

    def set_lengths(self, task: Task, lengths: LengthDistribution) -> None:
        """Replace what is believed of a request's length."""
        task.lengths = lengths
        if task.row >= 0:
            self.s.forecast.enter(task)

    def update_posterior(self, task: Task) -> None:
        """Go on to the posterior where a distribution has been outlived.

        Without this an outlived distribution would say that the request is gone, and its KV with it.
        """
        if task.lengths.survival(task.generated) < OUTLIVED and task.generated < task.limit:
            self.set_lengths(task, task.lengths.given_longer_than(task.generated).closed_at(task.limit))

    def resumed(self, scheduled: Mapping[str, int]) -> None:
        """After ``schedule()``: paused decodes that it has taken are paused no more."""
        self._settle()
        s = self.s
        for name in [n for n in s.paused_at if n in scheduled]:
            del s.paused_at[name]
            s.counters.resumes += 1
            s.recorder.note("resumed", s.ledger.tasks[name])

    def dropped(self, task: Task) -> None:
        """A request's KV is being dropped: it is a prefill again, with nothing promised."""
        task.state = TaskState.WAITING
        task.written = 0
        task.promised = 0
        self.s.kv_policy.on_release(task)

    # -- prefill to decode, and the ladder's first rungs ----------------------------------------------------------

    def _enter_decode(self, request: Request, task: Task) -> None:
        kv_policy = self.s.kv_policy
        self.update_posterior(task)
        waits_for_group = self.s.groups is not None and self.s.admitting and not self._alone(request)
        if not waits_for_group and (kv_policy.admits_new_decode(task) or self._alone(request)):
            kv_policy.reserve_for(task, kv_policy.promise(task))
        elif self.s.admitting:
            self._pause(request, task)

    def _outlived(self, request: Request, task: Task) -> None:
        s, kv_policy, counters = self.s, self.s.kv_policy, self.s.counters
        if not task.overdrawn:
            task.overdrawn = True
            counters.under_predictions += 1
        self.update_posterior(task)
        if kv_policy.extends(task):
            s.recorder.action(UnderpredictionAction.OWN_SPACE, task)
        elif kv_policy.admits_decode(task):
            counters.re_reservations += 1
            kv_policy.reserve_for(task, kv_policy.promise(task))
            s.recorder.action(UnderpredictionAction.RE_RESERVED, task)
        elif kv_policy.lends_reserve(task) or self._alone(request):
            kv_policy.reserve_for(task, task.generated + s.block_size)
            s.recorder.action(UnderpredictionAction.GLOBAL_RESERVE, task)
        elif s.admitting:
            s.recorder.action(UnderpredictionAction.PAUSED, task)
            self._pause(request, task)

    def _host_arrives(self, guest: Task) -> None:
        """A host has come to what it lent: its guest gets a window of its own, or stops. It never holds up its host."""
        s = self.s
        s.recorder.action(UnderpredictionAction.GUEST_MOVED, guest)
        if not s.admitting or s.kv_policy.rehome(guest):
            s.kv_policy.evict(guest)
            return
        s.kv_policy.evict(guest)
        guest.promised = guest.generated
        if guest.state is TaskState.DECODE:
            s.recorder.action(UnderpredictionAction.PAUSED, guest)
            self._pause(s.requests[guest.request_id], guest)

    def _alone(self, request: Request) -> bool:
        return len(self.s.running) == 1 and self.s.running[0] is request

    def _pause(self, request: Request, task: Task) -> None:
        task.state = TaskState.PAUSED
        self.s.counters.pauses += 1
        self.s.kv_policy.begin_step()
        pause(self.s, request)

    # -- shortage --------------------------------------------------------------------------------------

    def _needed(self, steps: int) -> int:
        return sum(self._needs(r, steps) for r in self.s.running)

    def _needs(self, request: Request, steps: int) -> int:
        """Blocks that a running request must get for its next ``steps`` steps."""
        s, held = self.s, len(self._blocks_of[request.request_id])
        if request.is_prefill_chunk:
            # All that is left of its prompt: a prefill that stops half-way helps nobody.
            tokens = request.num_tokens + request.num_output_placeholders
        elif request.num_computed_tokens + steps <= held * s.block_size:
            return 0
        else:
            tokens = min(
                request.num_computed_tokens + steps, request.num_prompt_tokens + request.max_tokens - 1, s.max_model_len
            )
        return max(0, s.ledger.blocks(tokens) - held)

    def _relieve_shortage(self) -> None:
        s = self.s
        self._shortage = False
        if not s.running:
            return
        needs = {s.task(r): n for r in s.running if (n := self._needs(r, 1)) > 0}
        if sum(needs.values()) <= s.free_blocks:
            return
        self._shortage = True
        s.counters.shortage_steps += 1
        by_task = {s.task(r): r for r in s.running}
        asleep = {s.task(r): r for r in s.kv_holding_waiting if r.request_id in s.paused_at}
        relief = relieve(
            needs,
            list(by_task),
            list(asleep),
            {t: self._private_blocks(t) for t in (*by_task, *asleep)},
            s.free_blocks,
            s.settings.paused_share * s.usable_blocks,
            s.preemptions_of,
        )
        for task in relief.drop:
            self._give_up(by_task.get(task) or asleep[task])
        for task in relief.pause:
            s.recorder.action(UnderpredictionAction.PAUSED, task)
            self._pause(by_task[task], task)

    def _private_blocks(self, task: Task) -> int:
        """Blocks that come free if this request lets go: those nobody else references."""
        return sum(1 for b in self._blocks_of[task.request_id] if b.ref_cnt == 1)

    def _make_room_for_one(self) -> None:
        """Nothing runs: the first who holds KV and may go on must be able to, at the cost of the paused others.

        That is a paused decode, or a streaming session with new input. If all the others were not enough (sessions that
        wait for their client cannot be dropped), a decode gives way itself when somebody else is ready.
        """
        s = self.s
        ready = [r for r in s.kv_holding_waiting if not s.is_blocked(r)]
        paused = [r for r in ready if r.request_id in s.paused_at]
        if any(r.num_in_flight_tokens for r in ready):
            return
        head = next((r for r in ready if s.current_step >= s.paused_at.get(r.request_id, -1) + 1), None)
        if head is None:
            return

        def short() -> bool:
            return s.ledger.blocks(head.num_tokens + 1) - len(self._blocks_of[head.request_id]) > s.free_blocks

        others = [r for r in paused if r is not head]
        while short() and others:
            victim = min(others, key=lambda r: (s.preemptions_of.get(r.request_id, 0), r.num_computed_tokens))
            others.remove(victim)
            self._give_up(victim)
        if short() and head in paused and len(ready) > len(paused):
            self._give_up(head)

    def _give_up(self, request: Request) -> None:
        self.s.recorder.action(UnderpredictionAction.RECOMPUTED, self.s.task(request))
        self.s.counters.shortage_preemptions += 1
        drop(self.s, request, time.monotonic())

    # -- the gates ---------------------------------------------------------------------------------------

    def _idle(self) -> bool:
        """Nothing runs, nothing is in flight, nobody waits with KV: the next prompt must be let through."""
        s = self.s
        return not s.running and not any(r.request_id in s.paused_at for r in s.kv_holding_waiting)

    def prefill_gate(self, request: Request) -> bool:
        """Whether the head of the prefill queue may start."""
        self._settle()
        task = self.s.task(request)
        if task.generated != request.num_output_tokens:
            # An output that was in flight when its KV was dropped has come since.
            task.generated = request.num_output_tokens
            self.update_posterior(task)
        if self._idle():
            return True
        # decodes that wait although they have a promise were paused for want of blocks: they go before any prompt.
        if self._shortage or self._pressed:
            return False
        return self.s.kv_policy.admits_prompt(task)

    def prefill_taken(self, request: Request) -> None:
        """The head of the prefill queue was let through."""
        self._settle()
        forced = not self.s.running and not self.s.kv_policy.admits_prompt(self.s.task(request))
        self._popped = (request, partial(self._prompt_starts, forced=forced))

    def _prompt_starts(self, task: Task, forced: bool) -> None:
        self.s.counters.forced_admissions += forced
        self.s.kv_policy.admitted(task)
        self.s.recorder.note("admitted", task)

    def _settle(self) -> None:
        """Count whoever was popped last, unless vLLM has skipped it (adapters): then it is put back as it was."""
        popped, self._popped = self._popped, None
        if popped is not None and popped[0].status is RequestStatus.RUNNING:
            popped[1](self.s.task(popped[0]))

    def decode_gate(self, request: Request) -> bool:
        """Whether the head of the decode queue may go on."""
        self._settle()
        s = self.s
        if not s.admitting or not s.running or request.request_id not in s.paused_at:
            return True
        task = s.task(request)
        if self._shortage or self._resume_needs(task) > self._spare_blocks:
            return False
        return bool(task.promised > task.generated or s.kv_policy.admits_decode(task))

    def decode_taken(self, request: Request) -> None:
        """The head of the decode queue was let through."""
        self._settle()
        self._popped = (request, self._decode_resumes)

    def _decode_resumes(self, task: Task) -> None:
        kv_policy = self.s.kv_policy
        self._spare_blocks -= self._resume_needs(task)
        if self.s.groups is not None:
            self.s.groups.started(task, self.s.current_step)
        if task.promised <= task.generated:
            if task.overdrawn:
                self.s.counters.re_reservations += 1
            kv_policy.reserve_for(task, max(task.generated + 1, kv_policy.promise(task)))

    def _resume_needs(self, task: Task) -> int:
        tokens = task.written + self.s.settings.resume_steps
        return max(1, self.s.ledger.blocks(tokens) - len(self._blocks_of[task.request_id]))
