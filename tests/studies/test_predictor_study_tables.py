"""The cells of the tables in docs/results/predictor-study.md."""

from __future__ import annotations

import predictor_study_tables as tables


def test_a_figure_shows_its_spread_where_it_is_worth_a_digit() -> None:
    row = {"within_50": 0.6511, "mae_tokens": 50.06, "sd": {"within_50": 0.0123, "mae_tokens": 0.01}}
    assert tables.figure(row, "within_50", "{:.1%}") == "65.1% ± 1.2"
    assert tables.figure(row, "mae_tokens", "{:.1f}") == "50.1"
    assert tables.figure({"ece": None}, "ece", "{:.3f}") == ""
    assert tables.figure({}, "ece", "{:.3f}") == ""
