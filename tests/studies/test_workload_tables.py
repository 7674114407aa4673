"""docs/guides/workloads.md says what the models and the result file say, and its example runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import workload_tables as tables

from ecoserve.data import load_trace
from ecoserve.data.workloads.spec import Workload

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "guides" / "workloads.md").read_text(encoding="utf-8")


def test_every_key_and_process_has_its_row() -> None:
    processes = set(re.findall(r"\n### `arrivals`: `process: ([a-z-]+)`", TEXT))
    schema = json.dumps(Workload.model_json_schema())
    assert processes == set(re.findall(r'"const": "([a-z-]+)"', schema)) - {"best"}
    documented = {model for _, model, _ in tables.SECTIONS}
    named = set(re.findall(r'"#/\$defs/(\w+)"', schema)) | {"Workload"}
    assert named - {model.__name__ for model in documented} == {"FittedLength", "FittedCorrelation"}  # one key each


def test_the_example_runs(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    path = tmp_path / "my_traffic.yaml"
    path.write_text(example, encoding="utf-8")
    trace = load_trace(path)
    assert len(trace) == 2000
    assert {r.conversation.partition("-")[0] for r in trace.records} == {"chat", "documents"}
    assert all(r.prompt and r.arrival_s is not None for r in trace.records)


def test_what_the_document_says_of_the_fits_is_in_the_result_file() -> None:
    """The sentences beneath the tables, recounted."""
    traces = {t["trace"]: t for t in json.loads((ROOT / "benchmarks/results/workload_fit.json").read_text())["traces"]}
    sides = [t[side] for t in traces.values() for side in ("response", "prompt") if side in t]
    over_chance = [side["laws"][0]["ks"] / side["ks_of_chance"] for side in sides]
    assert "KS is 2 to 18 times" in TEXT
    assert (round(min(over_chance)), round(max(over_chance))) == (2, 18)
    share, lmsys = traces["ShareGPT (Llama 2 tokens)"], traces["LMSYS (Vicuna 13B)"]
    assert "29 % and 65 % too high; with `longest` it is within 1 %" in TEXT
    for row, above in ((share["response"], 29), (lmsys["response"], 65)):
        free, bound = row["laws"][0], row["laws_with_longest"][0]
        seen = free["quantiles_seen"]["0.99"]
        assert round(100 * (free["quantiles_fitted"]["0.99"] / seen - 1)) == above
        assert abs(bound["quantiles_fitted"]["0.99"] / seen - 1) < 0.01
        assert bound["ks"] < free["ks"] / 2
    assert share["response"]["laws"][-1]["law"] == "lognormal"
    best = [t["response"]["laws"][0]["law"] for t in traces.values()]
    assert (set(best), best.count("lognormal")) == ({"weibull", "gamma", "logt", "lognormal"}, 1)
    clumps = traces["Azure 2023 code"]["workload"]
    assert "(68, not 13)" in TEXT
    assert round(clumps["empirical"]["dispersion_1s"]) == 68
    assert [round(clumps[kind]["dispersion_1s"]) for kind in ("trace", "fitted")] == [13, 13]
    rest = [t["workload"]["trace"].get("rank_correlation", 0.0) for n, t in traces.items() if "Mooncake" not in n]
    assert "between -0.12 and 0.05" in TEXT
    assert (round(min(rest), 2), round(max(rest), 2)) == (-0.12, 0.05)
