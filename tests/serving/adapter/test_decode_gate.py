"""prefill to decode: with the gate shut prompts prefill, give one token each, and wait holding KV that counts at
admission.
"""

from __future__ import annotations

import math

import pytest
from virtual_rig import ByHand, Case, Spec, play, scheduler_for

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core import keys
from ecoserve.serving.core.tasks import TaskState
from ecoserve.serving.simulate.engine import make_request

PROMPT = 30  # two blocks, and room for one token more
BLOCKS = 60


class Gate:
    """The decode gate of a scheduler, shut until :meth:`open`."""

    def __init__(self, hand: ByHand) -> None:
        s = hand.scheduler
        self.scheduler = s
        s.planner.kv_policy.admits_decode = lambda task: False
        s.planner.kv_policy.admits_new_decode = lambda task: False
        s.planner._alone = lambda task, running: False
        self._generation_gate = s.kv_holding_waiting._gate
        s.kv_holding_waiting._gate = lambda request: False

    def open(self) -> None:
        """Give the scheduler its gate back."""
        s = self.scheduler
        del s.planner.kv_policy.admits_decode, s.planner.kv_policy.admits_new_decode, s.planner._alone
        s.kv_holding_waiting._gate = self._generation_gate


def engine(policy: str, depth: int, count: int, length: int, **knobs: float) -> ByHand:
    """A scheduler with ``count`` prompts of two blocks, each with a true prediction of ``length`` tokens."""
    case = Case(
        (),
        policy=policy,
        blocks=BLOCKS,
        max_model_len=16 * BLOCKS,
        max_num_seqs=64,
        max_num_batched_tokens=4096,
        runner=depth,
        knobs=tuple(knobs.items()),
    )
    hand = ByHand(scheduler_for(case), {f"r{i}": length for i in range(count)})
    extra = {keys.LENGTHS: LengthDistribution.point(length).to_wire()}
    for i in range(count):
        hand.scheduler.add_request(make_request(f"r{i}", [100 + i] * PROMPT, 900, 0.0, extra))
    return hand


def run(hand: ByHand, depth: int, steps: int) -> None:
    """``steps`` steps with ``depth`` of them in flight."""
    for _ in range(steps):
        hand.schedule()
        if len(hand.flights) >= depth:
            hand.finish()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("policy", ["ecoserve", "ecoserve-exact", "ecoserve-d"])
def test_prompts_wait_at_the_gate_with_one_token_and_their_kv(policy: str, depth: int) -> None:
    hand = engine(policy, depth, count=5, length=60)
    gate = Gate(hand)
    run(hand, depth, 12)
    s = hand.scheduler
    assert hand.tokens == {f"r{i}": 1 for i in range(5)}
    assert not s.running
    assert {r.request_id for r in s.kv_holding_waiting} == set(hand.answers)
    assert all(t.state is TaskState.PAUSED for t in s.planner.ledger.tasks.values())
    assert all(len(b) == 2 for b in s.kv_layout.ids().values())
    assert s.planner.ledger.held_blocks == 10
    s.check()
    gate.open()
    hand.drain()
    assert hand.tokens == hand.answers
    assert s.counters.recomputed_tokens == 0
    assert s.free_blocks == s.usable_blocks


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(("share", "waiting"), [(0.25, 7), (0.1, 3), (0.5, 15)])
def test_what_waits_at_the_gate_counts_when_exact_admits_prompts(depth: int, share: float, waiting: int) -> None:
    """No promise fits, so prompts of two blocks run ahead, as many as ``waiting_share`` of 60 blocks has room for."""
    hand = engine("ecoserve-exact", depth, count=20, length=900, waiting_share=share, reserve=0.05)
    s = hand.scheduler
    gate = Gate(hand)
    run(hand, depth, 60)
    assert not s.running
    assert len(s.kv_holding_waiting) == waiting
    assert len(s.waiting) == 20 - waiting
    assert hand.tokens == {r.request_id: 1 for r in s.kv_holding_waiting}
    # Requests that wait at the gate do not resume, so no other is admitted, however long it takes.
    run(hand, depth, 30)
    assert len(s.kv_holding_waiting) == waiting
    gate.open()
    hand.answers = dict.fromkeys(hand.answers, 5)
    hand.drain()
    assert hand.tokens == hand.answers


@pytest.mark.parametrize("depth", [1, 2])
def test_what_waits_at_the_gate_counts_when_pooled_admits_prompts(depth: int) -> None:
    hand = engine("ecoserve", depth, count=20, length=200, reserve=0.0, kv_policy="pooled")
    s = hand.scheduler
    gate = Gate(hand)
    run(hand, depth, 60)
    waiting = len(s.kv_holding_waiting)
    # Each will hold at most 15 blocks; those who wait have one token and still count with all they will want.
    assert waiting == BLOCKS // math.ceil((PROMPT + 199) / 16)
    assert len(s.waiting) == 20 - waiting
    gate.open()
    hand.drain(5000)
    assert hand.tokens == hand.answers


@pytest.mark.parametrize("depth", [1, 2])
def test_the_gate_lets_those_through_whose_promises_fit(depth: int) -> None:
    """Five want 27 blocks each of 60: two decode, the others wait at the gate, and all get there."""
    hand = engine("ecoserve-exact", depth, count=5, length=380, padding=0.0, waiting_share=1.0, reserve=0.0)
    s = hand.scheduler
    most = 0
    for _ in range(5000):
        if not s.has_requests():
            break
        run(hand, depth, 1)
        going = [t for t in s.planner.ledger.tasks.values() if t.state is TaskState.DECODE and t.promised]
        most = max(most, len(going))
        assert sum(s.planner.ledger.promised_blocks(t) for t in s.planner.ledger.holders()) <= BLOCKS
    hand.drain()
    assert most == 2
    assert hand.tokens == hand.answers
    assert s.counters.preemptions == 0


@pytest.mark.parametrize(("policy", "most_s"), [("ecoserve", 12.0), ("ecoserve-d", 30.0)])
def test_who_waits_at_the_gate_is_not_passed_by_for_ever(policy: str, most_s: float) -> None:
    """A long decode (8 s alone) beside a stream of short prompts, three to four of which run at any time for 60 s."""
    long = Spec(prompt=PROMPT, answer=600, max_tokens=1000)
    short = Spec(gap_s=0.3, prompt=PROMPT, answer=80, max_tokens=1000)
    case = Case(
        (*[short] * 5, long, *[short] * 205),
        policy=policy,
        blocks=BLOCKS,
        max_model_len=16 * BLOCKS,
        max_num_seqs=64,
        max_num_batched_tokens=4096,
    )
    rows = play(case).result.rows
    assert rows[-1].arrival_s > 60
    assert rows[5].e2el_s is not None
    assert rows[5].e2el_s < most_s
