"""Old names: the changelog has each of them, and settings that carry one are still read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from ecoserve import deprecations
from ecoserve.deprecations import CLI_OPTIONS, METRICS, REQUEST_COLUMNS, SETTINGS, SUMMARY_KEYS, renamed
from ecoserve.serving.core.settings import SchedulerSettings

CHANGELOG = Path(__file__).resolve().parent.parent / "CHANGELOG.md"


def test_the_changelog_has_the_same_tables() -> None:
    section = CHANGELOG.read_text(encoding="utf-8").split("## 0.2.0 (unreleased)")[1].split("\n## ")[0]
    rows = re.findall(
        r"^\| (setting|metric|summary key|request column|option) \| `([^`]+)` \| (?:`([^`]+)`|removed) \|$",
        section,
        re.M,
    )
    tables: dict[str, Mapping[str, str | None]] = {
        "setting": SETTINGS,
        "metric": METRICS,
        "summary key": SUMMARY_KEYS,
        "request column": REQUEST_COLUMNS,
        "option": CLI_OPTIONS,
    }
    expected = {(kind, old, new or "") for kind, table in tables.items() for old, new in table.items()}
    assert sorted(rows) == sorted(expected)


def test_an_old_setting_is_read_under_its_new_name(caplog: pytest.LogCaptureFixture) -> None:
    deprecations._warn.cache_clear()
    for _ in range(2):
        settings = SchedulerSettings.parse({"kvc": "exact", "decode_fast_path": True})
    assert settings == SchedulerSettings.parse({"kv_policy": "exact"})
    lines = [r.getMessage() for r in caplog.records]
    assert len(lines) == 2, "one warning for each old name"
    assert "scheduler setting kvc is now called kv_policy" in lines[0]
    assert "scheduler setting decode_fast_path has been removed and is ignored" in lines[1]


def test_the_new_name_counts_where_both_are_given() -> None:
    assert renamed({"old": 1, "new": 2, "other": 3}, {"old": "new"}, "key") == {"new": 2, "other": 3}
