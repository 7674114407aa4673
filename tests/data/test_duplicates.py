"""Equal exchanges are recognised in bounded memory, and no others are taken for equal."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.data.cleaning import SeenKeys, TurnCounter, identity
from ecoserve.data.records import Message, Record

keys = st.integers(0, 40) | st.integers(0, 2**64 - 1) | st.none()


@given(st.lists(st.lists(keys, max_size=30), max_size=12))
def test_keys_are_new_once(batches: list[list[int | None]]) -> None:
    seen = SeenKeys()
    known: set[int] = set()
    for batch in batches:
        expected = []
        for key in batch:
            expected.append(key is None or key not in known)
            known |= {key} if key is not None else set()
        assert seen.first_seen(batch) == expected
        assert len(seen) == len(known)


def test_a_key_takes_eight_bytes_and_few_arrays() -> None:
    seen = SeenKeys()
    rng = random.Random(0)
    for _ in range(400):
        seen.first_seen([rng.getrandbits(64) for _ in range(500)])
    assert len(seen) == 200_000
    assert sum(run.nbytes for run in seen._runs) == 8 * len(seen)
    # One array a doubling, so that asking stays cheap.
    assert len(seen._runs) <= 18


BASE = Record("c", 1, "prompt", (Message("user", "a"), Message("user", "prompt")), "answer", 3, 2, (4, 5), "m", 1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"messages": (Message("user", "ap"), Message("user", "rompt"))},
        {"messages": (Message("usera", ""), Message("user", "prompt"))},
        {"messages": (Message("system", "a"), Message("user", "prompt"))},
        {"messages": (), "prompt": "prompt"},
        {"response": "answer "},
        {"response": None},
        {"response_tokens": None},
        {"sample_tokens": (4,)},
        {"model": None},
        {"sample": 1},
        {"arrival_s": 2.0},
    ],
)
def test_another_exchange_is_another(change: dict[str, object]) -> None:
    other = replace(BASE, **change)  # type: ignore[arg-type]
    assert identity(BASE, named=False) != identity(other, named=False)
    assert identity(other, named=False) == identity(replace(other), named=False)


def test_names_tell_exchanges_apart_where_they_are_the_files_own() -> None:
    renamed, later = replace(BASE, conversation="d"), replace(BASE, turn=2)
    assert len({identity(r, named=True) for r in (BASE, renamed, later)}) == 3
    assert len({identity(r, named=False) for r in (BASE, renamed, later)}) == 1


def test_what_is_measured_later_makes_no_difference() -> None:
    assert identity(BASE, named=False) == identity(replace(BASE, prompt_tokens=99, censored=True), named=False)


def test_without_a_text_nothing_is_a_duplicate() -> None:
    counts = Record("c", response_tokens=5, prompt_tokens=3)
    assert identity(counts, named=False) is None
    assert identity(counts, named=True) is None
    assert identity(replace(counts, response="a"), named=True) is not None


def test_half_characters_have_an_identity() -> None:
    assert identity(Record("c", prompt="\udce9"), named=False) != identity(Record("c", prompt="e"), named=False)


def test_turns_are_counted_for_as_many_conversations_as_are_remembered() -> None:
    turns = TurnCounter(remembered=2)
    assert [turns.next(c) for c in "aabaab"] == [0, 1, 0, 2, 3, 1]
    # The one that was silent for longest is forgotten.
    assert [turns.next(c) for c in "cba"] == [0, 2, 0]
