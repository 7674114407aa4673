"""paper_claims.py: the search, and that the page says no more than was run."""

from __future__ import annotations

from typing import Any

import paper_claims as study
import pytest


@pytest.mark.parametrize("answer", [0.0, 3.4, 7.0, 12.25, 22.9])
def test_the_search_finds_where_the_margin_ends(answer: float) -> None:
    tried: list[int] = []

    def margin(place: int) -> float:
        tried.append(place)
        return answer - place

    place, done = study.search(margin)
    assert done
    assert place == pytest.approx(answer)
    assert len(tried) == len(set(tried)) <= 6


def test_the_ends_of_the_list_and_of_the_time() -> None:
    assert study.search(lambda place: -1.0) == (None, True)
    assert study.search(lambda place: 1.0) == (study.STEPS - 1.0, True)
    assert study.search(lambda place: 1.0 if place < 9 else None) == (7.0, False)
    assert study.search(lambda place: None) == (None, False)


def figures(jct_s: float, in_slo: float) -> dict[str, Any]:
    shares = [0.01, *[in_slo] * (len(study.SCALES) - 1)]
    known = ("jct_p99_s", "ttft_s", "tokens_per_s", "preemptions", "idle_ms")
    return {"in_slo": shares, "jct_s": jct_s, "normalized_ms": 10 * jct_s} | dict.fromkeys(known, 1.0)


def test_the_claims_beside_what_was_run() -> None:
    def found(rate: float | None, done: bool = True) -> dict[str, Any]:
        return {bound: {"rate": rate, "done": done} for bound in study.MARGINS}

    searches = {
        study.OPPONENT: found(2.0),
        study.OURS: found(3.0),
        "bound": found(4.0),
        "vLLM": found(2.5, done=False),
        "DistServe, 1 + 1 GPUs": found(1.2),
        "DistServe, 1 + 2 GPUs": found(1.5),
        "ORCA": found(None),
    }
    runs = [
        {"load": "sharegpt", "row": row, "rate": 3.0, "seed": seed, "figures": figures(jct_s, share)}
        for row, jct_s, share in ((study.OPPONENT, 40.0, 0.5), (study.OURS, 10.0, 0.8), ("bound", 8.0, 0.9))
        for seed in range(3)
    ]
    content = {"searches": {"sharegpt": searches}, "runs": runs}
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in study.claims_table(content).splitlines()]
    ours = {line[0].split(" (")[0]: line[2:] for line in lines[2:]}
    assert ours["throughput at equal latency, times"] == ["1.50, 2.00", "-"]  # vLLM's search has not ended
    assert ours["lower mean JCT"] == ["75 %, 80 %", "-"]
    # Scale 0.5 is left out: hardly any request is in SLO there.
    assert ours["higher share in SLO"] == ["60 % (scale 5), 80 % (scale 5)", "-"]
    assert ours["fewer GPUs at equal goodput"] == ["50 %, 62 %", ""]
    highest = {line.split("|")[1].strip(): line for line in study.searches_table(content).splitlines()}
    assert "3 (75 %)" in highest[study.OURS]
    assert ">= 2.5 (62 %)" in highest["vLLM"]
    assert "< 0.7" in highest["ORCA"]
    assert "not run" in highest["FastGen"]
    assert "10.0 [10.0, 10.0] | 1 | 1.00 | 100 | 1.25" in study.common_rate_table(content)
    assert f"| {study.OURS} | 1 | 80 |" in study.attainment_table(content)
