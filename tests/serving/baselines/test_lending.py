"""Lending of reserved stretches: space, time, nesting, and what becomes of guests."""

from __future__ import annotations

import itertools

import pytest
from core_rig import a_task
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.baselines.pipelined import Lending
from ecoserve.serving.core.tasks import Task


def window(name: str, promised: int, generated: int = 0) -> Task:
    return a_task(name, promised=promised, generated=generated, lengths=LengthDistribution.point(max(1, promised)))


def borrow(lending: Lending, hosts: list[Task], name: str, tokens: int) -> Task | None:
    guest = window(name, tokens)
    loan = lending.find(hosts, guest, tokens, tokens)
    if loan is None:
        return None
    lending.lend(loan)
    return guest


def test_the_far_half_of_a_fresh_window_less_the_buffer() -> None:
    host = window("host", 256)
    assert borrow(Lending(8, 3, True), [host], "too long", 125) is None
    lending = Lending(8, 3, True)
    guest = borrow(lending, [host], "fits", 120)
    assert guest is not None
    assert (lending.loan_of[guest].start, lending.loan_of[guest].end) == (136, 256)


def test_then_the_far_half_of_the_near_half() -> None:
    host, lending = window("host", 256), Lending(0, 3, True)
    for name, tokens, start in (("a", 128, 128), ("b", 64, 64), ("c", 32, 32)):
        guest = borrow(lending, [host], name, tokens)
        assert guest is not None
        assert lending.loan_of[guest].start == start
    assert borrow(lending, [host], "d", 17) is None


def test_guests_are_hosts_in_their_turn_so_many_levels_deep() -> None:
    host, lending = window("host", 256), Lending(0, 2, True)
    guest = borrow(lending, [host], "guest", 128)
    assert guest is not None
    second = borrow(lending, [guest], "guest's guest", 64)
    assert second is not None
    assert lending.level(second) == 2
    assert borrow(lending, [second], "third", 32) is None


def test_the_nearest_stretch_that_does_is_taken() -> None:
    long, short = window("long", 1000), window("short", 100)
    lending = Lending(0, 3, True)
    guest = borrow(lending, [long, short], "guest", 40)
    assert guest is not None
    assert lending.loan_of[guest].host is short


@pytest.mark.parametrize(("relend", "again"), [(True, True), (False, False)])
def test_a_stretch_is_lent_again_only_with_relend(relend: bool, again: bool) -> None:
    host, lending = window("host", 256), Lending(0, 3, relend)
    guest = borrow(lending, [host], "guest", 128)
    assert guest is not None
    host.generated = 40
    lending.end(guest)
    assert (borrow(lending, [host], "next", 100) is not None) is again


def test_a_host_inside_its_far_half_lends_what_is_left_of_it() -> None:
    host, lending = window("host", 256), Lending(0, 3, True)
    host.generated = 128
    assert borrow(lending, [host], "guest", 64) is not None
    assert borrow(lending, [host], "other", 33) is None


def test_overdue_is_who_the_host_has_come_to() -> None:
    host, lending = window("host", 256), Lending(0, 3, True)
    guest = borrow(lending, [host], "guest", 100)
    host.generated = 153
    assert lending.overdue(2) == []
    host.generated = 154
    assert lending.overdue(2) == [guest]


def test_a_late_guest_draws_on_the_buffer_and_no_further() -> None:
    host, lending = window("host", 256), Lending(10, 3, True)
    guest = borrow(lending, [host], "guest", 100)
    assert guest is not None
    host.generated = 150
    assert [lending.extend(guest) for _ in range(8)] == [True] * 5 + [False] * 3
    assert lending.loan_of[guest].start == 151


def test_a_host_that_goes_leaves_its_guests_without_a_loan() -> None:
    host, lending = window("host", 256), Lending(0, 3, True)
    guests = [borrow(lending, [host], name, n) for name, n in (("far", 128), ("near", 64))]
    assert lending.orphan(host) == guests[::-1]
    assert not lending.loan_of
    assert not lending.loans_in
    assert lending.lent_tokens() == 0


@given(
    sizes=st.lists(st.integers(4, 400), min_size=1, max_size=12),
    guests=st.lists(st.integers(1, 200), max_size=60),
    buffer=st.integers(0, 12),
    relend=st.booleans(),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=150, deadline=None)
def test_with_true_lengths_no_guest_is_late_and_no_stretch_lent_twice(
    sizes: list[int], guests: list[int], buffer: int, relend: bool, seed: int
) -> None:
    """Every decode generates one token a step and leaves at its promise, as perfectly predicted ones do."""
    lending = Lending(buffer, 3, relend)
    running = [window(f"h{i}", n) for i, n in enumerate(sizes)]
    waiting = [window(f"g{i}", n) for i, n in enumerate(guests)]
    step = 0
    while running:
        for guest in list(waiting):
            loan = lending.find(running, guest, guest.promised, guest.promised)
            if loan is not None:
                assert loan.level <= 3
                lending.lend(loan)
                running.append(guest)
                waiting.remove(guest)
        for host, loans in lending.loans_in.items():
            for one, other in itertools.pairwise(loans):
                assert one.end <= other.start, "lent twice"
            for loan in loans:
                assert loan.end <= host.promised
                assert not loan.live or loan.start > host.generated, "the host is there and its guest is not gone"
                assert not loan.live or loan.guest in running
        step += 1
        for task in list(running):
            task.generated += 1
            if task.generated >= task.promised:
                running.remove(task)
                lending.end(task)
                for orphan in lending.orphan(task):
                    assert orphan in running
    assert not lending.loan_of
    assert lending.lent_tokens() == 0
