"""Old names: the changelog has each of them, and settings that carry one are still read."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from ecoserve import deprecations
from ecoserve.cli.main import _renamed
from ecoserve.deprecations import (
    CLI_OPTIONS,
    HYPERPARAMETERS,
    METRICS,
    REQUEST_COLUMNS,
    SETTINGS,
    SUMMARY_KEYS,
    renamed,
)
from ecoserve.predictor import EncoderSettings, StackedSettings
from ecoserve.predictor.recipes import Recipe
from ecoserve.serving.core.settings import SchedulerSettings

CHANGELOG = Path(__file__).resolve().parent.parent / "CHANGELOG.md"


def test_the_changelog_has_the_same_tables() -> None:
    section = CHANGELOG.read_text(encoding="utf-8").split("## 0.2.0 (unreleased)")[1].split("\n## ")[0]
    rows = re.findall(
        r"^\| ([a-z ]+) \| `([^`]+)` \| (?:`([^`]+)`|removed) \|$",
        section,
        re.M,
    )
    tables: dict[str, Mapping[str, str | None]] = {
        "setting": SETTINGS,
        "metric": METRICS,
        "summary key": SUMMARY_KEYS,
        "request column": REQUEST_COLUMNS,
        "hyperparameter": HYPERPARAMETERS,
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


def test_removed_hyperparameters_and_their_options_are_ignored_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    deprecations._warn.cache_clear()
    recipe = Recipe(backend="stacked", settings={"encoder": {"runs": 2, "epochs": 2.0}})
    assert recipe.made_settings() == StackedSettings(encoder=EncoderSettings(epochs=2.0))
    assert _renamed(["train-predictor", "--runs", "3", "T", "--ranking=1", "--trust-client-predictions"]) == [
        "train-predictor",
        "T",
        "--trust-client",
    ]
    said = " ".join(r.getMessage() for r in caplog.records)
    assert "hyperparameter runs has been removed" in said
    assert "option --runs has been removed" in said
