"""The tokens that stand for prompts: the prefix cache finds what real prompts would share, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from ecoserve.data import Record
from ecoserve.data.records import PREFIX_BLOCK
from ecoserve.serving.simulate.cost import LinearCost
from ecoserve.serving.simulate.engine import PromptIds
from ecoserve.serving.simulate.loop import run_replicas
from ecoserve.serving.simulate.replica import Replica
from ecoserve.serving.simulate.run import SimulateSettings, _arrival, _scheduler
from ecoserve.serving.workload import LoadRequest

BLOCK = 16


def request(name: str, prompt: int, answer: int = 4, at: float = 0.0, **fields: Any) -> LoadRequest:
    return LoadRequest(name, at, Record(**({"conversation": name} | fields)), prompt, answer, None)


def common_start(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def cached_tokens(load: list[LoadRequest]) -> list[int]:
    """Prompt tokens that vLLM's prefix cache gives each request, one after the other."""
    settings = SimulateSettings(trace="-", policy="vllm", lengths="none", prefix_caching=True, max_tokens=100)
    replica = Replica(_scheduler(settings, 1000, LinearCost()), LinearCost())
    prompts = PromptIds(load)
    found: dict[str, int] = {}

    def look(output: Any) -> None:
        for new in output.scheduled_new_reqs:
            found[new.req_id] = new.num_computed_tokens

    replica.on_step = look
    run_replicas([replica], [_arrival(settings, prompts, r) for r in load])
    return [found[r.name] for r in load]


def test_prompts_have_their_length_and_are_the_same_every_time() -> None:
    load = [request("a", 700, prefix_hashes=(4, 5)), request("b", 1), request("c", 40)]
    ids, again = ([PromptIds(load).of(r) for r in load] for _ in range(2))
    assert ids == again
    assert [len(i) for i in ids] == [700, 1, 40]
    assert not PromptIds(load).shared


def test_equal_hashes_are_equal_tokens_up_to_where_they_end() -> None:
    a, b, c = (
        request("a", 1500, prefix_hashes=(1, 2, 3)),
        request("b", 1600, prefix_hashes=(1, 2, 9, 3)),
        request("c", 1024, prefix_hashes=(2, 1)),
    )
    prompts = PromptIds([a, b, c])
    assert prompts.shared
    assert common_start(prompts.of(a), prompts.of(b)) == 2 * PREFIX_BLOCK
    assert common_start(prompts.of(a), prompts.of(c)) == 0


def test_what_comes_after_the_hashed_part_is_the_requests_own() -> None:
    a, b = (request(n, 800, prefix_hashes=(7,)) for n in "ab")
    assert common_start(PromptIds([a, b]).of(a), PromptIds([a, b]).of(b)) == PREFIX_BLOCK


def test_vllms_cache_finds_the_shared_pieces() -> None:
    load = [
        request("a", 1500, at=0.0, prefix_hashes=(1, 2, 3)),
        request("b", 1600, at=5.0, prefix_hashes=(1, 2, 9, 10)),
        request("c", 1500, at=10.0, prefix_hashes=(5, 2, 3)),
    ]
    assert cached_tokens(load) == [0, 2 * PREFIX_BLOCK, 0]


def test_a_later_turn_finds_the_turn_before_and_its_answer() -> None:
    first = request("a", 100, answer=60, at=0.0, conversation="talk", turn=0)
    second = request("b", 200, at=9.0, conversation="talk", turn=1)
    other = request("c", 200, at=18.0, conversation="walk", turn=1)
    found = cached_tokens([first, second, other])
    # 100 + 59 tokens were written that are the same: all but the answer's last token.
    assert found == [0, 159 // BLOCK * BLOCK, 0]


def test_a_row_that_is_drawn_twice_shares_nothing_with_itself() -> None:
    twice = [request("a", 100, at=0.0, conversation="x"), request("b", 100, at=5.0, conversation="x")]
    assert not PromptIds(twice).shared
    assert cached_tokens(twice) == [0, 0]
    # Two copies of a conversation are two conversations, each with its own turns.
    talk = [request(f"{turn}{i}", 100 + 50 * turn, conversation="x", turn=turn) for turn in (0, 1) for i in (0, 1)]
    ids = [PromptIds(talk).of(r) for r in talk]
    assert common_start(ids[0], ids[2]) == 100
    assert common_start(ids[1], ids[3]) == 100
    assert common_start(ids[0], ids[3]) == common_start(ids[0], ids[1]) == 0


@pytest.mark.parametrize("tokens", [1, PREFIX_BLOCK, PREFIX_BLOCK + 1])
def test_prompts_shorter_and_longer_than_their_pieces(tokens: int) -> None:
    one = request("a", tokens, prefix_hashes=(3,))
    assert len(PromptIds([one]).of(one)) == tokens
