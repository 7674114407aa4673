"""Our scheduler driven one call at a time, everything that must hold checked after every call.

:class:`Driven` is the engine around it: it hands over requests, schedules, gives outputs back at depth 1 or 2, aborts,
and lets time pass. It keeps its own account of every request, so that one that is lost, ends twice or gets the wrong
number of tokens is found at once, and a run without progress is found soon.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import asdict
from typing import Any

from audits import Admission, Lives, Shortage, check_structures
from virtual_rig import (
    ByHand,
    Case,
    Spec,
    StrictWorker,
    check_empty,
    expected_tokens,
    length_args,
    prompt_of,
    scheduler_for,
)
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import RequestStatus

from ecoserve.serving.simulate.engine import make_request

#: Seconds that a step takes, and so many steps in a row may schedule nothing while requests wait: who was paused comes
#: back a step later at the earliest.
STEP_S = 0.02
IDLE_STEPS = 3

#: So many steps in a row may give no token: prompts are computed in pieces of 8 tokens at least, 1000 tokens at most.
BARREN_STEPS = 500


class HandClock:
    """The scheduler's clock, set by hand."""

    def __init__(self) -> None:
        self.at_s = 0.0

    def now(self) -> float:
        """Seconds."""
        return self.at_s

    def arrival(self, arrival_time: float) -> float:
        """The request's own clock is this one."""
        return arrival_time


class Driven(ByHand):
    """One scheduler of ours, and all that is known of its requests.

    Args:
        case: the engine and its settings; the case's own requests are not used.
        long_prefill: vLLM's long_prefill_token_threshold, 0 for none.
    """

    def __init__(self, case: Case, long_prefill: int = 0) -> None:
        super().__init__(scheduler_for(case), {})
        self.case = case
        s = self.scheduler
        s.scheduler_config.long_prefill_token_threshold = long_prefill
        self.clock = s.clock = HandClock()
        self.worker = StrictWorker(case, s)
        self.admission = Admission(s)
        self.shortage = Shortage(s)
        self.lives = Lives(s)
        self.due: dict[str, int] = {}
        self.aborted: set[str] = set()
        self.finished: set[str] = set()
        self.resets = 0
        self.idle = 0
        self.barren = 0
        self.happened: Counter[str] = Counter()
        self._asked: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._count = 0

    # -- what may happen -------------------------------------------------------------------------------

    def add(self, spec: Spec, siblings: int = 1) -> None:
        """Hand over a request, or several of one prompt that share a prediction."""
        index = self._count
        case = self.case
        extra = length_args(spec, spec.predicted_answer or spec.answer)
        if extra is not None:
            self._asked.append((extra, copy.deepcopy(extra)))
        for _ in range(siblings):
            name = f"r{self._count}"
            self._count += 1
            self.answers[name] = spec.answer
            self.due[name] = expected_tokens(case, spec)
            self.lives.arrives(name)
            request = make_request(
                name,
                prompt_of(index, spec),
                spec.max_tokens,
                self.clock.at_s,
                extra,
                priority=spec.priority,
                block_size=case.block_size if case.prefix_caching else None,
            )
            self.scheduler.add_request(request)
        self.check()

    def start(self) -> None:
        """A step is scheduled, as a worker would see it."""
        assert len(self.flights) < self.case.depth
        flying = bool(self.flights)
        scheduled = self.schedule()
        s = self.scheduler
        self.worker.execute(self.last)
        self.clock.at_s += STEP_S
        assert sum(scheduled.values()) <= self.case.max_num_batched_tokens
        assert len(s.running) <= self.case.max_num_seqs
        assert not scheduled.keys() & (self.aborted | self.finished), "who has ended is scheduled"
        for name in s.paused_at:
            assert name not in scheduled, f"{name} is paused and scheduled"
        self.idle = 0 if scheduled or flying or not s.has_unfinished_requests() else self.idle + 1
        assert self.idle <= IDLE_STEPS, f"{len(s.requests)} requests wait and nothing is scheduled"
        self.barren += 1
        assert self.barren <= BARREN_STEPS, f"{self.barren} steps and not one token has come out"
        self.check()

    def take(self) -> None:
        """The oldest step's output comes."""
        for out in self.finish():
            name = out.request_id
            self.barren = 0
            assert name not in self.aborted, f"{name} was aborted and gives a token"
            assert name not in self.finished, f"{name} has finished and gives a token"
            if out.finish_reason is not None:
                self.finished.add(name)
                tokens = self.tokens.get(name, 0)
                assert tokens == self.due[name], f"{name} has {tokens} of {self.due[name]} tokens"
        self.check()

    def step(self) -> dict[str, int]:
        """A step is started, and outputs are taken as vLLM's engine core would."""
        while len(self.flights) >= self.case.depth:
            self.take()
        self.start()
        scheduled = dict(self.last.num_scheduled_tokens)
        if len(self.flights) >= self.case.depth or not scheduled:
            self.take()
        return scheduled

    def abort(self, name: str) -> None:
        """The client goes away."""
        request = self.scheduler.requests[name]
        paused = name in self.scheduler.paused_at
        self.happened["aborts"] += 1
        self.happened["aborts of paused"] += paused
        self.happened["aborts of paused with output under way"] += paused and request.num_in_flight_tokens > 0
        gone = self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        assert [r.request_id for r in gone] == [name]
        self.aborted.add(name)
        self.check()

    def end_soon(self, name: str) -> None:
        """The next token of this response is its last."""
        request = self.scheduler.requests[name]
        self.answers[name] = 1
        self.due[name] = min(self.due[name], request.num_output_tokens + 1)

    def reset(self) -> None:
        """vLLM's prefix cache is reset, running requests included."""
        self.resets += 1
        assert self.scheduler.reset_prefix_cache(reset_running_requests=True)
        self.check()

    def drain_only(self, on: bool) -> None:
        """While on, vLLM starts no request."""
        self.scheduler.set_pause_state(PauseState.PAUSED_NEW if on else PauseState.UNPAUSED)

    # -- what must hold -----------------------------------------------------------------------------------

    def alive(self) -> list[str]:
        """Requests that have not ended, oldest first."""
        return list(self.scheduler.requests)

    def check(self) -> None:
        """Everything that must hold between two calls."""
        s = self.scheduler
        s.check()
        self.lives.check()
        check_structures(s)
        assert {n for n, kind in self.lives.ended.items() if kind == "finished"} == self.finished
        assert {n for n, kind in self.lives.ended.items() if kind == "aborted"} == self.aborted
        c = s.counters
        assert self.resets or c.preemptions == c.shortage_preemptions, "vLLM had to preempt by itself"
        assert c.predictions_used + c.predictions_missing == self._count

    def run_out(self) -> None:
        """Serve the rest, and see that nothing is left behind."""
        self.drain_only(False)
        s = self.scheduler
        left = sum(r.num_prompt_tokens + self.due[r.request_id] for r in s.requests.values())
        most = 200 + 30 * left
        steps = 0
        while s.has_requests() or self.flights:
            steps += 1
            assert steps < most, f"{steps} steps for {left} tokens: nothing gets done"
            if s.has_requests():
                self.step()
            else:
                self.take()
        assert self.due.keys() == self.finished | self.aborted, "a request is lost"
        assert not self.finished & self.aborted
        check_empty(s)
        assert s.counters.finished == self._count
        for extra, before in self._asked:
            assert repr(extra) == repr(before), "what a client asked was changed"

    def totals(self) -> Counter[str]:
        """What happened, for the sums of a soak."""
        out = Counter(asdict(self.scheduler.counters))
        out.update(self.happened)
        out.update(
            {
                "runs": 1,
                "requests": self._count,
                "admissions audited": self.admission.seen,
                "loans": self.admission.lent,
            }
        )
        return out
