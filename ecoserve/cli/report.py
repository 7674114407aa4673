"""``ecoserve report``: rebuild summary.json and report.html of a result folder, or compare two folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table as RichTable

from ecoserve.cli.common import JsonOption, QuietOption, emit_json, stderr_console
from ecoserve.pages import Table

_COMPARE = "With --compare"
#: Narrower terminals do without the columns after the verdict.
_WIDE = 110


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A result folder: what -o named when it was run.")],
    figures: Annotated[
        Path | None, typer.Option("--figures", metavar="OUT", help="Write plots as PNG and SVG, tables as CSV, there.")
    ] = None,
    compare: Annotated[
        Path | None,
        typer.Option("--compare", metavar="A", help="Another folder: the changes from A to DIR, with their certainty."),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write the comparison as a page.", rich_help_panel=_COMPARE),
    ] = None,
    by_setting: Annotated[
        bool, typer.Option("--by-setting", help="Show every setting by itself.", rich_help_panel=_COMPARE)
    ] = False,
    fail_on_worse: Annotated[
        bool,
        typer.Option("--fail-on-worse", help="Exit with 3 if a metric has become worse.", rich_help_panel=_COMPARE),
    ] = False,
    json: JsonOption = None,
    quiet: QuietOption = False,
) -> None:
    """Rebuild the report of a result folder, which opens offline in any browser; or compare two: --compare A B."""
    from ecoserve.errors import ConfigError
    from ecoserve.sweep.report import write_figure_files, write_report
    from ecoserve.sweep.results import ResultFolder

    console = stderr_console(quiet)
    if compare is not None:
        if figures is not None:
            raise ConfigError("--figures draws one folder, not a comparison", fix="leave out --compare")
        _compare(compare, folder, page, by_setting, fail_on_worse, json, console)
        return
    if page is not None or by_setting or fail_on_worse:
        raise ConfigError(
            "--html, --by-setting and --fail-on-worse go with --compare", fix="name the folder to compare with"
        )
    results = ResultFolder.open(folder)
    results.check_requests()
    report = write_report(results)
    if figures is not None:
        files = write_figure_files(results, figures)
        console.print(f"{len(files)} files in {figures}")
    summary = results.summary()
    emit_json(summary.model_dump(mode="json"), json)
    console.print(f"{report}")
    console.print(f"tables sha256 {summary.meta.tables_sha256}")


def _compare(
    a: Path, b: Path, page: Path | None, by_setting: bool, fail_on_worse: bool, json: str | None, console: Console
) -> None:
    from ecoserve.errors import InputError, ThresholdError
    from ecoserve.sweep import comparison_page as shown
    from ecoserve.sweep.comparing import compare
    from ecoserve.sweep.results import ResultFolder

    first, second = ResultFolder.open(a), ResultFolder.open(b)
    comparison = compare(first, second)
    if not comparison.settings:
        raise InputError(
            "the folders have no setting in common",
            where=f"{a}, {b}",
            fix="compare runs of one plan: the same policies, lengths, rates and conditions",
        )
    if not console.quiet:
        for sentence in shown.sentences(comparison):
            console.print(f"• {sentence}")
        _print(shown.settings_table(comparison) if by_setting else shown.overall_table(comparison), console)
    emit_json(shown.plain(comparison), json)
    if page is not None:
        console.print(f"{shown.write_page(comparison, first, second, page)}")
    if fail_on_worse and comparison.worse:
        words = "; ".join(f"{d.metric} {shown.change(d)}" for d in comparison.worse)
        raise ThresholdError(f"worse than {a}: {words}", where=str(b))


def _print(table: Table, console: Console) -> None:
    if not console.is_terminal:
        console.width = 200  # a file has no edge to cut figures at
    columns = table.columns if console.width >= _WIDE else table.columns[:-1]
    drawn = RichTable(caption=table.caption, box=None, pad_edge=False)
    if table.groups:
        drawn.add_column(table.group_title)
    for column, numeric in zip(columns, table.numeric, strict=False):
        drawn.add_column(column.title, justify="right" if numeric else "left", no_wrap=True)
    before = ""
    for group, row in table.grouped():
        cells = [cell.text for cell in row[: len(columns)]]
        drawn.add_row(*([group if group != before else ""] if table.groups else []), *cells)
        before = group
    console.print(drawn)
