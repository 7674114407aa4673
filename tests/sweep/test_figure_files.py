"""Plots as files: every plot and table, the same as on the page, drawn without a browser."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import small_runs
from test_cli import call
from test_reporting import FULL, report_of

from ecoserve.cli import report
from ecoserve.errors import ConfigError
from ecoserve.pages import BuiltSection, plots
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.reporting.accuracy_figures import accuracy_figure, accuracy_map, pressure_figure
from ecoserve.sweep.reporting.settings import NORMALIZED
from ecoserve.sweep.reporting.tables import settings_table
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import Meta

pytest.importorskip("matplotlib")
from ecoserve.pages.figure_files import palette, resolved, write_figures


def sections() -> list[BuiltSection]:
    more = [r.model_copy(update={"rate_rps": 16.0}) for r in FULL if r.condition == "pressure"]
    report = report_of([*FULL, *more])
    table = settings_table("virtual", "All.", report, report.loads)
    accuracy = accuracy_figure(report, NORMALIZED, "accuracy-latency")
    found = [accuracy, pressure_figure(report), accuracy_map(report)]
    return [BuiltSection("a", "A", "", [table], found)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_figures(sections(), tmp_path_factory.mktemp("figures") / "new" / "folder")


def test_every_plot_and_table_has_its_files(written):
    names = {file.name for file in written}
    figures = ("accuracy-latency", "pressure", "map-accuracy")
    assert names == {f"{f}.{kind}" for f in figures for kind in ("png", "svg", "csv")} | {"virtual.csv"}
    for file in written:
        content = file.read_bytes()
        if file.suffix == ".png":
            assert content.startswith(b"\x89PNG")
            assert len(content) > 10_000, "something is drawn"


def test_svg_says_what_the_page_says(written):
    texts = {}
    for file in written:
        if file.suffix == ".svg":
            root = ET.fromstring(file.read_text(encoding="utf-8"))
            texts[file.stem] = " ".join("".join(e.itertext()) for e in root.iter("{http://www.w3.org/2000/svg}text"))
    assert "Normalized latency (ms/token)" in texts["accuracy-latency"]
    assert "ecoserve, true lengths (oracle)" in texts["accuracy-latency"]
    assert "16 requests/s" in texts["accuracy-latency"]
    assert "<b>" not in texts["pressure"]
    assert "−60 %" in texts["map-accuracy"]


def test_tables_are_those_of_the_page(written):
    (section,) = sections()
    by_name = {file.name: file.read_text(encoding="utf-8") for file in written if file.suffix == ".csv"}
    assert by_name["virtual.csv"] == section.tables[0].csv()
    assert by_name["pressure.csv"] == next(f for f in section.figures if f.id == "pressure").table.csv()


def test_the_same_results_give_the_same_files(written, tmp_path):
    again = write_figures([BuiltSection("a", "A", "", [], [sections()[0].figures[2]])], tmp_path)
    for file in again:
        assert file.read_bytes() == next(w for w in written if w.name == file.name).read_bytes()


def test_a_choice_is_made_as_the_page_makes_it():
    by = {"a": {"x": ["low", 0.5, "high"], "y": [1, 2, 3]}, "b": {"x": [7], "y": [8]}}
    measures = {
        "a": {"title": "A", "range": [0.0, 1.0], "tickformat": ".0%"},
        "b": {"title": "B", "range": [9.0, 5.0], "tickformat": ""},
    }
    plot = plots.panel([plots.line([], [], 1, by=by)], "", x="", y="", meta={"measures": measures}).spec
    assert resolved(plot, None)["data"][0]["x"] == [0.0, 0.5, 1.0]
    chosen = resolved(plot, "b")
    assert chosen["data"][0]["y"] == [8]
    assert chosen["layout"]["xaxis"]["range"] == [9.0, 5.0]
    assert chosen["layout"]["xaxis"]["title"]["text"] == "B"


def test_colours_are_the_page_s():
    assert palette()["slot-1"] == "#0b62b5"


def test_the_command_writes_them(tmp_path, capsys):
    folder = ResultFolder.create(tmp_path / "out", Meta())
    for seed in (0, 1):
        run = PlannedRun.of({"policy": "vllm", "lengths": "none", "rate_rps": 3.0, "seed": seed, "requests": 20})
        folder.add(run, small_runs.untyped(dict(run.settings)))
    assert call(report.command, folder.path, "--figures", tmp_path / "figures") == 0
    names = {file.name for file in (tmp_path / "figures").iterdir()}
    assert {"virtual.csv"} <= names
    assert f"{len(names)} files in {tmp_path / 'figures'}" in capsys.readouterr().err.replace("\n", "")
    assert call(report.command, folder.path, "--figures", tmp_path / "figures", "--compare", folder.path) == 2


def test_a_file_in_the_way_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        write_figures([], tmp_path / "file")
