"""What the plots hold: hand-worked numbers, and nothing where there is nothing to show."""

from __future__ import annotations

import numpy as np
import pytest
import small_runs
from test_reporting import BASE, FULL, report_of, rows, say, wobble

from ecoserve.errors import InputError
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.report import SECTIONS
from ecoserve.sweep.reporting.accuracy_figures import accuracy_figure, accuracy_map, knob_map
from ecoserve.sweep.reporting.rate_figures import front, scale_figure, slowdowns
from ecoserve.sweep.reporting.report_data import Details, ReportData
from ecoserve.sweep.reporting.request_figures import (
    calibration_figure,
    fairness_figure,
    kv_figure,
    underprediction_figure,
)
from ecoserve.sweep.reporting.settings import NORMALIZED, THROUGHPUT
from ecoserve.sweep.reporting.tables import search_table
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import Meta, RunRow, SearchRow, Summary

SCALE = 4.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ResultFolder:
    """Two rates, three seeds, an SLO."""
    made = ResultFolder.create(tmp_path_factory.mktemp("figures") / "out", Meta())
    for rate in (2.0, 4.5):
        for policy, lengths in (
            ("vllm", "none"),
            ("ecoserve", "noise:0.3"),
            ("ecoserve", "none"),
            ("ecoserve", "true"),
        ):
            for seed in range(3):
                settings = {"policy": policy, "lengths": lengths, "rate_rps": rate, "seed": seed, "slo_scale": SCALE}
                run = PlannedRun.of(settings, {"engine": "virtual", "condition": "pressure"})
                made.add(run, small_runs.untyped(settings))
    return made


@pytest.fixture(scope="module")
def report(folder: ResultFolder) -> ReportData:
    return ReportData(folder.summary(), Details(folder))


def test_the_scale_of_the_run_gives_the_attainment_that_was_measured(report):
    details = report.details
    for setting in report.settings:
        taken = slowdowns(setting, details)
        measured = np.mean([run.slo_attainment for run in setting.runs])
        assert np.mean(taken <= SCALE * (1 + 1e-9)) == pytest.approx(measured)
    figure = scale_figure(report)
    assert [panel.title for panel in figure.panels] == ["2 requests/s, pressure", "4.5 requests/s, pressure"]
    assert "used an SLO of 4 times" in figure.text
    assert all(np.all(np.diff(trace["y"]) >= 0) for panel in figure.panels for trace in panel.spec["data"])


def test_length_bands_hold_the_means_of_their_requests(report):
    details = report.details
    figure = fairness_figure(report)
    (base,) = [s for s in report.cast if s.policy == "vllm"]
    lengths, latency = (details.together(base.runs, k) for k in ("output_tokens", "normalized_latency_s"))
    first = figure.panels[0].spec["data"][0]
    low, high = (int(part.replace(",", "")) for part in first["x"][0].split("–"))
    assert low == 1
    per_seed = [
        details.requests(run)["normalized_latency_s"][details.requests(run)["output_tokens"] <= high].mean()
        for run in base.runs
    ]
    assert first["y"][0] == pytest.approx(1e3 * np.mean(per_seed))
    assert len(first["x"]) == 5
    assert np.isfinite(latency).all()
    assert first["x"][-1].endswith(f"–{int(lengths.max()):,}")


def test_calibration_counts_answers_below_each_quantile(report):
    details = report.details
    figure = calibration_figure(report)
    predicted = next(s for s in report.under(report.load) if s.lengths == "noise:0.3")
    rank = details.together(predicted.runs, "pit")
    curve = figure.panels[0].spec["data"][1]
    at = curve["x"].index(0.6)
    assert curve["y"][at] == pytest.approx(np.mean(rank <= 0.6), abs=1e-3)
    error = np.abs(
        details.together(predicted.runs, "predicted_tokens") - details.together(predicted.runs, "output_tokens")
    )
    assert figure.table.rows[0][1].value == pytest.approx(error.mean())


def test_kv_over_time_has_a_plot_for_each_setting_shown(report):
    figure = kv_figure(report)
    assert [panel.title for panel in figure.panels] == [s.name for s in report.cast]
    held = figure.panels[0].spec["data"][0]
    assert max(held["y"]) == 1.0
    assert "Averages: held" in figure.panels[0].alt


def test_the_waterfall_comes_down_to_nothing(report):
    figure = underprediction_figure(report)
    (bars,) = figure.panels[0].spec["data"]
    assert bars["y"][0] == pytest.approx(sum(bars["y"][1:]))
    assert bars["base"][-1] == 0.0
    assert bars["base"][1] == pytest.approx(bars["y"][0] - bars["y"][1])
    assert bars["x"][1:] == ["own space", "reserved again", "global reserve", "paused", "guest moved", "recomputed"]


def test_no_setting_on_the_front_is_beaten_in_both():
    def one(policy: str, latency: float, amount: float) -> list[RunRow]:
        return rows(policy, "none", latency, output_tokens_per_s=amount)

    found = report_of([*one("vllm", 1.0, 100.0), *one("a", 0.5, 90.0), *one("b", 0.8, 80.0), *one("c", 0.5, 95.0)])
    assert [s.policy for s in front(found.settings, THROUGHPUT)] == ["c", "vllm"]


def test_knobs_are_never_averaged_over():
    knobs = [r for e in (0.1, 0.5) for r in rows("ecoserve", "noise:1", wobble(1 - e), knob_epsilon=e)]
    found = report_of([*rows("vllm", "none", 1.0), *knobs])
    assert [s.name for s in found.settings[1:]] == [
        "ecoserve, length error σ = 1, epsilon 0.1",
        "ecoserve, length error σ = 1, epsilon 0.5",
    ]
    figure = knob_map(found)
    assert [row[0].text for row in figure.table.rows] == ["pressure, epsilon 0.1", "pressure, epsilon 0.5"]
    assert "44 %" in figure.table.rows[1][1].text  # 0.5 against 0.9
    assert found.ours.knobs == (("epsilon", "0.5"),)


def test_loads_that_differ_in_more_than_the_rate_are_apart():
    runs = [r for gpu in ("l40s", "h100_sxm") for r in rows("vllm", "none", 1.0, gpu=gpu, model="llama-13b")]
    assert [load.title for load in report_of(runs).loads] == [
        "8 requests/s, pressure, l40s",
        "8 requests/s, pressure, h100_sxm",
    ]


def test_a_searchs_own_runs_are_no_setting():
    tried = rows("vllm", "none", 1.0, rate_rps=9.5, search="step")
    assert {load.rate_rps for load in report_of([*FULL, *tried]).loads} == {8.0}
    found = SearchRow(policy="vllm", lengths="none", metric="slo_attainment", at_least=0.9, state="found", rate_rps=9.5)
    table = search_table(ReportData(Summary(searches=[found])))
    assert [cell.text for cell in table.rows[0]][1:] == ["9.50", "–", "slo_attainment at least 0.9", "found"]
    assert search_table(report_of([])) is None


def test_vllms_own_policies_lead_only_where_they_are_shown_to_be_faster():
    near = [*rows("vllm", "none", 1.0), *rows("ecoserve", "noise:1", wobble(0.5))]
    lucky = report_of([*near, *rows("vllm-priority", "noise:1", lambda seed: (0.4, 0.6, 0.45)[seed])])
    assert lucky.ours.policy == "ecoserve"
    faster = report_of([*near, *rows("vllm-priority", "noise:1", wobble(0.3))])
    assert faster.ours.policy == "vllm-priority"


def test_how_good_lengths_must_be_is_said_with_what_does_not_help():
    runs = [
        *rows("vllm", "none", 1.0),
        *rows("ecoserve", "none", 0.8),
        *rows("ecoserve", "tau:0.6", wobble(0.4), prediction_kendall_tau=0.6),
        *rows("ecoserve", "noise:3", wobble(0.9), prediction_kendall_tau=0.1),
    ]
    line = next(x for x in say(runs).splitlines() if x.startswith("How good it must be"))
    assert "lengths ranked with τ = 0.6 (τ 0.600): −50 %" in line
    assert "Not shown to help: length error σ = 3 (τ 0.100): +12 %" in line


def test_the_rates_that_meet_the_slo_are_said():
    def at(rate: float, share: float, policy: str, lengths: str) -> list[RunRow]:
        return rows(policy, lengths, 1.0, rate_rps=rate, slo_attainment=share)

    runs = [*at(4.0, 0.95, "vllm", "none"), *at(8.0, 0.5, "vllm", "none")]
    runs += [*at(4.0, 1.0, "ecoserve", "noise:1"), *at(8.0, 0.92, "ecoserve", "noise:1")]
    line = next(x for x in say(runs).splitlines() if x.startswith("Which rates meet the SLO"))
    assert "vLLM default: up to 4 requests/s (50.0 % at 8 requests/s)" in line
    assert "ecoserve, length error σ = 1: up to 8 requests/s (92.0 % at 8 requests/s)" in line


def test_accuracies_are_ordered_by_how_well_they_rank():
    more = [r.model_copy(update={"rate_rps": 16.0}) for r in FULL if r.condition == "pressure"]
    figure = accuracy_map(report_of([*FULL, *more]))
    names = [row[0].text for row in figure.table.rows]
    assert names == ["true lengths (oracle)", "predicted lengths (encoder)", "length error σ = 1", "no prediction"]


def test_a_summary_alone_leaves_out_what_it_does_not_know(report):
    alone = ReportData(report.summary)
    built = [section.build(alone) for section in SECTIONS]
    shown = {section.id for section in built if section.tables or section.figures}
    assert shown == {"accuracy", "pressure", "rates", "trade", "wrong", "levels"}


def test_scales_that_were_varied_are_runs_of_their_own():
    runs = [
        r.model_copy(update={"slo_scale": scale, "slo_attainment": share})
        for scale, share in ((2.0, 0.4), (5.0, 0.9))
        for r in FULL
        if r.condition == "pressure"
    ]
    found = report_of(runs)
    assert {load.title for load in found.loads} == {
        "8 requests/s, pressure, SLO scale 2.0",
        "8 requests/s, pressure, SLO scale 5.0",
    }
    figure = scale_figure(found)
    assert figure.panels[0].spec["data"][0]["x"] == [2.0, 5.0]
    assert figure.panels[0].spec["data"][0]["y"] == pytest.approx([40.0, 90.0])


def test_a_folder_of_before_has_no_kv_and_opens(folder, tmp_path):
    run = PlannedRun.of({"policy": "vllm", "lengths": "none", "rate_rps": 2.0, "seed": 0})
    old = ResultFolder.create(tmp_path / "old", Meta())
    old.add(run, small_runs.untyped(dict(run.settings)))
    file = next(old.path.glob("kv/*.parquet"))
    file.unlink()
    assert Details(old).kv(old.summary().runs[0]) == []
    file.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="is damaged"):
        Details(old).kv(old.summary().runs[0])


def test_errors_of_different_kinds_are_joined_by_no_line():
    runs = [
        *rows("vllm", "none", 1.0),
        *(r for t in (0.4, 0.8) for r in rows("ecoserve", f"tau:{t}", 1 - t / 2, prediction_kendall_tau=t)),
        *rows("ecoserve", "bias:2", 0.9, prediction_kendall_tau=1.0),
    ]
    found = report_of(runs)
    (panel,) = accuracy_figure(found, NORMALIZED, "accuracy-latency").panels
    lines = [t for t in panel.spec["data"] if "by" in t["meta"]]
    assert [t["mode"] for t in lines] == ["lines+markers", "markers"]
    assert [t["x"] for t in lines] == [pytest.approx([0.4, 0.8]), pytest.approx([1.0])]
    assert lines[0]["y"] == pytest.approx([np.mean(list(BASE.values())) * f for f in (0.8, 0.6)])
