from __future__ import annotations

from typing import Any

import pytest
from core_rig import a_task, holder

from ecoserve.serving.core.kv_use import Group, KVUse
from ecoserve.serving.core.ledger import Ledger, LedgerError
from ecoserve.serving.core.tasks import Task, TaskState

BLOCK = 16


def a_ledger(*tasks: Task, usable: int = 10, held: int = 0) -> Ledger:
    ledger = Ledger(usable, KVUse([Group(BLOCK)]))
    ledger.tasks = {t.request_id: t for t in tasks}
    ledger.set_holders([t for t in tasks if t.state is not TaskState.WAITING])
    ledger.held_blocks = held
    return ledger


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (160, 10)])
def test_blocks_round_up(tokens: int, blocks: int) -> None:
    assert a_ledger().blocks(tokens) == blocks


def test_reserved_is_promised_and_not_yet_written() -> None:
    ledger = a_ledger(
        holder("a", TaskState.DECODE, 20, generated=4, promised=60),  # 76 tokens: 5 blocks, 2 written
        holder("b", TaskState.PAUSED, 40, generated=24, promised=0),  # nothing more promised
    )
    assert ledger.promised_blocks(ledger.tasks["a"]) == 5
    assert ledger.reserved_blocks() == 3


def test_lent_is_what_promises_and_holdings_exceed_the_cache_by() -> None:
    hosts = [holder(str(i), TaskState.DECODE, 16, generated=1, promised=80) for i in range(3)]  # 6 blocks each
    ledger = a_ledger(*hosts, usable=10, held=3)
    assert ledger.reserved_blocks() == 15
    assert ledger.lent_blocks() == 3 + 15 - 10
    assert a_ledger(*hosts, usable=18, held=3).lent_blocks() == 0


def test_shared_blocks_are_those_that_no_holder_has_for_itself() -> None:
    pair = [holder(n, TaskState.DECODE, 48, blocks=3, shared_blocks=2) for n in "ab"]
    assert a_ledger(*pair, held=4).shared_blocks() == 2
    assert a_ledger(*pair, held=9).shared_blocks() == 7, "five of an idle session"


def consistent(**changes: Any) -> tuple[Ledger, dict[str, Any]]:
    """A ledger that agrees with its pool: one of each state, two of them with a block in common."""
    ledger = a_ledger(
        holder("run", TaskState.DECODE, 30, generated=14),
        holder("wait", TaskState.PAUSED, 17, generated=1),
        holder("fill", TaskState.PREFILL, 8),
        a_task("queue"),
        usable=10,
    )
    view: dict[str, Any] = {
        "blocks_of": {"run": [1, 2], "wait": [1, 3], "fill": [4]},
        "leaving": set(),
        "free_blocks": 6,
        "states": {n: t.state for n, t in ledger.tasks.items()},
    }
    return ledger, view | changes


def test_books_that_agree_pass() -> None:
    ledger, view = consistent()
    ledger.check(**view)


def failing(ledger: Ledger, view: dict[str, Any]) -> str:
    with pytest.raises(LedgerError) as caught:
        ledger.check(**view)
    return str(caught.value)


def test_a_block_that_is_neither_held_nor_free() -> None:
    assert failing(*consistent(free_blocks=5)) == "unique blocks of requests and leaving 4 != usable - free 5"


def test_a_block_that_is_used_and_called_free() -> None:
    assert failing(*consistent(free_blocks=7)) == "unique blocks of requests and leaving 4 != usable - free 3"


def test_a_block_twice_in_one_request() -> None:
    ledger, view = consistent(blocks_of={"run": [1, 2, 2], "wait": [1, 3], "fill": [4]})
    assert failing(ledger, view) == "request run has a block twice"


def test_blocks_of_an_unknown_request() -> None:
    ledger, view = consistent()
    view["blocks_of"]["ghost"] = [4]
    assert failing(ledger, view) == "request ghost holds 1 blocks and is not in the ledger"


def test_an_empty_entry_of_an_unknown_request_is_no_fault() -> None:
    ledger, view = consistent()
    view["blocks_of"]["gone"] = []
    ledger.check(**view)


def test_a_request_that_only_vllm_knows() -> None:
    ledger, view = consistent()
    view["states"]["new"] = TaskState.WAITING
    assert failing(ledger, view) == "requests in vLLM != requests in the ledger: new"


def test_a_request_that_only_the_books_know() -> None:
    ledger, view = consistent()
    del view["states"]["queue"]
    assert failing(ledger, view) == "requests in vLLM != requests in the ledger: queue"


def test_a_state_that_differs() -> None:
    ledger, view = consistent()
    view["states"]["wait"] = TaskState.DECODE
    assert failing(ledger, view) == "request wait is paused in the ledger, decode in vLLM"


def test_a_waiting_request_with_blocks() -> None:
    ledger, view = consistent(free_blocks=5)
    view["blocks_of"]["queue"] = [5]
    assert failing(ledger, view) == "request queue waits and holds 1 blocks"


def test_a_holder_with_too_few_blocks_for_what_it_wrote() -> None:
    ledger, view = consistent()
    ledger.tasks["run"].written = 33
    assert failing(ledger, view) == "request run has 2 blocks for 33 written tokens"


def test_a_response_beyond_its_limit() -> None:
    ledger, view = consistent()
    ledger.tasks["run"].limit = 13
    assert failing(ledger, view) == "request run generated 14 > limit 13 tokens"
