"""The report of loading: its figures are those of loading."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import common
import load_big
import load_report
import pytest
from load_big import Job

from ecoserve.data import load_trace
from ecoserve.data.formats import FORMATS

DOCUMENT = load_report.DOCUMENT.read_text(encoding="utf-8")


def test_big_files_stayed_within_the_bound() -> None:
    found = common.read("load_big.json")
    assert found["most_mib"] == max(run["peak_pss_mib"] for run in found["runs"])
    assert found["bound_mib"] == 2048
    assert max(run["text_bytes"] for run in found["runs"]) >= 5 * 2**30
    streams = [run for run in found["runs"] if run["reader"] != load_big.PROFILE]
    assert max(run["peak_pss_mib"] for run in streams) < found["bound_mib"]
    assert all(set(run["dropped"]) <= {"empty answer", "duplicate"} for run in streams)


def test_every_file_was_kept_whole_or_said_why_not() -> None:
    found = common.read("load_report.json")
    assert {row["round_trip"] for row in found["loaded"]} == {"equal"}
    for row in found["no_traces"]:
        assert row["refused"]
        assert "\n" not in row["refused"]


def test_the_document_names_every_format_as_the_code_does() -> None:
    lines = DOCUMENT.partition("## Formats")[2].partition("\n|---")[2].partition("\n\n")[0].splitlines()[1:]
    rows = [line.split(" | ") for line in lines]
    names = [cells[0].strip("|` ") for cells in rows]
    assert names == [form.name for form in FORMATS]
    for form, cells in zip(FORMATS, rows, strict=True):
        assert (re.sub(r"`", "", cells[1]), cells[2].rstrip(" |")) == (form.looks_like, form.about), form.name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [{"instruction": f"Say number {i}, and then say a word more.", "output": "ok " * (i % 3)} for i in range(9)]
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.json.gz").write_bytes(gzip.compress(json.dumps([*rows, rows[1]]).encode()))
    (tmp_path / "notes.md").write_text("# A | note\nand no table\n")
    return tmp_path


def test_every_file_of_a_folder_is_loaded_or_refused(folder: Path) -> None:
    report = load_report.report_folder(folder, repeats=1)
    (row,) = report["loaded"]
    trace = load_trace(folder / "sub" / "a.json.gz")
    assert (row["file"], row["format"], row["rows_in"], row["kept"]) == ("sub/a.json.gz", "alpaca", 10, 6)
    assert row["dropped"] == {"empty answer": 3, "duplicate": 1}
    assert (row["trace_sha256"], row["length_source"]) == (trace.sha256, "characters/4.0")
    assert (row["round_trip"], row["languages"]) == ("equal", {"en": 6})
    assert 10 < row["peak_mib_before"] <= row["peak_mib"] < 500
    (refused,) = report["no_traces"]
    assert refused["file"] == "notes.md"
    assert refused["refused"].startswith("is neither JSON nor CSV")
    table = load_report.folder_table(report)
    assert "| 3 empty answer; 1 duplicate |" in table
    # The line's own sign of a cell's end is no sign here.
    assert "# A \\| note" in table


def test_big_files_are_read_alike_and_no_run_is_made_twice(tmp_path: Path) -> None:
    saved: list[dict[str, Any]] = []
    texts = tmp_path / "t.json"
    texts.write_text(json.dumps([{"instruction": f"Say {i}", "output": f"It is {i}, é 你."} for i in range(50)]))
    jobs = [Job.parse(text) for text in ("lines:0.0001:stream", "gzip:0.0001:stream", "list:0.0001:stream")]
    load_big.report(jobs[:2], texts, {}, saved.append)
    assert [run["kind"] for run in saved[-1]["runs"]] == ["lines", "gzip"]
    first = saved[-1]["runs"][0]
    assert first["text_bytes"] >= 0.0001 * 2**30
    assert (first["rows_in"], first["dropped"]) == (first["kept"], {})
    assert first["rows_in"] % 50 == 0
    load_big.report(jobs, texts, saved[-1], saved.append)
    assert len(saved) == 3
    assert len({run["trace_sha256"] for run in saved[-1]["runs"]}) == 1
    assert load_big.table(saved[-1]).count("\n") == 4
    with pytest.raises(SystemExit, match="not every way"):
        load_big.report(
            [Job("list", 0.0001, "stream")], texts, {**saved[-1], "runs": [{**first, "trace_sha256": "x"}]}, print
        )


@pytest.mark.parametrize("text", ["lines:1", "csv:1:stream", "lines:x:stream", "lines:1:2", "lines:1:page"])
def test_what_is_no_job_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Job.parse(text)
