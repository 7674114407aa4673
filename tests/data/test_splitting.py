"""Splits keep conversations and near-duplicates on one side, the same way everywhere."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoserve.data import (
    LoadReport,
    Message,
    Record,
    Trace,
    fingerprint,
    load_trace,
    record_groups,
    save_trace,
    split_trace,
    splitting,
)
from ecoserve.data.splitting import THRESHOLD, near_duplicate_groups, shingles, similar_pairs
from ecoserve.errors import TraceError

WORDS = st.sampled_from(["red", "green", "blue", "one", "two", "three", "sun", "moon", "sea", "fish"])
PROMPTS = st.lists(WORDS, min_size=1, max_size=8).map(" ".join)


def trace_of(records: list[Record]) -> Trace:
    report = LoadReport(len(records), len(records))
    return Trace(tuple(records), "here", "alpaca", fingerprint(records), "trace", report)


def jaccard(a: str, b: str) -> float:
    x, y = shingles(a), shingles(b)
    return len(x & y) / len(x | y)


# -- which texts are alike ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    st.lists(st.frozensets(st.integers(0, 12).map(str), min_size=1, max_size=8), max_size=25),
    st.sampled_from([0.3, 0.5, 0.6, 0.75, 0.9, 1.0]),
    st.sampled_from([(3, 2), (10**6, 10**6)]),
)
def test_every_pair_as_alike_as_asked_is_found_and_no_other(
    sets: list[frozenset[str]], threshold: float, batch: tuple[int, int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "_PAIRS", batch[0])
        patch.setattr(splitting, "_COMPARED", batch[1])
        found = [tuple(p) for pairs in similar_pairs(sets, threshold) for p in pairs.tolist()] if sets else []
    wanted = [
        (i, j)
        for i, j in itertools.combinations(range(len(sets)), 2)
        if len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j]) - 1e-9
    ]
    assert sorted(found) == wanted


@settings(deadline=None)
@given(st.lists(PROMPTS, max_size=25))
def test_groups_are_chains_of_near_duplicates(texts: list[str]) -> None:
    groups = near_duplicate_groups(texts).tolist()
    near = {(i, j) for i, j in itertools.combinations(range(len(texts)), 2) if jaccard(texts[i], texts[j]) >= THRESHOLD}
    assert all(groups[i] == groups[j] for i, j in near)
    # Walking along near-duplicates reaches the whole group, so that nothing else is in it.
    for start in range(len(texts)):
        reached, todo = {start}, [start]
        while todo:
            at = todo.pop()
            for i, j in near:
                other = j if i == at else i if j == at else at
                if other not in reached:
                    reached.add(other)
                    todo.append(other)
        assert reached == {i for i, g in enumerate(groups) if g == groups[start]}
    assert list(dict.fromkeys(groups)) == list(range(len(set(groups))))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of France?", "what is the capital of  FRANCE"),
        ("Write a haiku about the sea, please.", "Write a haiku about the sea!"),
        ("naïve café", "NAI\u0308VE CAFE\u0301"),
        ("\uff21\uff22\uff23 one two", "abc one two"),
        ("请写一首关于大海的诗歌", "请写一首关于大海的诗歌吧"),
        ("!!!", " !!! "),
    ],
)
def test_the_same_in_other_clothes_is_a_near_duplicate(one: str, other: str) -> None:
    assert near_duplicate_groups([one, "something else altogether", other]).tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Explain the concept of cogging torque.", "Explain the concept of the blockchain."),
        ("请写一首关于大海的诗歌", "把这段话翻译成法语"),
        ("???", "!!!"),
        ("hello", "goodbye"),
    ],
)
def test_the_same_pattern_with_other_content_is_not(one: str, other: str) -> None:
    assert near_duplicate_groups([one, other]).tolist() == [0, 1]


def test_long_texts_are_compared_at_both_ends() -> None:
    body = [f"w{i}" for i in range(5000)]
    text = " ".join(body)
    assert len(shingles(text)) < 1000
    assert near_duplicate_groups([text, text.replace("w2500 ", "changed ")]).tolist() == [0, 0]
    assert near_duplicate_groups([text, " ".join(body[::-1])]).tolist() == [0, 1]


def test_no_texts_make_no_groups() -> None:
    assert near_duplicate_groups([]).tolist() == []


# -- splits -------------------------------------------------------------------------------------------------


@st.composite
def traces(draw: st.DrawFn) -> Trace:
    records = []
    for c in range(draw(st.integers(2, 12))):
        context: list[Message] = []
        for turn in range(draw(st.integers(1, 3))):
            context.append(Message("user", draw(PROMPTS)))
            chat = tuple(context) if draw(st.booleans()) or turn else ()
            records.append(Record(f"c{c}", turn, context[-1].content, chat, response_tokens=5))
            context.append(Message("assistant", "fine"))
    return trace_of(draw(st.permutations(records)))


@settings(deadline=None)
@given(traces(), st.floats(0.05, 0.9), st.integers(0, 5))
def test_no_conversation_and_no_near_duplicate_is_on_both_sides(trace: Trace, dev: float, seed: int) -> None:
    if len(set(record_groups(trace.records).tolist())) < 2:
        with pytest.raises(TraceError, match="cannot be split"):
            split_trace(trace, dev=dev, seed=seed)
        return
    parts = split_trace(trace, dev=dev, seed=seed)
    train, held_out = parts["train"].records, parts["dev"].records
    assert train
    assert held_out
    assert sorted(map(repr, train + held_out)) == sorted(map(repr, trace.records))
    for a, b in itertools.product(train, held_out):
        assert a.conversation != b.conversation
        if not (a.turn or b.turn):
            assert jaccard(a.prompt or "", b.prompt or "") < THRESHOLD


def singles(n: int) -> list[Record]:
    rng = np.random.default_rng(3)
    vocabulary = [f"word{i}" for i in range(3000)]
    return [Record(str(i), prompt=" ".join(rng.choice(vocabulary, 8)), response_tokens=i + 1) for i in range(n)]


@pytest.mark.parametrize("dev", [0.05, 0.2, 0.5])
def test_the_share_asked_for_is_met(dev: float) -> None:
    parts = split_trace(trace_of(singles(1000)), dev=dev, seed=1)
    assert len(parts["dev"]) == round(1000 * dev)
    assert parts["dev"].sha256 == fingerprint(parts["dev"].records) != parts["train"].sha256
    order = [int(r.conversation) for r in parts["train"].records]
    assert order == sorted(order)


def test_another_seed_gives_another_split_and_the_same_seed_the_same() -> None:
    trace = trace_of(singles(200))
    one, two, again = (split_trace(trace, seed=s)["dev"].sha256 for s in (0, 1, 0))
    assert one == again != two


def test_the_split_does_not_depend_on_the_process(tmp_path: Path) -> None:
    file = save_trace(trace_of(singles(300)), tmp_path / "t.jsonl")
    code = (
        "import sys; from ecoserve.data import load_trace, split_trace;"
        "print(split_trace(load_trace(sys.argv[1]))['dev'].sha256)"
    )
    found = set()
    for hash_seed in ("0", "1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        command = [sys.executable, "-c", code, str(file)]
        found.add(subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout.strip())
    assert found == {split_trace(load_trace(file))["dev"].sha256}


def test_rows_that_say_their_split_are_split_so() -> None:
    records = [replace(r, split=("train", "dev", "validation")[i % 3]) for i, r in enumerate(singles(30))]
    parts = split_trace(trace_of(records), dev=0.01)
    assert {r.split for r in parts["train"].records} == {"train"}
    assert {r.split for r in parts["dev"].records} == {"dev", "validation"}


def test_a_trace_that_is_all_train_is_split_by_group() -> None:
    parts = split_trace(trace_of([replace(r, split="train") for r in singles(50)]), dev=0.2)
    assert len(parts["dev"]) == 10


def test_where_only_some_say_so_a_dev_row_still_never_trains() -> None:
    records = [replace(r, split="dev" if i < 20 else "train" if i < 60 else None) for i, r in enumerate(singles(100))]
    parts = split_trace(trace_of(records), dev=0.3, seed=2)
    assert "dev" not in {r.split for r in parts["train"].records}
    assert len(parts["dev"]) == 30
    assert len(split_trace(trace_of(records), dev=0.05)["dev"]) == 20


def test_pieces_of_one_conversation_stay_together() -> None:
    names = ["aB3dE5g_0", "aB3dE5g_14", "zZ9yX8w_0", "session_1", "session_2", "REQUEST_1", "REQUEST_2"]
    records = [replace(r, conversation=n) for n, r in zip(names, singles(7), strict=True)]
    assert record_groups(tuple(records)).tolist() == [0, 0, 1, 2, 3, 4, 5]


def test_a_common_follow_up_does_not_join_two_conversations() -> None:
    def chat(name: str, opening: str, then: str) -> list[Record]:
        context = (Message("user", opening), Message("assistant", "Yes."), Message("user", then))
        return [Record(name, 0, opening, context[:1]), Record(name, 1, then, context)]

    long = "Now rewrite all of it for a reader who knows nothing of physics"
    records = (
        *chat("a", "What is a black hole made of", "continue"),
        *chat("b", "Name three rivers in Spain", "continue"),
        *chat("c", "How do I boil an egg", long),
        *chat("d", "Why is the sky blue at noon", long + "!"),
    )
    assert record_groups(records).tolist() == [0, 0, 1, 1, 2, 2, 2, 2]


def test_a_trace_of_lengths_is_split_by_conversation() -> None:
    records = [Record(str(i // 3), i % 3, response_tokens=5) for i in range(90)]
    parts = split_trace(trace_of(records))
    assert len(parts["dev"]) == 18
    assert {r.conversation for r in parts["dev"].records}.isdisjoint(r.conversation for r in parts["train"].records)


def test_one_group_that_outweighs_all_others_trains() -> None:
    records = [Record("big", i, response_tokens=5) for i in range(98)] + [Record("s", response_tokens=5)]
    parts = split_trace(trace_of(records), dev=0.005)
    assert (len(parts["train"]), len(parts["dev"])) == (98, 1)
    half = [Record(str(i // 10), i % 10, response_tokens=5) for i in range(20)]
    assert {len(p) for p in split_trace(trace_of(half), dev=0.1).values()} == {10}


@pytest.mark.parametrize(
    "records", [[], [Record("a", prompt="x")], [Record(str(i), prompt="the same") for i in range(5)]]
)
def test_what_is_one_group_cannot_be_split(records: list[Record]) -> None:
    with pytest.raises(TraceError, match="cannot be split"):
        split_trace(trace_of(records))


@pytest.mark.parametrize("dev", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_share_out_of_range_is_refused(dev: float) -> None:
    with pytest.raises(TraceError, match="dev share"):
        split_trace(trace_of(singles(10)), dev=dev)


def test_one_prompt_answered_by_many_models_is_on_one_side(write: Callable[..., Path]) -> None:
    rows = [
        {"instruction": r.prompt, "output": f"answer of {m}", "generator": m}
        for r in singles(40)
        for m in ("a", "b", "c")
    ]
    parts = split_trace(load_trace(write(rows)), seed=4)
    assert {r.prompt for r in parts["dev"].records}.isdisjoint(r.prompt for r in parts["train"].records)
    assert len(parts["dev"]) == 24
