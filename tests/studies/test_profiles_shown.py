"""Figures of docs/results/profiles.md: made by the command line, small, and without a path of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import common
import profiles_shown
import pytest


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one of the traces (made up), and one for the results."""
    (tmp_path / "data" / "traces").mkdir(parents=True)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    lines = [f"2023-11-16 18:{i // 60:02d}:{i % 60:02d}.5,{i % 90 + 1},{i % 70 + 1}" for i in range(600)]
    text = "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines])
    (tmp_path / "data" / "traces" / "azure_2023_code.csv").write_text(text)
    return tmp_path / "data"


def test_what_is_there_is_profiled_and_condensed(data: Path, tmp_path: Path) -> None:
    assert profiles_shown.profiles(data, tmp_path / "pages", None, []) == 0
    assert [p.name for p in (tmp_path / "results").iterdir()] == ["profile_azure_code.json"]
    text = (tmp_path / "results" / "profile_azure_code.json").read_text()
    found = json.loads(text)
    assert found["commands"] == ["ecoserve profile traces/azure_2023_code.csv"]
    assert found["response"]["n"] == 600
    assert "curves" not in found
    assert "windows" not in found["drift"]
    assert str(tmp_path) not in text
    assert (tmp_path / "pages" / "azure_code" / "profile.html").exists()


def test_memory_is_that_of_all_processes(data: Path, tmp_path: Path) -> None:
    assert profiles_shown.memory([data / "traces" / "azure_2023_code.csv"]) == 0
    (row,) = json.loads((tmp_path / "results" / "profile_memory.json").read_text())["files"]
    assert row["records"] == 600
    # Python with NumPy takes some tens of megabytes.
    assert 30 < row["peak_mb"] < 1000


def test_a_table_of_many_rows_is_profiled(data: Path, tmp_path: Path) -> None:
    assert profiles_shown.rows(3000) == 0
    found = json.loads((tmp_path / "results" / "profile_memory_rows.json").read_text())
    assert (found["rows"], found["table_mb"]) == (3000, 0.1)
    assert found["peak_mb"] > 30


def test_numbers_are_short_and_places_are_names() -> None:
    summary = {"a": [0.123456789, 7], "curves": {"x": [1]}, "source": "/here/t.csv", "n": None, "ok": True}
    assert profiles_shown.condense(summary, {"/here/": ""}) == {
        "a": [0.12346, 7],
        "source": "t.csv",
        "n": None,
        "ok": True,
    }
