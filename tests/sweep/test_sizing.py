"""The search for the fewest GPUs: its answer, its check with fewer, in few runs; refusals; and the command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ecoserve.cli.main import main
from ecoserve.sweep.search import Searches
from ecoserve.sweep.sizing import Candidate, Sizing

Held = Callable[[int, int, int], float]


def sizing(starts: dict[int, int], share: float = 0.9, seeds: tuple[int, ...] = (0,), most: int = 64) -> Sizing:
    """A search over tensor parallel sizes, each with the replicas to begin with."""
    candidates = [Candidate({"tp": tp, "policy": "vllm"}, {}, tp, start) for tp, start in starts.items()]
    return Sizing({}, share, candidates, seeds, most, slower_by=0.0)


def run(*searches: Sizing, held: Held) -> int:
    """Run searches together, to their ends; the number of runs."""
    together = Searches(searches)
    waiting, count = together.begin(), 0
    while waiting:
        planned = waiting.pop(0)
        s = planned.settings
        waiting += together.ended(planned, {"slo_attainment": held(s["tp"], s["replicas"], s["seed"])})
        count += 1
    return count


@given(
    needed=st.fixed_dictionaries({1: st.integers(1, 80), 2: st.integers(1, 40), 4: st.integers(1, 20)}),
    starts=st.fixed_dictionaries({1: st.integers(1, 80), 2: st.integers(1, 40), 4: st.integers(1, 20)}),
)
@hypothesis_settings(max_examples=100, deadline=None)
def test_the_fewest_gpus_of_all_and_one_fewer_was_tried(needed: dict[int, int], starts: dict[int, int]) -> None:
    search = sizing(starts)
    count = run(search, held=lambda tp, n, seed: 1.0 if n >= needed[tp] else 0.5)
    fits = {tp: tp * n for tp, n in needed.items() if tp * n <= 64}
    if not fits:
        assert (search.state, search.answer) == ("out of GPUs", None)
        return
    assert (search.state, search.gpus) == ("found", min(fits.values()))
    # Each way to serve has missed with the most replicas that need fewer GPUs, or with more.
    missed = {
        tp: max((t.replicas for t in search.trials() if t.tp == tp and t.attainment < 0.9), default=0) for tp in starts
    }
    assert all(missed[tp] >= (search.gpus - 1) // tp for tp in starts)
    assert count <= 30


def test_a_good_estimate_takes_two_runs_and_one_for_each_other_way_to_serve() -> None:
    search = sizing({2: 5, 1: 12, 4: 3})
    assert run(search, held=lambda tp, n, seed: float(tp == 2 and n >= 5)) == 2 + 2
    assert search.gpus == 10


def test_the_mean_over_the_seeds_decides() -> None:
    search = sizing({1: 4}, seeds=(0, 1, 2))
    run(search, held=lambda tp, n, seed: 0.95 if n >= 4 + 2 * (seed > 0) else 0.8)
    assert search.gpus == 6
    at = {t.gpus: t for t in search.trials()}
    assert at[5].attainment < 0.9 <= at[6].attainment
    assert len(at[5].seeds) == len(at[6].seeds) == 3


def test_searches_share_runs_that_have_ended() -> None:
    apart = sum(run(sizing({1: 6}, share), held=lambda tp, n, seed: n / 10) for share in (0.5, 0.7))
    low, high = sizing({1: 6}, 0.5), sizing({1: 6}, 0.7)
    assert run(low, high, held=lambda tp, n, seed: n / 10) < apart
    assert (low.gpus, high.gpus) == (5, 7)


def test_pools_have_an_engine_each_and_keep_their_share() -> None:
    pools = Candidate({"tp": 1, "policy": "distserve"}, {"prefill_share": 0.3}, 1, 1)
    runs = [pools.run(n, 0).settings for n in (2, 3, 10)]
    assert [(s["replicas"], s["prefill_replicas"]) for s in runs] == [(2, 1), (3, 1), (10, 3)]
    search = Sizing({}, 0.9, [pools], (0,), 64, slower_by=0.0)
    run(search, held=lambda tp, n, seed: 1.0)
    assert search.gpus == 2


def test_a_failed_run_ends_its_search() -> None:
    search = sizing({1: 2})
    together = Searches([search])
    (planned,) = together.begin()
    assert together.ended(planned, None) == []
    assert search.state == "a run failed"


TIGHT = ["--slo-ttft-ms", "2000", "--slo-tpot-ms", "30"]
PLAN = ["plan", "--trace", "synthetic:300", "--requests", "80", "--max-tokens", "200", "--jobs", "0", "--quiet"]


def test_the_command_answers_resumes_and_writes_a_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [*PLAN, "--rate", "40", *TIGHT, "--policy", "vllm,ecoserve", "--kv-blocks", "100", "--share", "0.9"]
    assert main([*asked, "--json", "-"]) == 0
    first: dict[str, Any] = json.loads(capsys.readouterr().out)
    for row in first["answers"]:
        assert row["state"] == "found"
        assert row["answer"]["gpus"] >= 2
        assert row["answer"]["attainment"] >= 0.9 > max(t["attainment"] for t in row["fewer"])
        assert row["fewer"][0]["gpus"] == row["answer"]["gpus"] - 1
        assert row["low"] <= row["answer"]["attainment"] <= row["high"]
        assert row["slower"] <= row["answer"]["attainment"]
    assert set(first["unsure"]) >= {"The model of the GPU", "Seeds", "Arrivals that were not seen"}
    page = Path("plan-results/plan.html").read_text("utf-8")
    assert "The fewest GPUs" in page
    # As after Ctrl-C: one run is missing.
    runs = sorted(Path("plan-results/runs").glob("*.json"))
    runs[0].unlink()
    assert main([*asked, "--resume", "--json", "-"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["answers"] == first["answers"]
    assert again["meta"]["tables_sha256"] == first["meta"]["tables_sha256"]
    assert len(list(Path("plan-results/runs").glob("*.json"))) == len(runs)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--rate", "5"], "there is no SLO to hold"),
        (["--rate", "5", "--slo-tpot-ms", "1"], "even an idle engine holds the SLO for 0.0% only"),
        (["--rate", "5", "--slo-scale", "0.5"], "even an idle engine"),
        (["--rate", "inf", *TIGHT], "all at once is no load over time"),
        (["--rate", "5", *TIGHT, "--share", "2"], "no list of numbers from 0 to 1"),
        (["--rate", "5", *TIGHT, "--gpu", "h100_sxm"], "needs a model"),
        (["--rate", "5", *TIGHT, "--gpu", "h100_sxm", "--model", "llama-3.1-405b", "--tp", "1,2"], "does not fit"),
        (["--rate", "5", *TIGHT, "--policy", "none-such"], "none-such"),
        (["--rate", "5", *TIGHT, "--router", "none-such"], "router"),
        ([*TIGHT], "no recorded arrivals"),
    ],
)
def test_what_cannot_be_planned_is_one_line(
    more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*PLAN, *more]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_too_few_gpus_allowed_is_exit_code_3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--rate", "40", *TIGHT, "--policy", "vllm", "--kv-blocks", "100", "--max-gpus", "1"]
    assert main([*PLAN, *few]) == 3
