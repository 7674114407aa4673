"""What the studies share, and that the documents have the tables of the result files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import common
import fidelity_tables
import load_report
import predictor_study_tables
import pytest
import workload_tables

Tables = Mapping[str, Callable[[], str]]


@pytest.mark.parametrize(
    ("document", "script", "tables"),
    [
        (fidelity_tables.DOCUMENT, "fidelity_tables", fidelity_tables.TABLES),
        (workload_tables.DOCUMENT, "workload_tables", workload_tables.SECTIONS_MADE),
        (predictor_study_tables.DOCUMENT, "predictor_study_tables", predictor_study_tables.SECTIONS),
        (load_report.DOCUMENT, "load_report", load_report.tables()),
    ],
    ids=["fidelity", "workloads", "predictor-study", "data"],
)
def test_a_document_has_the_tables_of_the_result_files(document: Path, script: str, tables: Tables) -> None:
    text = document.read_text(encoding="utf-8")
    assert common.filled(text, script, tables) == text, f"run python benchmarks/studies/{script}.py"
    assert set(re.findall(rf"<!-- (\w[\w ]*): made by benchmarks/studies/{script}\.py", text)) == set(tables)


def test_only_what_is_between_the_marks_is_replaced() -> None:
    marks = "<!-- a: made by benchmarks/studies/s.py -->", "<!-- end of a -->"
    text = f"before {marks[0]}\nold\n{marks[1]} after"
    assert common.filled(text, "s", {"a": lambda: "new"}) == f"before {marks[0]}\n\nnew\n\n{marks[1]} after"
    with pytest.raises(ValueError, match="no place for b"):
        common.filled(text, "s", {"b": lambda: "new"})


def test_what_fits_a_line_stands_on_one(tmp_path: Path) -> None:
    content = {"a": [1, 2], "rows": [{"x": "é" * 60, "n": i} for i in range(3)], "none": []}
    common.write(tmp_path / "r.json", content)
    text = (tmp_path / "r.json").read_text(encoding="utf-8")
    assert json.loads(text) == content == common.read(tmp_path / "r.json")
    assert text.count("\n") == 9
    assert common.read(tmp_path / "none.json") == {}


def test_memory_is_that_of_all_processes_together() -> None:
    half = "x = bytearray(150 << 20); print('ready', flush=True); sys.stdin.read()"
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'import sys; ' + {half!r}]); {half}"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:  # type: ignore[call-overload]
        assert [process.stdout.readline() for _ in range(2)] == [b"ready\n"] * 2
        pss, rss, count = common._memory_of(process.pid)
        process.stdin.close()
    assert count == 2
    assert 300 << 20 <= pss <= rss < 400 << 20


def test_a_command_is_watched_to_its_end() -> None:
    seen = common.watch([sys.executable, "-c", "import sys; print('out'); sys.exit('err')"])
    assert (seen.code, seen.output, seen.errors) == (1, "out\n", "err\n")
    assert seen.cpu_seconds > 0
