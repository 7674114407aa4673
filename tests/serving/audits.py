"""What must hold of our scheduler between any two calls, counted anew without its own state.

Four audits are hooked into one scheduler: *admission* (what is admitted fits, by the KV policy's own rule),
*shortage* (after relief the blocks needed now are free and the paused keep under the high-water mark), the *lives*
of requests (admitted, paused, resumed, dropped, ended, each only when it may be) and, between steps, *structures*
(queues, loans, rows of the forecast).
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from vllm.v1.request import RequestStatus

from ecoserve.serving.baselines.pipelined import Pipelined
from ecoserve.serving.core.counters import Event, Recorder
from ecoserve.serving.core.forecast import REACTION_STEPS, Forecast, deviations
from ecoserve.serving.core.kv_policy import NEXT_STEPS, Pooled, Ranked
from ecoserve.serving.core.tasks import Task, TaskState


def blocks(tokens: int, block_size: int) -> int:
    """Blocks that tokens take."""
    return (tokens + block_size - 1) // block_size


# -- admission -----------------------------------------------------------------------------------------------


class Admission:
    """Counts anew, for every question that a KV policy answers with yes, whether there was room."""

    def __init__(self, scheduler: Any) -> None:
        self.s = scheduler
        self.kv_policy = scheduler.planner.kv_policy
        self.ledger = scheduler.planner.ledger
        #: let in since stock was taken, with the blocks that count for each (window policies)
        self._new: list[tuple[Task, int]] = []
        #: how many answers were looked at
        self.seen = 0
        #: and how many of them lent a stretch to a guest
        self.lent = 0
        self._hook("begin_step", after=lambda: self._new.clear())
        self._hook("admitted", before=self._admitted)
        if isinstance(self.kv_policy, Ranked):
            self._hook("admits_prompt", yes=self._pool_fits)
        elif self.kv_policy.exclusive:
            self._hook("admits_prompt", yes=self._prompt_fits)
            self._hook("admits_new_decode", yes=self._window_fits)
            self._hook("admits_decode", yes=self._window_fits)
            self._hook("lends_reserve", yes=self._reserve_fits)

    def _hook(self, name: str, before: Any = None, after: Any = None, yes: Any = None) -> None:
        call = getattr(self.kv_policy, name)

        def hooked(*args: Any) -> Any:
            if before is not None:
                before(*args)
            answer = call(*args)
            if after is not None:
                after()
            if yes is not None and answer:
                self.seen += 1
                yes(*args)
            return answer

        setattr(self.kv_policy, name, hooked)

    def _blocks(self, tokens: int) -> int:
        kv_use = self.ledger.kv_use
        return (
            blocks(tokens, self.s.block_size) if len(kv_use.groups) == 1 and kv_use.lasting else kv_use.blocks(tokens)
        )

    @property
    def _usable(self) -> int:
        return int(self.s.usable_blocks)

    @property
    def _open(self) -> float:
        return self._usable - np.ceil(self.kv_policy.settings.reserve * self._usable)

    # -- windows

    def _charge(self, task: Task) -> int:
        """Blocks that a holder counts for: what it has or was promised; a guest: what it came with, and one."""
        loan = self.kv_policy.lending.loan_of.get(task) if isinstance(self.kv_policy, Pipelined) else None
        if loan is not None:
            return self._blocks(loan.base_tokens) + 1
        return self._blocks(max(task.written, task.prompt_tokens + max(task.generated, task.promised)))

    def _total(self) -> int:
        return sum(self._charge(t) for t in self.ledger.holders()) + sum(n for _, n in self._new)

    def _ahead(self, task: Task) -> int:
        return self._blocks(max(task.written, task.prompt_tokens + task.generated) + 1)

    def _prompt(self, task: Task) -> int:
        """Blocks that must be free for a prompt."""
        if self.ledger.kv_use.lasting:
            return self._ahead(task) - task.shared_blocks
        tokens = max(task.written, task.prompt_tokens + task.generated) + 1
        return self.ledger.kv_use.prompt_blocks(tokens, task.settled) - task.shared_blocks

    def _window(self, task: Task) -> int:
        return self._blocks(task.prompt_tokens + self.kv_policy.promise(task))

    def _has_window(self, task: Task) -> bool:
        """Whether a prompt's whole window fits; decodes that were passed by for long are kept theirs."""
        claimed = sum(
            max(0, self._window(t) - self._charge(t))
            for t in self.ledger.holders()
            if t.passed_by and t.promised <= t.generated and t.state is not TaskState.DECODE
        )
        return bool(self._total() + claimed + self._window(task) <= self._open)

    def _admitted(self, task: Task) -> None:
        if self.kv_policy.exclusive:
            self._new.append((task, self._window(task) if self._has_window(task) else self._ahead(task)))
        else:
            self._new.append((task, 0))

    def _prompt_fits(self, task: Task) -> None:
        if self._has_window(task):
            return
        assert self._total() + self._ahead(task) <= self._open, "a prompt was let in beyond the cache"
        if isinstance(self.kv_policy, Pipelined) and self.kv_policy._loan_for(task) is not None:
            return
        without = [t for t in self.ledger.holders() if t.promised <= t.generated and t.state is not TaskState.DECODE]
        waiting = sum(self._blocks(max(t.written, t.prompt_tokens + t.generated)) for t in without)
        waiting += sum(n for t, n in self._new if n == self._ahead(t) != self._window(t))
        mark = self.kv_policy.settings.waiting_share * self._usable
        assert waiting + self._ahead(task) <= mark, "a prompt ran ahead beyond the share of those who wait"

    def _window_fits(self, task: Task) -> None:
        if isinstance(self.kv_policy, Pipelined) and task in self.kv_policy.lending.loan_of:
            assert self._total() <= self._open, "a guest was let in beyond the cache"
            self.lent += 1
            return
        total = self._total() - self._charge(task) + self._window(task)
        assert total <= self._open, f"windows of {total} blocks in {self._open}"

    def _reserve_fits(self, task: Task) -> None:
        # One more block of the layers that grow; a scheduler's own block size may be that of all layouts together.
        block = min(g.kv_cache_spec.block_size for g in self.s.kv_cache_config.kv_cache_groups)
        window = self._blocks(task.prompt_tokens + task.generated + block)
        assert self._total() - self._charge(task) + window <= self._usable, "the reserve was lent twice"

    # -- the pool

    def _pool_fits(self, task: Task) -> None:
        """A prompt was admitted: beside the holders that rank before it, it fits in all but some futures, and now."""
        policy, forecast = self.kv_policy, self.s.planner.forecast
        new = [t for t, _ in self._new]
        free = self._usable - self.ledger.held_blocks - sum(self._prompt(t) for t in new)
        need = self._prompt(task)
        assert need <= free - (self._usable - self._open), f"a prompt needs {need} blocks of {free} that are free"
        holders = [t for t in self.ledger.holders() if not t.idle]
        before = holders
        if not isinstance(policy, Pooled):
            places = policy.ordering.places([*holders, task], forecast.likely_rests([*holders, task]))
            mine = (task.priority, places[-1])
            before = [t for t, place in zip(holders, places[:-1], strict=True) if (t.priority, place) <= mine]
        own = sum(t.blocks - t.shared_blocks - t.passing_shared for t in holders)
        shared = max(0, self.ledger.held_blocks - own)
        near = 1.0 / (1.0 + forecast._steps / REACTION_STEPS)
        steps = np.inf if isinstance(policy, Pooled) else NEXT_STEPS
        z = deviations(policy.settings.epsilon) * near
        peak = shared + spread_peak(forecast, [*before, *new, task], z, steps)
        if not isinstance(policy, Pooled) and peak > self._open:
            # Let in all the same, if it fits even when no response ends.
            grown = [self._blocks(max(t.written, t.prompt_tokens + t.generated) + 11) for t in (*holders, *new, task)]
            peak = shared + sum(grown) - sum(t.shared_blocks for t in (*holders, *new, task))
        assert peak <= self._open + 1e-6, f"let in at a peak of {peak:.2f} blocks, above {self._open}"


def spread_peak(forecast: Forecast, tasks: list[Task], z: Any, within_steps: float) -> float:
    """Largest mean + z * sd of the blocks that ``tasks`` will have for themselves within some steps."""
    steps, grid = forecast._steps, forecast._grid
    mean, var, sd = (np.zeros(len(steps)) for _ in range(3))
    for task in tasks:
        table = task.lengths.survival_at(grid)
        alive = np.interp(task.generated + steps, grid, table)
        alive = np.clip(alive / max(alive[0], 1e-9), 0.0, 1.0)
        span = max(task.written, task.prompt_tokens + task.generated)
        kv_use = forecast.kv_use
        held = np.array([kv_use.blocks(int(span + n)) for n in steps], dtype=float)
        if task.state in (TaskState.WAITING, TaskState.PREFILL):
            held[0] = max(held[0], kv_use.prompt_blocks(span, task.settled))
        held = np.maximum(held - task.shared_blocks, 0.0)
        mean += alive * held
        var += alive * (1.0 - alive) * held**2
        sd += np.sqrt(alive * (1.0 - alive)) * held
    common = (1.0 - forecast.rho) * var + forecast.rho * sd**2
    return float((mean + z * np.sqrt(common))[steps <= within_steps].max())


# -- shortage ------------------------------------------------------------------------------------------------


class Shortage:
    """Looks at the state after a shortage was relieved."""

    def __init__(self, scheduler: Any) -> None:
        self.s = scheduler
        #: pauses that the shortage made, in this step
        self._new: list[str] = []
        self._relieve = scheduler.planner._relieve_shortage
        scheduler.planner._relieve_shortage = self._decides
        self._carry_out = scheduler._carry_out
        scheduler._carry_out = self._watched

    def _private(self, request: Any) -> int:
        managers = self.s.kv_cache_manager.coordinator.single_type_managers
        return sum(b.ref_cnt == 1 and not b.is_null for m in managers for b in m.req_to_blocks[request.request_id])

    def _needs(self, request: Any) -> int:
        """Blocks that a running request must get in this step; a prompt: those of its next chunk at most."""
        s = self.s
        if request.is_prefill_chunk:
            tokens = request.num_tokens + request.num_output_placeholders
            chunk = min(self._room, tokens - request.num_computed_tokens)
            self._room -= chunk
            tokens = request.num_computed_tokens + chunk
        else:
            most = min(request.num_prompt_tokens + request.max_tokens - 1, s.max_model_len)
            tokens = min(request.num_computed_tokens + 1, most)
        need = 0
        settled = request.num_computed_tokens - request.num_in_flight_tokens
        for m in s.kv_cache_manager.coordinator.single_type_managers:
            need += m.get_num_blocks_to_allocate(request.request_id, tokens, [], settled, settled, tokens)
            passed = m.req_to_blocks[request.request_id][: max(0, m.get_num_skipped_tokens(settled)) // m.block_size]
            need -= sum(b.ref_cnt == 1 and not b.is_null for b in passed)
        return max(0, need)

    def _decides(self, engine: Any, running: list[Task], plan: Any) -> None:
        before = len(plan.pause)
        self._relieve(engine, running, plan)
        self._new = plan.pause[before:]

    def _watched(self, plan: Any) -> None:
        s = self.s
        holders = [*s.running, *(r for r in s.kv_holding_waiting if r.request_id in s.paused_at)]
        private = {r.request_id: self._private(r) for r in holders}
        self._carry_out(plan)
        new, self._new = self._new, []
        self._room = (plan.token_budget or 0) - sum(not r.is_prefill_chunk for r in s.running)
        need = sum(self._needs(r) for r in s.running)
        assert need <= s.free_blocks, f"after relief {need} blocks are needed and {s.free_blocks} free"
        if not new:
            return
        held = sum(private[n] for n in s.paused_at)
        mark = s.settings.paused_share * s.usable_blocks
        candidates = [*s.running, *(s.requests[n] for n in s.paused_at)]
        stuck = len(candidates) == 1 or not any(private[r.request_id] for r in candidates)
        assert s.running or stuck, "every request was paused"
        assert held <= mark or stuck, f"paused decodes hold {held} blocks, above the mark of {mark}"


# -- the life of a request -------------------------------------------------------------------------------------


class Lives:
    """Follows every request from event to event; each event must be possible where the request is."""

    def __init__(self, scheduler: Any) -> None:
        self.s = scheduler
        #: request id -> waiting, running, or paused (KV kept)
        self.place: dict[str, str] = {}
        self.ended: dict[str, str] = {}
        #: paused decodes that were dropped, and that ended
        self.left_paused = 0
        self.pauses = 0
        self._log = scheduler.planner.recorder._log
        scheduler.planner.recorder = Recorder(scheduler.counters, scheduler._event_state, self._event)
        self._pause = scheduler.pause
        scheduler.pause = self._watched_pause
        self._preempt = scheduler._preempt_request
        scheduler._preempt_request = self._watched_preempt

    def arrives(self, name: str) -> None:
        """A request was given to the scheduler."""
        self.place[name] = "waiting"

    def _watched_pause(self, request: Any) -> None:
        name = request.request_id
        assert self.place[name] == "running", f"{name} is paused while it is {self.place[name]}"
        self._pause(request)
        self.place[name] = "paused"
        self.pauses += 1

    def _watched_preempt(self, request: Any, *args: Any, **kwargs: Any) -> None:
        name = request.request_id
        assert self.place[name] != "waiting", f"{name} is dropped and holds nothing"
        self.left_paused += self.place[name] == "paused"
        self._preempt(request, *args, **kwargs)
        self.place[name] = "waiting"

    def _event(self, event: Event) -> None:
        if self._log is not None:
            self._log(event)
        name = event.request
        if event.kind == "admitted":
            assert self.place[name] == "waiting", f"{name} is admitted while it is {self.place[name]}"
            self.place[name] = "running"
        elif event.kind == "resumed":
            assert self.place[name] == "paused", f"{name} is resumed while it is {self.place[name]}"
            self.place[name] = "running"
        elif event.kind in ("finished", "aborted"):
            assert name not in self.ended, f"{name} has {self.ended[name]} and now {event.kind}"
            self.ended[name] = event.kind
            self.left_paused += self.place.pop(name) == "paused"

    def check(self) -> None:
        """Between two calls: places as vLLM has them, and pauses that add up."""
        s = self.s
        waiting = {r.request_id for r in s.waiting}
        paused = {r.request_id for r in s.kv_holding_waiting}
        running = {r.request_id for r in s.running}
        assert len(waiting) + len(paused) + len(running) == len(s.requests), "a request is in two places or in none"
        assert waiting | paused | running == s.requests.keys() == self.place.keys(), "a request is lost"
        assert paused == s.paused_at.keys(), "who waits with KV is not who was paused"
        for name, place in self.place.items():
            seen = "waiting" if name in waiting else "paused" if name in paused else "running"
            assert place == seen, f"{name} should be {place} and is {seen}"
        for name in waiting:
            task = s.planner.ledger.tasks[name]
            assert not task.written, f"{name} waits, and {task.written} tokens are written in the ledger"
            assert not task.promised, f"{name} waits, and {task.promised} tokens are promised to it"
        status = {r.status for r in s.running} | {RequestStatus.RUNNING}
        assert status == {RequestStatus.RUNNING}
        c = s.counters
        assert c.pauses == self.pauses == c.resumes + self.left_paused + len(paused), "pauses do not add up"
        assert c.finished == len(self.ended)


# -- structures ----------------------------------------------------------------------------------------------


def check_structures(s: Any) -> None:
    """Queues, loans and the forecast's rows."""
    for queue in (s.waiting, s.kv_holding_waiting):
        members = list(queue)
        assert len(queue) == len(members) == len(set(members))
        lanes = queue._lanes.values()
        places = {request: entry for request, (entry, _) in queue._where.items()}
        assert places == {entry[2]: entry for entries in lanes for entry in entries}
        assert all(a[:2] <= b[:2] for entries in lanes for a, b in pairwise(entries)), "a queue is unsorted"
    planner = s.planner
    forecast, tasks = planner.forecast, planner.ledger.tasks
    rows = [t.row for t in tasks.values() if t.row >= 0]
    tables = forecast._alive
    assert sorted([*rows, *forecast._free_rows]) == list(range(len(tables))), "rows of the forecast do not add up"
    if isinstance(planner.kv_policy, Pipelined):
        check_loans(planner.kv_policy, tasks)


def check_loans(kv_policy: Pipelined, tasks: dict[str, Task]) -> None:
    """Both sides of every loan are alive and know of it; no stretch is lent twice."""
    lending = kv_policy.lending
    live = {loan.guest: loan for loans in lending.loans_in.values() for loan in loans if loan.live}
    assert live == lending.loan_of, "the two lists of loans differ"
    for host, loans in lending.loans_in.items():
        assert tasks.get(host.request_id) is host, f"{host.request_id} is gone and still lends"
        for before, after in pairwise(loans):
            assert before.end <= after.start, f"{host.request_id} has lent a stretch twice"
        for loan in loans:
            assert loan.host is host
            if not loan.live:
                continue
            assert tasks.get(loan.guest.request_id) is loan.guest, f"{loan.guest.request_id} is gone and still a guest"
            assert loan.start < loan.end <= max(host.promised, host.generated + 1), "lent beyond the host's window"
            assert 1 <= loan.level <= kv_policy.settings.lending_depth
