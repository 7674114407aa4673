"""Any sequence of calls on any small engine of ours, as a hypothesis state machine, and the loop that soaks it.

A run draws an engine (policy, knobs, depth, runner, prefix cache, chunks, watermark, 12 to 60 blocks), then calls:
requests come, steps are started and their outputs taken in any order that the depth allows, clients go away, answers
end early, time passes, the prefix cache is reset, vLLM drains. :class:`~stateful_rig.Driven` checks after every call;
at the end all that is left is served. A run that fails is made as small as it gets and printed as a program.
"""

from __future__ import annotations

import contextlib
import io
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from stateful_rig import Driven
from virtual_rig import LAYOUTS, SOURCES, Case, Spec, random_case, same

#: More unfinished requests than this are not needed to fill any of these engines.
CROWD = 40

#: Calls of one run, and runs of one seed.
CALLS = 60
RUNS = 40


def engines(**fixed: Any) -> st.SearchStrategy[Case]:
    """Engines and settings without requests; ``fixed`` fields of the case are not drawn."""

    def engine(number: int) -> Case:
        more = random.Random(number)
        layout = random.Random(f"{number} layout").choice(list(LAYOUTS)) if number % 2 else "full"
        case = random_case(number, most=1, aborts=False, **{"layout": layout, **fixed})
        knobs = dict(case.knobs) | {
            "paused_share": more.choice([0.02, 0.02, 0.0, 0.25, 1.0]),
        }
        if number % 4 == 0 and "policy" not in fixed and "knobs" not in fixed:
            # Lending needs long windows beside short ones and little between them: drawn freely it hardly ever happens.
            knobs.pop("kv_policy", None)
            case = same(case, policy="ecoserve-paper")
            knobs |= {"buffer_tokens": 0, "lending_depth": 3}
        elif number % 4 == 2 and "policy" not in fixed and "knobs" not in fixed:
            # The policy that serves by default.
            knobs.pop("kv_policy", None)
            case = same(case, policy="ecoserve")
        return same(case, specs=(), resets=(), knobs=tuple(knobs.items()))

    return st.integers(0, 2**32 - 1).map(engine)


@st.composite
def wishes(draw: st.DrawFn) -> dict[str, Any]:
    """A request, its lengths as shares (per mille) of the longest sequence that the engine allows."""
    return {
        "prompt": draw(st.one_of(st.integers(1, 250), st.integers(1, 250), st.integers(1, 999))),
        "answer": draw(st.one_of(st.integers(1, 300), st.integers(1, 300), st.integers(1, 1000))),
        "most": draw(st.sampled_from([1000, 1000, 1000, 4000, 100, 0])),
        "source": draw(st.sampled_from(SOURCES)),
        "noise": draw(st.sampled_from([1.0, 0.25, 0.6, 1.7, 4.0])),
        "priority": draw(st.sampled_from([0, 0, 0, 1, -3])),
        "group": draw(st.integers(0, 2)),
        "shared": draw(st.sampled_from([0, 500, 1000])),
        "slo_s": draw(st.sampled_from([None, None, 0.02, 0.3, 5.0])),
    }


def spec_of(wish: dict[str, Any], longest: int) -> Spec:
    """The request for an engine whose sequences have at most ``longest`` tokens."""

    def tokens(share: int) -> int:
        return max(1, share * longest // 1000)

    prompt = min(tokens(wish["prompt"]), longest - 1)
    return Spec(
        prompt=prompt,
        answer=tokens(wish["answer"]),
        max_tokens=tokens(wish["most"]),
        source=wish["source"],
        noise=wish["noise"],
        priority=wish["priority"],
        group=wish["group"],
        shared=wish["shared"] * prompt // 1000,
        slo_s=wish["slo_s"],
    )


class EcoServeMachine(RuleBasedStateMachine):
    """The calls. ``fixed`` fields of the engine are not drawn; ``tell`` is given the sums of every run that passed."""

    fixed: dict[str, Any] = {}  # noqa: RUF012 - set on subclasses only
    rig: type[Driven] = Driven
    tell: Callable[[Case, Counter[str]], None] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.driven: Driven | None = None
        self.failed = False

    @initialize(data=st.data(), long_prefill=st.sampled_from([0, 0, 0, 16, 40]))
    def build(self, data: st.DataObject, long_prefill: int) -> None:
        """An engine."""
        case = data.draw(engines(**self.fixed), label="engine")
        note(repr(case))
        self.driven = self.rig(case, long_prefill)
        self.draining = False

    def _do(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except BaseException:
            self.failed = True
            raise

    def _pick(self, names: list[str], which: int) -> str:
        return names[which % len(names)]

    @property
    def d(self) -> Driven:
        """The engine, once there is one."""
        assert self.driven is not None
        return self.driven

    @precondition(lambda self: len(self.d.alive()) < CROWD)
    @rule(batch=st.lists(wishes(), min_size=2, max_size=8), siblings=st.sampled_from([1, 1, 1, 2, 4]))
    def come(self, batch: list[dict[str, Any]], siblings: int) -> None:
        """Requests arrive; those of the first prompt may be several (n > 1)."""
        for i, wish in enumerate(batch):
            spec = spec_of(wish, self.d.case.max_model_len)
            self._do(lambda s=spec, n=siblings if i == 0 else 1: self.d.add(s, n))

    @precondition(lambda self: len(self.d.alive()) < CROWD)
    @rule(number=st.integers(0, 2**32 - 1))
    def crowd_comes(self, number: int) -> None:
        """Many requests arrive at once: a load of the other rig."""
        longest = self.d.case.max_model_len
        for spec in random_case(number, most=24).specs:
            self._do(lambda s=spec: self.d.add(replace(s, prompt=min(s.prompt, longest - 1))))

    @rule(count=st.integers(1, 16))
    def steps(self, count: int) -> None:
        """Steps as vLLM's engine core does them."""
        for _ in range(count):
            if not self.d.scheduler.has_requests():
                return
            self._do(self.d.step)

    @precondition(lambda self: len(self.d.flights) < self.d.case.depth and self.d.scheduler.has_requests())
    @rule()
    def start(self) -> None:
        """A step starts; its output stays under way."""
        self._do(self.d.start)

    @precondition(lambda self: bool(self.d.flights))
    @rule()
    def take(self) -> None:
        """The oldest output comes."""
        self._do(self.d.take)

    @precondition(lambda self: bool(self.d.alive()))
    @rule(
        who=st.sampled_from(["anybody", "waiting", "running", "paused", "paused, output under way"]),
        which=st.integers(0, CROWD),
    )
    def abort(self, who: str, which: int) -> None:
        """A client goes away."""
        s = self.d.scheduler
        paused = [r for r in s.kv_holding_waiting if r.request_id in s.paused_at]
        of = {
            "waiting": list(s.waiting),
            "running": list(s.running),
            "paused": paused,
            "paused, output under way": [r for r in paused if r.num_in_flight_tokens],
        }.get(who) or list(s.requests.values())
        self._do(lambda: self.d.abort(self._pick([r.request_id for r in of], which)))

    @precondition(lambda self: self.d.case.depth > 1)
    @rule(count=st.integers(1, 32))
    def abort_at_pause(self, count: int) -> None:
        """A client goes away while its decode is paused and a token of it is under way."""
        for _ in range(count):
            while len(self.d.flights) >= self.d.case.depth:
                self._do(self.d.take)
            if not self.d.scheduler.has_requests():
                return
            self._do(self.d.start)
            for name in list(self.d.scheduler.paused_at):
                if self.d.scheduler.requests[name].num_in_flight_tokens:
                    self._do(lambda n=name: self.d.abort(n))
                    return

    @precondition(lambda self: bool(self.d.alive()))
    @rule(which=st.integers(0, CROWD))
    def ends_early(self, which: int) -> None:
        """A response ends at its next token, whatever was expected."""
        self.d.end_soon(self._pick(self.d.alive(), which))

    @rule(seconds=st.sampled_from([0.001, 0.1, 1.0, 30.0, 200.0]))
    def time_passes(self, seconds: float) -> None:
        """Nothing happens for a while."""
        self.d.clock.at_s += seconds

    @precondition(lambda self: len(self.d.alive()) > 0)
    @rule(sure=st.sampled_from([False, False, False, True]))
    def reset_prefix_cache(self, sure: bool) -> None:
        """vLLM's prefix cache is reset under load (weights were updated)."""
        if sure:
            self._do(self.d.reset)

    @rule(on=st.sampled_from([False, False, True]))
    def drain(self, on: bool) -> None:
        """vLLM starts no request for a while."""
        self.d.drain_only(on)

    def teardown(self) -> None:
        """Serve the rest."""
        if self.driven is None or self.failed:
            return
        self.driven.run_out()
        tell = type(self).tell
        if tell is not None:
            tell(self.driven.case, self.driven.totals())


def soak_once(
    number: int, shrink: bool = True, runs: int = RUNS, rig: type[Driven] = Driven, **fixed: Any
) -> tuple[Counter[str], list[Case]]:
    """The runs of one seed; the same seed gives the same runs.

    Args:
        number: the seed.
        shrink: make a run that fails as small as it gets.
        runs: how many. rig: what drives the engine. fixed: fields of the engine that are not drawn.

    Returns:
        the sums of what happened, and the engines.

    Raises:
        AssertionError, LedgerError, WorkerError or whatever went wrong, with the smallest program that shows it in its
        notes.
    """
    sums: Counter[str] = Counter()
    cases: list[Case] = []

    def tell(case: Case, totals: Counter[str]) -> None:
        sums.update(totals)
        cases.append(case)

    machine = type("EcoServeMachine", (EcoServeMachine,), {"fixed": fixed, "rig": rig, "tell": staticmethod(tell)})
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    chosen = settings(
        max_examples=runs,
        stateful_step_count=CALLS,
        deadline=None,
        database=None,
        derandomize=False,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            run_state_machine_as_test(seed(number)(machine), settings=chosen)
    except BaseException as error:
        error.add_note(f"seed {number}, fixed {fixed}\n{printed.getvalue()}")
        raise
    return sums, cases
