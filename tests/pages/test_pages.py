"""Numbers, tables and pages, whatever report they belong to."""

from __future__ import annotations

import json
import re

import pytest

from ecoserve.pages import Cell, Column, Table, write, write_change
from ecoserve.pages.page import glued, script_json


def test_csv_does_not_run_in_a_spreadsheet():
    table = Table("t", "c", [Column("=a")], [["=HYPERLINK(1)"], [Cell(-1.5, "x")]])
    assert table.csv() == "'=a\n'=HYPERLINK(1)\n-1.5\n"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "", "0"), (1234567, "", "1,234,567"), (2.0, "", "2"), (92.333, "", "92.3"), (0.3333, "", "0.333"),
        (11100, "ms", "11.1 s"), (999, "ms", "999 ms"), (0.0042, "ms", "0.004 ms"),
        (34.21, "ms/token", "34.2 ms/token"), (20.0, "ms/token", "20.0 ms/token"), (0.671, "share", "67.1 %"),
        (1844.4, "tokens/s", "1,844 tokens/s"),
        (-5, "", "−5"), (0.00001, "", "1.0e-05"), (99.96, "ms", "100 ms"), (9.999, "", "10.0"),
    ],
)  # fmt: skip
def test_numbers_for_people(value, unit, text):
    assert write(value, unit) == text


@pytest.mark.parametrize(
    ("relative", "text"),
    [
        (-0.714, "−71 %"), (0.032, "+3.2 %"), (0.0, "0 %"), (-0.0001, "0 %"), (0.0995, "+10 %"), (11.0, "12.0×"),
        (1.5, "+150 %"),
    ],
)  # fmt: skip
def test_changes_for_people(relative, text):
    assert write_change(relative) == text


def test_a_column_of_numbers_is_known_by_its_values():
    rows = [[0, None, 1, Cell("", "no number", tone="quiet")], [1, None, None, 2.5]]
    table = Table("t", "c", ["row", "empty", "count", Column("mixed", unit="share")], rows)
    assert table.numeric == [False, True, True, True]
    assert [cell.text for cell in table.rows[1]] == ["1", "–", "–", "250 %"]


def test_script_json_cannot_leave_its_element():
    value = {"a": "</script><!-- & \u2028"}
    text = script_json(value)
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == value


def test_numbers_and_units_stay_together():
    assert glued("81 % lower, 95 % interval") == "81\u00a0% lower, 95\u00a0% interval"
    assert glued("16.0 s and 12 seeds") == "16.0\u00a0s and 12 seeds"
