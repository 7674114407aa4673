"""What a queue does in a step does not grow with the requests in it: keys, heads, lanes (LoRA adapters)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from ecoserve.serving.adapter.queues import CHANGED_COST, FRONT, HEADS, REKEYED, GatedQueue


@dataclass(eq=False)
class Item:
    request_id: str
    rank: float
    lane: int = 0
    eligible: bool = True


class Rig:
    """A queue that counts what it asks; keys are ``sign`` times the item's rank."""

    def __init__(self, moves: bool = False) -> None:
        self.sign = 1.0
        self.moves = moves
        self.open: set[int] = {0, 1, 2}
        self.asked = {"key": 0, "gate": 0, "eligible": 0, "is_open": 0}
        self.queue = GatedQueue(
            key=lambda r: (self.count("key", self.sign * r.rank),),
            gate=lambda _: self.count("gate", True),
            eligible=lambda r: self.count("eligible", r.eligible),
            blocked=lambda _: False,
            taken=lambda _: None,
            moves=lambda: self.moves,
            lane=lambda r: r.lane,
            is_open=lambda lane: self.count("is_open", lane in self.open),
        )

    def count(self, what: str, answer: Any) -> Any:
        self.asked[what] += 1
        return answer

    def add(self, count: int, lane: int = 0) -> list[Item]:
        items = [Item(f"l{lane}-{i}", float(i), lane) for i in range(count)]
        for item in items:
            self.queue.add_request(item)  # type: ignore[arg-type]
        return items

    def step(self) -> dict[str, int]:
        """What one step asks, with a search for the head."""
        self.asked = dict.fromkeys(self.asked, 0)
        self.queue.new_step()
        bool(self.queue)
        return self.asked

    def order(self) -> list[Any]:
        return list(self.queue)


def test_keys_that_do_not_move_are_not_asked_for_again() -> None:
    rig = Rig()
    rig.add(500)
    assert [rig.step()["key"] for _ in range(5)] == [0] * 5


@pytest.mark.parametrize("count", [10, 100, 5000])
def test_keys_that_move_are_computed_for_a_few_requests_a_step(count: int) -> None:
    rig = Rig(moves=True)
    items = rig.add(count)
    rig.sign = -1.0
    steps = -(-count // (REKEYED - FRONT)) + 1
    assert max(rig.step()["key"] for _ in range(steps)) <= REKEYED + HEADS
    assert rig.order() == items[::-1], "every key is computed anew within count / (REKEYED - FRONT) steps"


def test_after_a_change_of_all_keys_fewer_are_computed_a_step_and_then_none() -> None:
    rig = Rig()
    items = rig.add(1000)
    rig.sign = -1.0
    rig.queue.rekey()
    asked = [rig.step()["key"] for _ in range(1200)]
    assert max(asked) <= REKEYED // CHANGED_COST + HEADS
    assert sum(asked) == 1000, "each once"
    assert asked[-1] == 0
    assert rig.order() == items[::-1]


def test_those_at_the_front_get_their_new_place_first() -> None:
    rig = Rig()
    items = rig.add(2000)
    for late in range(10):
        items[late].rank = 5000.0 + late
    rig.queue.rekey()
    rig.step()
    assert rig.queue.peek_request() is items[10]


def test_a_request_gets_its_new_key_before_it_is_offered() -> None:
    rig = Rig(moves=True)
    a, b, _ = rig.add(3)
    rig.step()
    a.rank = 1.5
    rig.step()
    assert rig.queue.pop_request() is b
    assert rig.queue.pop_request() is a


def test_a_search_for_the_head_ends_though_every_head_moves() -> None:
    rig = Rig()
    items = rig.add(1000)
    for item in items:
        item.rank += 10_000.0
    rig.queue.rekey()
    rig.asked = dict.fromkeys(rig.asked, 0)
    rig.queue._known = False
    assert rig.queue
    assert rig.asked["key"] == HEADS


def test_requests_removed_and_added_meanwhile_are_in_the_new_order() -> None:
    rig = Rig()
    items = rig.add(300)
    rig.sign = -1.0
    rig.queue.rekey()
    for step, item in enumerate(items[::3]):
        rig.queue.remove_request(item)  # type: ignore[arg-type]
        if step % 2:
            rig.queue.add_request(item)  # type: ignore[arg-type]
        rig.step()
    for _ in range(300):
        rig.step()
    assert rig.order() == sorted(rig.order(), key=lambda r: -r.rank)
    assert len(rig.queue) == 250


# -- lanes ---------------------------------------------------------------------------------------------------


def test_requests_come_out_in_one_order_over_all_open_lanes() -> None:
    rig = Rig()
    for lane in (0, 1, 2):
        rig.add(20, lane)
    want = sorted(rig.order(), key=lambda r: r.rank)
    assert [r.rank for r in rig.order()] == [r.rank for r in want]
    assert [rig.queue.pop_request().rank for _ in range(60)] == [r.rank for r in want]  # type: ignore[attr-defined]


@pytest.mark.parametrize("count", [10, 3000])
def test_requests_of_a_closed_lane_cost_nothing(count: int) -> None:
    rig = Rig(moves=True)
    rig.open = {0, 1}
    rig.add(count, lane=2)
    other = Item("other", 10**6, lane=1)
    rig.queue.add_request(other)  # type: ignore[arg-type]
    asked = rig.step()
    assert rig.queue.peek_request() is other
    assert (asked["gate"], asked["eligible"]) == (1, 1)
    assert asked["is_open"] <= 6
    assert len(rig.queue) == count + 1


def test_with_every_lane_closed_the_queue_has_no_head_and_its_length() -> None:
    rig = Rig()
    rig.add(5, lane=1)
    rig.open = set()
    assert not rig.step()["gate"]
    assert not rig.queue
    assert len(rig.queue) == 5
    rig.open = {1}
    rig.step()
    assert rig.queue
