"""Result folders: the layout, the schema, atomic writing, resuming, and the line a damaged file gets."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import jsonschema
import pyarrow.parquet as pq
import pytest
import results_schema
import small_runs
import yaml

from ecoserve.deprecations import SUMMARY_KEYS
from ecoserve.errors import ConfigError, InputError
from ecoserve.serving.runs import EngineTotals, RequestRow, RunResult
from ecoserve.sweep import results, summary
from ecoserve.sweep.identity import PlannedRun, describe_run
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import Meta, RunRow, Summary
from ecoserve.sweep.tables import prediction_accuracy, run_row, runs_sha256

ROOT = Path(__file__).parents[2]
METRICS = {"rows": 10, "mae_tokens": 46.2, "within_50": 0.67, "kendall_tau": 0.62, "notes_of_another_version": "kept"}


def planned(seed: int = 0, **settings: object) -> PlannedRun:
    base = {"policy": "ecoserve", "lengths": "noise:0.5", "rate_rps": 6.0, "seed": seed, "requests": 40}
    return PlannedRun.of({**base, **settings}, {"engine": "virtual", "condition": "pressure"})


def run(planned_run: PlannedRun) -> RunResult:
    return small_runs.untyped(dict(planned_run.settings))


@pytest.fixture
def folder(tmp_path: Path) -> ResultFolder:
    folder = ResultFolder.create(tmp_path / "out", describe_run("test", ["ecoserve sweep x.yaml"]))
    folder.add(planned(0), run(planned(0)), wall_s=0.1)
    folder.add_failure(planned(1), "ValueError: no", "Traceback ...")
    folder.set_predictor("encoder", METRICS)
    folder.write_summary()
    return folder


def test_summary_fits_the_schema_of_the_repository(folder):
    schema = json.loads(summary.SCHEMA_FILE.read_text(encoding="utf-8"))
    written = json.loads((folder.path / "summary.json").read_text(encoding="utf-8"))
    jsonschema.validate(written, schema, cls=jsonschema.Draft202012Validator)
    broken = json.loads(json.dumps(written))
    broken["runs"][0]["slo_attainment"] = 7
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_schema_file_and_document_are_up_to_date():
    written = summary.SCHEMA_FILE.read_text(encoding="utf-8")
    assert written == results_schema.schema_text(), "run python scripts/results_schema.py"
    document = results_schema.DOCUMENT.read_text(encoding="utf-8")
    assert results_schema.fill_document(document) == document, "run python scripts/results_schema.py"
    for name in RunRow.model_fields:
        assert f"| `{name}` |" in document


def test_every_key_of_a_run_is_known_to_the_schema(folder):
    empty = RunResult("vllm", "none", None, 0, [], EngineTotals()).summary()
    assert empty.keys() <= RunRow.model_fields.keys()
    assert set(RunRow.model_fields) - empty.keys() == {
        "run", "engine", "condition", "kv_demand_peak", "wall_s", "requests_sha256", "search", "trace",
        "slo_scale", "gpu", "model", "replicas", "router",
        "prediction_mae_tokens", "prediction_within_50", "prediction_within_100", "prediction_kendall_tau",
    }  # fmt: skip
    described = [info.description for info in RunRow.model_fields.values()]
    assert all(described)


def test_old_keys_are_written_beside_the_new_ones_and_read_as_them(folder):
    written = json.loads((folder.path / "summary.json").read_text(encoding="utf-8"))["runs"][0]
    assert {old: written[old] for old in SUMMARY_KEYS} == {old: written[new] for old, new in SUMMARY_KEYS.items()}
    assert written["kvc_used_mean"] == 0.5
    # A record of the version before has the old keys alone.
    file = folder.path / "runs" / f"{planned(0).key}.json"
    record = json.loads(file.read_text(encoding="utf-8"))
    old_names = {new: old for old, new in SUMMARY_KEYS.items()}
    before = folder.summary()
    record["row"] = {old_names.get(name, name): value for name, value in record["row"].items()}
    file.write_text(json.dumps(record), encoding="utf-8")
    assert folder.summary() == before
    assert folder.finished_row(planned(0).key)["kv_used_mean"] == 0.5
    properties = summary.json_schema()["$defs"]["RunRow"]["properties"]
    assert all(properties[old]["deprecated"] for old in SUMMARY_KEYS)


def test_row_of_a_run_with_no_requests_is_whole():
    row = run_row(planned(), RunResult("vllm", "none", 1.0, 0, [], EngineTotals()))
    assert row["requests"] == 0
    assert row["throughput_rps"] is None
    assert row["prediction_kendall_tau"] is None


def test_request_rows_are_complete(folder):
    expected = run(planned(0)).rows
    table = pq.read_table(folder.path / "requests" / f"{planned(0).key}.parquet").to_pylist()
    assert len(table) == len(expected)
    assert table[3]["request_id"] == expected[3].request_id
    assert table[3]["e2el_s"] == expected[3].e2el_s
    assert table[3]["met_deadline"] is None
    document = (ROOT / "docs" / "reference" / "results-schema.md").read_text(encoding="utf-8")
    assert all(f"| `{column}` |" in document for column in table[0])


def test_request_rows_of_a_run_without_requests(folder):
    folder.add(planned(7), RunResult("vllm", "none", 1.0, 7, [], EngineTotals()))
    assert pq.read_table(folder.path / "requests" / f"{planned(7).key}.parquet").num_rows == 0


def test_reading_gives_what_was_written(folder):
    again = ResultFolder.open(folder.path)
    assert again.summary() == folder.summary()
    assert Summary.model_validate_json((folder.path / "summary.json").read_text(encoding="utf-8")) == again.summary()
    assert again.finished() == {planned(0).key}
    assert [failure.error for failure in again.summary().failures] == ["ValueError: no"]
    assert again.summary().predictor["encoder"].mae_tokens == 46.2
    plan = yaml.safe_load((folder.path / "sweep.yaml").read_text(encoding="utf-8"))
    assert plan["runs"][0]["settings"]["requests"] == 40
    assert plan["meta"]["versions"]["python"]


def test_a_full_folder_is_refused_without_resume(folder):
    with pytest.raises(ConfigError, match="--resume"):
        ResultFolder.create(folder.path, Meta())
    kept = ResultFolder.create(folder.path, Meta(), resume=True)
    assert kept.summary().runs == []  # not before the plan names them again
    kept.expect([planned(0), planned(2)])
    assert [row.run for row in kept.summary().runs] == [planned(0).key]
    assert kept.finished() == {planned(0).key}


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is not a folder"):
        ResultFolder.create(tmp_path / "file", Meta())


def test_a_failed_run_that_succeeds_later_is_no_failure(folder):
    folder.add(planned(1), run(planned(1)))
    assert folder.summary().failures == []
    assert len(folder.summary().runs) == 2


def test_describe_changes_and_writes_meta(folder):
    folder.describe(synthetic=True, trace={"source": "synthetic", "records": 3})
    assert ResultFolder.open(folder.path).meta.trace.records == 3
    assert folder.meta.title == "test"


def test_hash_ignores_wall_clock_and_order_and_nothing_else():
    rows = [run_row(planned(s), run(planned(s)), wall_s=s) for s in (0, 1)]
    again = [run_row(planned(s), run(planned(s)), wall_s=9 + s) for s in (1, 0)]
    assert rows[0]["schedule_p50_ms"] != again[1]["schedule_p50_ms"]
    assert runs_sha256(rows) == runs_sha256(again)
    assert runs_sha256([{**rows[0], "preemptions": 99}, rows[1]]) != runs_sha256(rows)


@pytest.mark.parametrize("content", ["", "meta: [", "{meta: {}, runs: [{}]}", "{meta: {commands: 3}, runs: []}"])
def test_damaged_plan_is_one_line(folder, content):
    (folder.path / "sweep.yaml").write_text(content)
    with pytest.raises(InputError, match="is damaged"):
        ResultFolder.open(folder.path)


def test_no_result_folder(tmp_path):
    with pytest.raises(InputError, match="not a result folder"):
        ResultFolder.open(tmp_path)


def test_damaged_run_names_its_file(folder):
    file = folder.path / "runs" / f"{planned(0).key}.json"
    file.write_text(file.read_text()[:50])
    with pytest.raises(InputError, match=f"{file.name}.*is damaged"):
        folder.summary()


def test_writing_leaves_the_old_file_whole_when_it_fails(tmp_path, monkeypatch):
    target = results.write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(ValueError, match="JSON"):
        results.write_json(target, {"new": math.nan})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        results.write_json(target, {"new": 2})
    assert json.loads(target.read_text()) == {"old": 1}
    assert [f.name for f in tmp_path.iterdir()] == ["a.json"]


def test_accuracy_against_hand_worked_values():
    def row(predicted: float | None, true: int, **more: object) -> RequestRow:
        return RequestRow("r", 0.0, 1, output_tokens=true, predicted_tokens=predicted, **more)

    rows = [row(100, 100), row(160, 100), row(400, 200), row(None, 5), row(1.0, 900, status="failed")]
    a = prediction_accuracy(rows)
    assert a["prediction_mae_tokens"] == pytest.approx((0 + 60 + 200) / 3)
    assert a["prediction_within_50"] == pytest.approx(1 / 3)
    assert a["prediction_within_100"] == pytest.approx(2 / 3)
    # Two of three pairs are ordered rightly, one is tied in truth: (2 - 0) / sqrt(3 * 2).
    assert a["prediction_kendall_tau"] == pytest.approx(2 / math.sqrt(6))
    assert prediction_accuracy([row(5, 5)])["prediction_kendall_tau"] is None
    assert set(prediction_accuracy([]).values()) == {None}


def test_schema_version_is_in_every_summary():
    assert Summary().model_dump()["schema_version"] == summary.SCHEMA_VERSION
