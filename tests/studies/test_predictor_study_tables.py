"""docs/predictor-study.md says what the result files say."""

from __future__ import annotations

import re
from pathlib import Path

import predictor_study_tables as tables

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "predictor-study.md").read_text(encoding="utf-8")


def test_the_tables_are_those_of_the_script() -> None:
    assert tables.filled(TEXT) == TEXT, "run python benchmarks/studies/predictor_study_tables.py"
    assert "alpaca" in re.findall(r"<!-- (\w[\w ]*): made by", TEXT)


def test_old_figures_are_replaced() -> None:
    begin, end = tables.BEGIN.format("alpaca"), tables.END.format("alpaca")
    head, rest = TEXT.split(begin)
    assert tables.filled(f"{head}{begin}\nold\n{end}{rest.split(end)[1]}") == TEXT


def test_a_figure_shows_its_spread_where_it_is_worth_a_digit() -> None:
    row = {"within_50": 0.6511, "mae_tokens": 50.06, "sd": {"within_50": 0.0123, "mae_tokens": 0.01}}
    assert tables.figure(row, "within_50", "{:.1%}") == "65.1% ± 1.2"
    assert tables.figure(row, "mae_tokens", "{:.1f}") == "50.1"
    assert tables.figure({"ece": None}, "ece", "{:.3f}") == ""
    assert tables.figure({}, "ece", "{:.3f}") == ""
