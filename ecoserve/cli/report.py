"""``ecoserve report``: rebuild summary.json and report.html of a result folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ecoserve.cli.common import JsonOption, QuietOption, emit_json, stderr_console


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A result folder: what -o named when it was run.")],
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Rebuild the report of a result folder; it opens offline in any browser."""
    from ecoserve.sweep.report import write_report
    from ecoserve.sweep.results import ResultFolder

    results = ResultFolder.open(folder)
    results.check_requests()
    report = write_report(results)
    summary = results.summary()
    emit_json(summary.model_dump(mode="json"), json)
    console = stderr_console(quiet)
    console.print(f"{report}", markup=False)
    console.print(f"tables sha256 {summary.meta.tables_sha256}", markup=False)
