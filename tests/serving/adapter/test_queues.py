"""What vLLM's ``schedule()`` relies on in a queue, for the queues we put in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ecoserve.serving.adapter.queues import GatedQueue


@dataclass(eq=False)
class Item:
    """As much of a request as a queue looks at."""

    request_id: str
    key: tuple[float, ...] = (0.0,)
    blocked: bool = False
    eligible: bool = True

    def __repr__(self) -> str:
        return self.request_id


class Rig:
    """A queue with a gate that can be shut, and a count of how often it is asked."""

    def __init__(self) -> None:
        self.open = True
        self.asked: list[Item] = []
        self.taken: list[Item] = []
        self.queue = GatedQueue(
            key=lambda r: r.key,
            gate=self._gate,
            eligible=lambda r: r.eligible,
            blocked=lambda r: r.blocked,
            taken=self.taken.append,
        )

    def _gate(self, item: Any) -> bool:
        self.asked.append(item)
        return self.open

    def add(self, *items: Item) -> tuple[Item, ...]:
        for item in items:
            self.queue.add_request(item)  # type: ignore[arg-type]
        return items

    def order(self) -> list[Any]:
        return list(self.queue)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def items(*keys: float) -> list[Item]:
    return [Item(f"i{n}", (key,)) for n, key in enumerate(keys)]


def test_they_come_out_by_key_and_equals_in_the_order_they_came(rig: Rig) -> None:
    a, b, c, d = rig.add(*items(2, 1, 2, 1))
    assert rig.order() == [b, d, a, c]
    assert [rig.queue.pop_request() for _ in range(4)] == [b, d, a, c]
    assert rig.taken == [b, d, a, c]
    assert not rig.queue


def test_the_gate_is_asked_once_until_something_changes(rig: Rig) -> None:
    (a,) = rig.add(*items(1))
    assert [bool(rig.queue) for _ in range(5)] == [True] * 5
    assert rig.queue.peek_request() is a
    assert rig.queue.pop_request() is a
    assert rig.asked == [a]


def test_the_verdict_stands_for_the_step_even_if_the_gate_moves(rig: Rig) -> None:
    rig.add(*items(1))
    assert rig.queue
    rig.open = False
    assert rig.queue
    rig.queue.new_step()
    assert not rig.queue


def test_a_shut_gate_hides_the_queue_but_not_its_length(rig: Rig) -> None:
    a, b = rig.add(*items(1, 2))
    rig.open = False
    rig.queue.new_step()
    assert not rig.queue
    assert len(rig.queue) == 2
    assert rig.order() == [a, b]
    assert a in rig.queue
    with pytest.raises(IndexError):
        rig.queue.peek_request()
    with pytest.raises(IndexError):
        rig.queue.pop_request()
    assert rig.taken == []


def test_only_the_head_is_asked_about(rig: Rig) -> None:
    a, _, _ = rig.add(*items(1, 2, 3))
    rig.open = False
    rig.queue.new_step()
    assert not rig.queue
    assert rig.asked == [a]


def test_who_is_not_eligible_is_passed_over(rig: Rig) -> None:
    a, b = rig.add(*items(1, 2))
    a.eligible = False
    assert rig.queue.pop_request() is b
    assert not rig.queue
    assert rig.asked == [b]
    a.eligible = True
    rig.queue.new_step()
    assert rig.queue.pop_request() is a


def test_who_vllm_must_look_at_is_never_hidden_and_asks_no_gate(rig: Rig) -> None:
    grammar = Item("grammar", (9.0,), blocked=True, eligible=False)
    rig.add(*items(1), grammar)
    rig.open = False
    assert rig.queue.pop_request() is grammar
    assert rig.asked == []
    assert rig.taken == []


def test_skipped_requests_are_put_back_in_their_places(rig: Rig) -> None:
    """vLLM pops those it skips and puts them back last first."""
    every = rig.add(*items(1, 1, 1, 2, 2), Item("blocked", blocked=True))
    for item in every:
        item.key = (*item.key, float(every.index(item)))  # the scheduler's keys end in a number of their own
    rig = Rig()
    rig.add(*every)
    before = rig.order()
    skipped = [rig.queue.pop_request() for _ in range(4)]
    rig.queue.prepend_requests(reversed(skipped))
    assert rig.order() == before


def test_who_is_ready_now_takes_his_place_in_the_order(rig: Rig) -> None:
    ready = Item("ready", (2.0,), blocked=True)
    a, b = rig.add(*items(1, 3))
    rig.add(ready)
    assert rig.queue.peek_request() is ready
    ready.blocked = False
    rig.queue.new_step()
    assert rig.order() == [a, ready, b]
    assert rig.queue.peek_request() is a


def test_who_becomes_ready_while_vllm_looks_at_him_is_put_back_in_order(rig: Rig) -> None:
    ready = Item("ready", (2.0,), blocked=True)
    a, b = rig.add(*items(1, 3))
    rig.add(ready)
    assert rig.queue.peek_request() is ready
    ready.blocked = False  # vLLM found his grammar compiled
    assert rig.queue.pop_request() is ready
    assert rig.taken == []
    rig.queue.prepend_requests([ready])  # type: ignore[list-item]
    assert rig.order() == [a, ready, b]


def test_those_who_are_not_here_are_no_error_in_bulk_but_are_one_by_one(rig: Rig) -> None:
    a, b = rig.add(*items(1, 2))
    stranger = Item("stranger")
    rig.queue.remove_requests([stranger, a, stranger])  # type: ignore[list-item]
    assert rig.order() == [b]
    with pytest.raises(ValueError, match="request stranger is not in the queue"):
        rig.queue.remove_request(stranger)  # type: ignore[arg-type]


def test_the_blocked_can_be_removed(rig: Rig) -> None:
    (one,) = rig.add(Item("one", blocked=True))
    rig.queue.remove_requests([one])  # type: ignore[list-item]
    assert len(rig.queue) == 0
    assert not rig.queue


def test_added_twice_he_is_here_once(rig: Rig) -> None:
    one, other = rig.add(*items(1, 2))
    one.key = (3.0,)
    rig.add(one)
    assert rig.order() == [other, one]
    one.blocked = True
    rig.add(one)
    assert len(rig.queue) == 2
    assert rig.queue.pop_request() is one
    assert rig.order() == [other]


def test_a_key_is_asked_for_once(rig: Rig) -> None:
    a, b = rig.add(*items(1, 2))
    a.key = (5.0,)
    assert rig.order() == [a, b]
    rig.queue.remove_request(a)  # type: ignore[arg-type]
    assert rig.order() == [b]


class AnyUse(RuleBasedStateMachine):
    """Any sequence of calls, against a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.rig = Rig()
        self.here: list[Item] = []
        self.gone: list[Item] = []
        self.count = 0

    def expected_head(self) -> Item | None:
        blocked = [i for i in self.rig.order() if i.blocked]
        if blocked:
            return blocked[0]
        ready = sorted((i for i in self.here if i.eligible), key=lambda i: i.key)
        return ready[0] if ready and self.rig.open else None

    @rule(key=st.integers(0, 5), blocked=st.booleans(), eligible=st.booleans())
    def add(self, key: int, blocked: bool, eligible: bool) -> None:
        self.count += 1
        item = Item(f"i{self.count}", (float(key), float(self.count)), blocked, eligible)
        self.rig.add(item)
        self.here.append(item)

    @precondition(lambda self: self.gone)
    @rule(data=st.data())
    def put_back(self, data: st.DataObject) -> None:
        some = data.draw(st.lists(st.sampled_from(self.gone), unique=True))
        self.rig.queue.prepend_requests(some)  # type: ignore[arg-type]
        self.here += some
        self.gone = [i for i in self.gone if i not in some]

    @rule()
    def pop(self) -> None:
        if self.rig.queue:
            item: Any = self.rig.queue.pop_request()
            self.here.remove(item)
            self.gone.append(item)

    @precondition(lambda self: self.here)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        some = data.draw(st.lists(st.sampled_from(self.here + self.gone), unique=True))
        self.rig.queue.remove_requests(some)  # type: ignore[arg-type]
        self.gone += [i for i in some if i in self.here]
        self.here = [i for i in self.here if i not in some]

    @precondition(lambda self: self.here)
    @rule(data=st.data(), shut=st.booleans(), change=st.sampled_from(["eligible", "blocked", "none"]))
    def next_step(self, data: st.DataObject, shut: bool, change: str) -> None:
        """Between steps the world moves on: a request becomes ready, the gate opens or shuts."""
        item = data.draw(st.sampled_from(self.here))
        if change == "eligible":
            item.eligible = not item.eligible
        elif change == "blocked":
            item.blocked = False
        self.rig.open = not shut
        self.rig.queue.new_step()

    @invariant()
    def agrees(self) -> None:
        queue, head = self.rig.queue, self.expected_head()
        assert len(queue) == len(self.here)
        assert set(queue) == set(self.here)  # type: ignore[comparison-overlap]
        ordered = [i for i in self.rig.order() if not i.blocked]
        assert ordered == sorted(ordered, key=lambda i: i.key)
        assert bool(queue) is (head is not None)
        if head is not None:
            assert queue.peek_request() is head
        assert all(i in queue for i in self.here)
        assert not any(i in queue for i in self.gone)


AnyUse.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, derandomize=True)
TestAnyUse: Callable[..., Any] = AnyUse.TestCase
