"""Any sequence of calls on any small engine (see ``stateful_machine``): the same runs every time.

`make soak` looks for rare failures with other seeds, many more steps, and a seed that repeats what it finds.
"""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
import soak
from stateful_machine import soak_once
from stateful_rig import Driven
from virtual_rig import Case, Spec

from ecoserve.serving.core.ledger import Ledger, LedgerError

#: Steps that all of it comes to at the least.
STEPS = 5000


def test_whatever_is_called_nothing_leaks_hangs_or_is_lost() -> None:
    sums: Counter[str] = Counter()
    cases: list[Case] = []
    for depth, prefix_caching in product((1, 2), (False, True)):
        seed = 400 + 10 * depth + prefix_caching
        happened, ran = soak_once(seed, runs=8, depth=depth, prefix_caching=prefix_caching)
        assert {c.depth for c in ran} == {depth}
        sums.update(happened)
        cases += ran
    # The runs are of use only if they are hard. What hypothesis draws depends on the modules that are imported too.
    assert sums["steps"] >= STEPS
    assert len({(c.policy, c.knobs) for c in cases}) > 12
    for what in ("pauses", "resumes", "preemptions", "recomputed_tokens", "aborts", "admissions audited"):
        assert sums[what] >= 20, f"hardly any {what}"


def test_a_seed_repeats_its_runs() -> None:
    first, second = (soak_once(7, runs=3) for _ in range(2))
    assert first == second
    assert first[0]["requests"] > 0


# -- what the rig itself would say; scripts/mutations.py breaks the code in more places -------------------------------


def driven(**fields: object) -> Driven:
    out = Driven(Case((), **fields))  # type: ignore[arg-type]
    for prompt in (30, 20, 10):
        out.add(Spec(prompt=prompt, answer=40))
    for _ in range(4):
        out.step()
    return out


def test_a_lost_request_is_found() -> None:
    run = driven()
    del run.scheduler.running[0]
    with pytest.raises(AssertionError, match="in two places or in none"):
        run.lives.check()


def test_a_leaked_block_is_found() -> None:
    run = driven()
    run.scheduler.kv_cache_manager.block_pool.get_new_blocks(1)
    with pytest.raises(LedgerError, match="unique blocks"):
        run.check()


def test_a_scheduler_that_does_nothing_is_found() -> None:
    run = driven(policy="ecoserve-exact")
    s = run.scheduler
    s.waiting._gate = lambda request: False
    for name in run.alive():
        run.abort(name)
    run.add(Spec(prompt=5, answer=5))
    with pytest.raises(AssertionError, match="nothing is scheduled"):
        run.run_out()


def test_what_a_soak_finds_comes_with_a_seed_that_repeats_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(self: Ledger, *_: object) -> None:
        if len(self.tasks) > 1:
            raise LedgerError("one too many")

    monkeypatch.setattr(Ledger, "check", wrong)
    monkeypatch.setattr("sys.argv", ["soak.py", "--seed", "5", "--steps", "1"])
    assert soak.main() == 1
    shown = capsys.readouterr().err
    assert "LedgerError: one too many" in shown
    assert "state.come(" in shown or "state.crowd_comes(" in shown
    assert "Case(specs=()" in shown
    assert "repeat with: python scripts/soak.py --seed 5 --steps 1" in shown
