"""The results of learning while serving hold what is promised, and the document's table has their figures."""

from __future__ import annotations

import common

FOUND = common.read("online_learning.json")
DOCUMENT = (common.ROOT / "docs" / "results" / "results-predictor.md").read_text(encoding="utf-8")


def test_it_is_as_good_as_trees_trained_offline_and_never_worse_than_history() -> None:
    for name, trace in FOUND["learning"].items():
        after = trace["after"]
        assert after["1000"]["online"]["kendall_tau"] >= after["1000"]["lightgbm"]["kendall_tau"] - 0.05
        for answers, by in after.items():
            assert by["online"]["pinball"] < by["history"]["pinball"], (name, answers)
            assert f"{by['online']['kendall_tau']:.3f} | {by['lightgbm']['kendall_tau']:.3f}" in DOCUMENT


def test_it_costs_what_it_may() -> None:
    cost = FOUND["cost"]
    assert max(cost["api_ms_per_request_alpaca"], cost["api_ms_per_request_sharegpt"]) <= 1.0
    assert cost["share_of_a_core_at_10_rps"] <= 0.05


def test_other_lengths_raise_the_alarm_and_are_learned() -> None:
    for factor in ("2.5", "0.4"):
        case = FOUND["changes"][f"another model, lengths x {factor}"]
        assert len(case["alarms_after"]) == 1
        assert case["as_good_as_at_the_end_after"] <= 100
        later = case["pinball"]["1000-1500"]
        assert later["model"] < later["history"]
    assert not any(case["alarms_before"] for case in FOUND["changes"].values())
