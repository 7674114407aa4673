"""What the report says: settings out of runs, sentences that claim no more than is shown, numbers for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

import pytest

from ecoserve.pages import Cell
from ecoserve.serving.runs import EngineTotals, RunResult
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.reporting.accuracy_figures import MEASURES, accuracy_figure, pressure_figure
from ecoserve.sweep.reporting.report_data import ReportData
from ecoserve.sweep.reporting.settings import JCT, NORMALIZED, PREEMPTIONS, Load, write_comparison
from ecoserve.sweep.reporting.statements import STATEMENTS, TILES, headline
from ecoserve.sweep.reporting.tables import predictor_table, settings_table
from ecoserve.sweep.statistics import paired
from ecoserve.sweep.summary import FailureRow, Meta, PredictorRow, RunRow, Summary
from ecoserve.sweep.tables import run_row

#: Latency of vLLM by seed: seeds differ far more than settings do.
BASE = {0: 100.0, 1: 150.0, 2: 200.0}


def rows(policy: str, lengths: str, factor: float | Callable[[int], float], **more: object) -> list[RunRow]:
    """Runs whose normalized latency is ``factor`` times the baseline's, seed by seed."""
    labels = {"engine": "virtual", "condition": "pressure", "rate_rps": 8.0, "preemptions": 40, **more}
    seeds = labels.pop("seeds", BASE)
    made = []
    for seed in seeds:
        value = factor(seed) if callable(factor) else factor
        empty = run_row(
            PlannedRun.of({"policy": policy, "lengths": lengths, "seed": seed}),
            RunResult(policy, lengths, labels["rate_rps"], seed, [], EngineTotals()),
        )
        made.append(
            RunRow.model_validate({**empty, **labels, "seed": seed, "normalized_latency_mean_ms": BASE[seed] * value})
        )
    return made


def wobble(center: float) -> Callable[[int], float]:
    return lambda seed: center * (1 + 0.002 * (seed - 1))


def relaxed(policy: str, lengths: str, factor: float | Callable[[int], float]) -> list[RunRow]:
    return rows(policy, lengths, factor, condition="no-pressure", preemptions=0)


FULL = [
    *rows("vllm", "none", 1.0),
    *rows("ecoserve", "predicted:/some/where/encoder", wobble(0.4), preemptions=1, prediction_kendall_tau=0.6),
    *rows("ecoserve", "noise:1", wobble(0.7), prediction_kendall_tau=0.3),
    *rows("ecoserve", "none", wobble(0.8)),
    *rows("ecoserve", "true", wobble(0.25), preemptions=0),
    *relaxed("vllm", "none", 1.0),
    *relaxed("ecoserve", "predicted:/some/where/encoder", wobble(1.0)),
]


def report_of(runs: list[RunRow], **more: object) -> ReportData:
    return ReportData(Summary(runs=runs, **more))


def say(runs: list[RunRow], **more: object) -> str:
    report = report_of(runs, **more)
    tiles = [f"{tile.value} {tile.label} {tile.beneath}" for make in TILES if (tile := make(report))]
    statements = [f"{s.heading}: {s.text}" for make in STATEMENTS if (s := make(report))]
    return "\n".join([headline(report), *tiles, *statements])


def test_the_distance_to_the_bound_is_a_column_and_the_bound_is_no_setting_to_run():
    runs = [*FULL, *rows("bound", "none", 0.2)]
    assert say(runs) == say(FULL)
    pressed = report_of(runs).loads[0]
    table = settings_table("t", "c", report_of(runs), [pressed])
    at = [column.title for column in table.columns].index("Times the bound")
    assert [round(row[at].value, 2) for row in table.rows] == [5.0, 2.0, 3.5, 4.0, 1.25, 1.0]
    assert (table.rows[0][0].text, table.rows[-1][0].text) == ("vLLM default", "bound")
    assert "Times the bound" not in str(settings_table("t", "c", report_of(FULL), [pressed]).columns)


def test_headline_says_gain_and_where_there_is_none():
    assert say(FULL).splitlines()[0] == (
        "With predicted lengths, where the KV cache is short, ecoserve cuts normalized latency by 60 % against "
        "vLLM’s default; where it is plentiful, no gain is shown."
    )


def test_a_loss_is_said_as_plainly():
    text = say([*rows("vllm", "none", 1.0), *rows("ecoserve", "predicted:x", wobble(1.3))])
    assert text.startswith("With predicted lengths, ecoserve has 30 % higher normalized latency than vLLM’s default.")
    assert "Where it does not help: At 8 requests/s, pressure: 30 % higher" in text


def test_no_claim_without_an_interval_that_excludes_zero():
    noisy = rows("ecoserve", "predicted:x", lambda seed: (0.5, 1.5, 0.9)[seed])
    text = say([*rows("vllm", "none", 1.0), *noisy])
    assert "no difference in normalized latency is shown between ecoserve and vLLM’s default" in text
    assert "cuts" not in text


def test_one_seed_is_a_direction_not_a_result():
    text = say([*rows("vllm", "none", 1.0, seeds=[1]), *rows("ecoserve", "predicted:x", 0.5, seeds=[1])])
    assert "50 % lower normalized latency than vLLM’s default in the one seed that was run" in text.splitlines()[0]
    assert "direction, not a result" in text
    assert "fewer than three seeds" in text


def test_worth_of_the_prediction():
    text = say(FULL)
    # vLLM 1.0, predicted 0.4, true 0.25: 0.6 of 0.75 possible; against 0.8 without prediction it is half.
    assert "Perfect lengths would bring −75 %; predicted lengths bring 80 % of that gain" in text
    assert "against ecoserve without any prediction, normalized latency: 50 % lower" in text


def test_the_setting_to_run_is_one_a_user_can_run():
    text = next(line for line in say(FULL).splitlines() if line.startswith("Which setting"))
    assert "ecoserve, predicted lengths (encoder)" in text
    assert "oracle" not in text
    assert "σ" not in text


def test_a_stand_in_is_named_as_such():
    runs = [*rows("vllm", "none", 1.0), *(r for s in ("0.2", "1", "2") for r in rows("ecoserve", f"noise:{s}", 0.5))]
    assert say(runs).startswith("With length error σ = 1, ecoserve cuts")
    oracle = [*rows("vllm", "none", 1.0), *rows("ecoserve", "true", 0.5)]
    assert say(oracle).startswith("With true lengths (an oracle: no predictor was run), ecoserve cuts")


def test_nothing_to_compare():
    assert say([]).startswith("Nothing has been run")
    assert say(rows("ecoserve", "true", 1.0)).startswith("There is no run of the baseline")


def test_missing_relaxed_load_is_said():
    assert "this report cannot say where the gain ends" in say(FULL[:15])


def test_failures_are_said():
    assert "2 runs failed and are missing from every figure" in say(
        FULL, failures=[FailureRow(run=str(i), error="x") for i in range(2)]
    )


def test_predictor_against_the_constant_median():
    predictors = {
        "encoder": PredictorRow(rows=1000, mae_tokens=40.0, within_50=0.7, kendall_tau=0.6),
        "constant-median": PredictorRow(rows=1000, mae_tokens=80.0),
    }
    text = say(FULL, predictor=predictors)
    assert "is off by 40.0 tokens on average over 1,000 requests" in text
    assert "Always guessing the median is off by 80.0 tokens: −50 %" in text
    served = say(
        FULL,
        predictor={**predictors, "lightgbm": PredictorRow(rows=9, mae_tokens=50.0)},
        meta=Meta(served_predictor="lightgbm"),
    )
    assert "LightGBM (gradient-boosted trees) is off by 50.0 tokens" in served


def test_engine_runs_are_a_statement_of_their_own():
    engine = [
        *rows("vllm", "none", 1.0, engine="in-process", preemptions=120),
        *rows("ecoserve", "predicted:x", wobble(0.6), engine="in-process", preemptions=3),
    ]
    line = next(x for x in say([*FULL, *engine]).splitlines() if x.startswith("On a real vLLM engine"))
    assert "40 % lower" in line
    assert "preemptions 120 → 3" in line


def test_pressure_is_measured_where_it_can_be():
    def kind(**more: object) -> str:
        runs = rows("vllm", "none", 1.0, **more)
        report = report_of(runs)
        return report.pressure(report.loads[0])

    assert kind(kv_demand_peak=1.3) == "pressure"
    assert kind(kv_demand_peak=0.7) == "no pressure"
    assert kind(kv_demand_peak=1.0) == "between"
    assert kind(condition="pressure", kv_demand_peak=0.2) == "no pressure"  # the name does not decide
    assert kind(condition="no-pressure") == "no pressure"
    assert kind(condition=None) == "unknown"


def test_settings_gather_seeds():
    report = report_of(FULL)
    load = Load("virtual", "pressure", 8.0)
    assert [s.name for s in report.under(load)] == [
        "vLLM default",
        "ecoserve, predicted lengths (encoder)",
        "ecoserve, length error σ = 1",
        "ecoserve, no prediction",
        "ecoserve, true lengths (oracle)",
    ]
    assert report.baseline_of(load).values(NORMALIZED.key) == BASE


def test_accuracy_axis_holds_measured_and_perfect_accuracy():
    report = report_of(FULL)
    latency = accuracy_figure(report, NORMALIZED, "accuracy-latency")
    (panel,) = latency.panels
    predicted, noisy = (t for t in panel.spec["data"] if "by" in t.get("meta", {}))
    assert predicted["x"] == [0.6, 1.0], "an error of one kind, and the truth"
    assert predicted["y"] == pytest.approx([60.1, 37.5], abs=0.2)
    assert noisy["x"] == [0.3, 1.0]
    assert noisy["y"] == pytest.approx([105.1, 37.5], abs=0.2)
    assert noisy["error_y"]["array"][1] == pytest.approx(200 * 0.25 * 1.002 - noisy["y"][1], abs=0.1)
    across = [t["y"][0] for t in panel.spec["data"] if t.get("meta", {}).get("across")]
    assert sorted(across) == pytest.approx([37.5, 120.1, 150.0], abs=0.2)
    assert "37.5 ms/token" in panel.alt
    assert set(panel.spec["layout"]["meta"]["measures"]) <= {m.key for m in MEASURES}
    assert [cell.text for cell in latency.table.rows[0]][:2] == ["vLLM default", "–"]
    assert set(latency.table.groups) == {"8 requests/s, pressure"}


def test_errors_in_tokens_run_backwards_so_that_better_is_right():
    runs = [
        *rows("vllm", "none", 1.0),
        *rows("ecoserve", "noise:1", 0.7, prediction_kendall_tau=0.3, prediction_mae_tokens=90.0),
        *rows("ecoserve", "true", 0.2),
    ]
    (panel,) = accuracy_figure(report_of(runs), NORMALIZED, "accuracy-latency").panels
    left, right = panel.spec["layout"]["meta"]["measures"]["prediction_mae_tokens"]["range"]
    assert left > 90 > 0 > right


def test_pressure_figure_shows_intervals_and_verdicts():
    report = report_of(FULL)
    figure = pressure_figure(report)
    data = figure.panels[0].spec["data"]
    assert [t["x"][0] for t in data] == pytest.approx([-60, -20, -75, 0], abs=0.3)
    assert [t["marker"]["symbol"] for t in data] == ["circle", "circle", "circle", "circle-open"]
    assert [row[-1].text for row in figure.table.rows][-1] == "no difference shown"
    assert pressure_figure(report_of(rows("vllm", "none", 1.0))) is None


def test_settings_table_has_levels_ranges_and_verdicts():
    report = report_of(FULL)
    table = settings_table("t", "c", report, report.loads)
    assert [c.title for c in table.columns][:2] == ["Setting", "Normalized latency (ms/token)"]
    ours = table.rows[1]
    assert ours[1] == Cell(pytest.approx(60.03, abs=0.01), "60.0", "39.9 to 80.2")
    assert (ours[-2].text, ours[-2].tone) == ("−60 % · better", "good")
    assert table.groups == ["8 requests/s, pressure"] * 5 + ["8 requests/s, no-pressure"] * 2
    parsed = list(csv.reader(io.StringIO(table.csv())))
    assert parsed[0][:2] == ["Load", "Setting"]
    assert float(parsed[2][2]) == pytest.approx(60.03, abs=0.01)
    assert settings_table("t", "c", report, []) is None


def test_predictor_table_is_best_first_and_omits_what_was_not_measured():
    predictors = {
        "constant-median": PredictorRow(rows=5, mae_tokens=80),
        "encoder": PredictorRow(rows=5, mae_tokens=40.04),
    }
    table = predictor_table(report_of([], predictor=predictors))
    assert [row[0].value for row in table.rows] == ["encoder", "constant-median"]
    assert [c.title for c in table.columns] == ["Predictor", "Mean error", "Requests"]
    assert predictor_table(report_of([])) is None


def test_columns_have_one_unit():
    assert JCT.heading == "JCT (s)"
    assert JCT.column(11_900.0) == "11.9"
    assert PREEMPTIONS.column(3.0) == "3"
    assert NORMALIZED.column(None) == "–"


def test_comparisons_for_people():
    c = paired({0: 50.0, 1: 51.0}, {0: 100.0, 1: 100.0}, "lower")
    assert write_comparison(c) == ("−50 %", "−56 % to −43 %")
    zero = paired({0: 5.0, 1: 6.0}, {0: 0.0, 1: 0.0}, "lower")
    assert write_comparison(zero)[0] == "+5.50"
    assert write_comparison(paired({0: 1.0}, {0: 2.0}, "lower")) == ("−50 %", "")
