"""``ecoserve simulate`` as it is typed: what it writes, what it says, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from ecoserve.cli.main import main
from ecoserve.sweep.summary import SCHEMA_FILE, WALL_CLOCK_KEYS

#: A load that presses a small KV.
LOAD = "--trace synthetic:200 --requests 24 --max-tokens 300 --max-model-len 1024 --max-num-batched-tokens 512"
PRESSED = f"{LOAD} --rate 30 --kv-blocks 90"
ON_GPU = "--gpu h100_sxm --model llama-3.1-8b"


def simulate(words: str) -> int:
    return main(["simulate", *words.split()])


def run(words: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> dict[str, Any]:
    """The summary on stdout of one command that ends with ``code``."""
    assert simulate(f"{words} --json -") == code
    summary: dict[str, Any] = json.loads(capsys.readouterr().out)
    return summary


def figures(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in WALL_CLOCK_KEYS} for row in summary["runs"]]


# -- results ----------------------------------------------------------------------------------------------------------


def test_axes_multiply_and_the_summary_keeps_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    words = f"{PRESSED} --rate 30,inf --policy vllm,ecoserve --lengths noise:0.5,none --seeds 2 --seed 3"
    summary = run(words, capsys)
    jsonschema.validate(summary, json.loads(SCHEMA_FILE.read_text()))
    runs = summary["runs"]
    assert len(runs) == 2 * 2 * (1 + 2), "rates x seeds x (vllm once, ecoserve with two kinds of lengths)"
    assert {(r["policy"], r["lengths"]) for r in runs} == {
        ("vllm", "none"),
        ("ecoserve", "noise:0.5"),
        ("ecoserve", "none"),
    }
    assert {r["seed"] for r in runs} == {3, 4}
    assert {r["rate_rps"] for r in runs} == {30.0, None}
    assert {r.get("arrivals") for r in runs if r["rate_rps"] is None} == {"at once"}
    assert all(r["completed"] + r["rejected"] == r["requests"] == 24 for r in runs)
    assert all(r["blocks"] == 90 and r["engine"] == "virtual" for r in runs)
    assert len({r["run"] for r in runs}) == len(runs)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_run_repeats_exactly(depth: int, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"{PRESSED} --depth {depth} --replicas 2 --policy ecoserve,vllm-watermark --lengths noise:0.5"
    first, second = (run(words, capsys) for _ in range(2))
    assert figures(first) == figures(second)
    assert first["meta"]["runs_sha256"] == second["meta"]["runs_sha256"]


def test_a_folder_holds_every_request_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import pyarrow.parquet as pq

    words = f"{PRESSED} --policy vllm,ecoserve -o {tmp_path}/out"
    assert simulate(f"{words} --json {tmp_path}/one.json") == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert json.loads((tmp_path / "one.json").read_text()) == summary
    rows = [pq.read_table(tmp_path / "out" / "requests" / f"{r['run']}.parquet").to_pylist() for r in summary["runs"]]
    assert [len(r) for r in rows] == [24, 24]
    assert [sum(x["preemptions"] for x in r) for r in rows] == [r["preemptions"] for r in summary["runs"]]
    assert simulate(words) == 2, "a folder is not written over"
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "runs").iterdir()}
    capsys.readouterr()
    assert simulate(f"{words} --resume --policy vllm,ecoserve,ecoserve-d --trace-out {tmp_path}/new.json") == 0
    assert "shows the runs that are run now" in capsys.readouterr().err
    drawn = [e for e in json.loads((tmp_path / "new.json").read_text())["traceEvents"] if e["name"] == "process_name"]
    assert [e["args"]["name"].partition(",")[0] for e in drawn] == ["ecoserve-d"]
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "runs").iterdir()}
    assert len(after) == 3
    assert before.items() <= after.items(), "what was finished was run again"
    assert main(["report", str(tmp_path / "out")]) == 0
    assert "vllm" in (tmp_path / "out" / "report.html").read_text()
    capsys.readouterr()


def test_the_table_the_pressure_and_the_notes_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulate(f"{PRESSED} --seeds 2") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "answers are cut at max_tokens 300" in err
    at = next(i for i, line in enumerate(err.splitlines()) if line.startswith("policy "))
    header, stock, ours = (line.split() for line in err.splitlines()[at : at + 3])
    assert header[:3] == ["policy", "lengths", "rate"]
    assert stock[:4] == ["vllm", "none", "30", "24"]
    assert ours[:4] == ["ecoserve", "true", "30", "24"]
    assert "pressure: with no queueing, the load's peak KV demand is" in err
    assert "there is no KV pressure" not in err
    assert simulate(f"{LOAD} --rate 2 --kv-blocks 2000 --policy vllm") == 0
    assert "there is no KV pressure" in capsys.readouterr().err
    assert simulate(f"{LOAD} --rate 2 --kv-blocks 2000 --policy vllm --quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_recorded_arrivals_and_prompts_that_do_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [
        {
            "conversation": f"c{i}",
            "turn": 0,
            "prompt_tokens": 40 if i else 900,
            "response_tokens": 30,
            "arrival_s": 5.0 + i,
        }
        for i in range(6)
    ]
    trace.write_text("\n".join(json.dumps(row) for row in rows))
    words = f"--trace {trace} --policy vllm --max-tokens 64 --kv-blocks 400"
    (only,) = run(f"{words} --requests 4", capsys)["runs"]
    assert (only["requests"], only["rate_rps"]) == (4, None)
    assert only["duration_s"] == pytest.approx(3.0, abs=1.0)
    assert simulate(f"{words} --max-model-len 128") == 0
    assert "1 of 6 rows are skipped: their prompts exceed 64 tokens" in capsys.readouterr().err


def test_the_picture_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "picture.json"
    words = f"{PRESSED} --policy vllm,ecoserve --trace-out {picture} --trace-requests 5 --trace-window 0:0.5"
    assert simulate(words) == 0
    events = json.loads(picture.read_text())["traceEvents"]
    names = {e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {
        "vllm, none, 30 req/s, seed 0, replica 0",
        "ecoserve, true, 30 req/s, seed 0, replica 0",
    }
    assert max(e["ts"] for e in events if "ts" in e) <= 0.5e6
    capsys.readouterr()


def test_on_a_modelled_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    words = f"{LOAD} {ON_GPU} --rate 20 --policy vllm"
    two, one, measured = (
        run(f"{words} {more}", capsys)["runs"][0] for more in ("", "--depth 1", "--charge-scheduler measured")
    )
    assert (two["gpu"], two["model"], two["tp"]) == ("h100_sxm", "llama-3.1-8b", 1)
    assert two["blocks"] > 10_000, "an H100 holds more than a hundred thousand tokens of an 8B model"
    assert two["tpot_mean_ms"] < one["tpot_mean_ms"], "at depth 2 the host's time is hidden"
    assert 4.0 < two["tpot_mean_ms"] < 20.0
    assert measured["repeatable"] is False
    halved = run(f"{words} --tp 2 --kv-blocks 100", capsys)["runs"][0]
    assert halved["blocks"] == 100
    assert halved["tpot_mean_ms"] < two["tpot_mean_ms"]


def test_sweeps_take_modelled_gpus_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "sweep.yaml"
    plan.write_text(
        "{trace: 'synthetic:200', policies: vllm, rates: 20, seeds: 0, requests: 10, lengths: none,"
        " settings: {gpu: h100_sxm, model: llama-3.1-8b, max_tokens: 100, max_model_len: 1024}}"
    )
    assert main(["sweep", str(plan), "-o", str(tmp_path / "out"), "--jobs", "0", "--quiet"]) == 0
    (row,) = json.loads((tmp_path / "out" / "summary.json").read_text())["runs"]
    assert (row["gpu"], row["completed"]) == ("h100_sxm", 10)
    capsys.readouterr()


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_a_missed_slo_is_exit_code_3_with_the_results_written(capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(f"{PRESSED} --policy vllm --slo-ttft-ms 36 --slo-tpot-ms 20", capsys, code=3)
    (row,) = summary["runs"]
    assert 0 < row["slo_attainment"] < 0.9
    assert simulate(f"{PRESSED} --policy vllm --slo-ttft-ms 36 --slo-tpot-ms 20") == 3
    err = capsys.readouterr().err
    assert "1 of 1 runs meet the SLO for less than 90%" in err
    kept = f"--min-attainment {row['slo_attainment'] - 0.01}"
    assert simulate(f"{PRESSED} --policy vllm --slo-ttft-ms 36 --slo-tpot-ms 20 {kept}") == 0
    assert simulate(f"{PRESSED} --policy vllm --slo-scale 1000") == 0
    capsys.readouterr()


# -- what cannot be used -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--gpu h1000 --model llama-3.1-8b", "h1000"),
        ("--policy vllm,vllm-priority --scheduler reserve=0.1", "have no knobs"),
        ("--gpu h100_sxm --model no-such-model", "no-such-model"),
        ("--gpu h100_sxm", "gpu h100_sxm needs a model to serve"),
        ("--model llama-3.1-8b", "model, tp and link need a GPU"),
        ("--tp 2", "model, tp and link need a GPU"),
        (f"{ON_GPU} --tp 3", "3"),
        ("--gpu l40s --model llama-3.1-70b", "llama-3.1-70b"),
        (f"{ON_GPU} --max-model-len 1000000", "max_model_len 1000000 is more than llama-3.1-8b's"),
        ("--policy vllm,orca2", "policy 'orca2' is not known"),
        ("--policy ,", "--policy: names nothing"),
        ("--lengths guessed", "'guessed' is none of true"),
        ("--lengths true,noise:x", "noise:x"),
        ("--rate fast", "--rate: 'fast' is no rate"),
        ("--rate 0", "--rate: '0' is no rate"),
        ("--rate recorded", "the trace has no recorded arrivals; give --rate"),
        ("--kv-blocks 10", "10 KV blocks of 16 tokens cannot hold"),
        ("--max-tokens 1024", "leaves no room for a prompt"),
        ("--max-num-batched-tokens 64", "max_num_batched_tokens (64) must be greater"),
        ("--scheduler reserve", "'reserve' is not KEY=VALUE"),
        ("--scheduler zed=1 --policy ecoserve", "--scheduler zed: there is no such setting; one of policy,"),
        ("--router fastest", "--router: must be 'round-robin', "),
        ("--charge-scheduler twice", "--charge-scheduler: must be"),
        ("--slo-ttft-ms -1", "--slo-ttft-ms: must be greater than 0, not '-1'"),
        ("--min-attainment 0.5", "--min-attainment: needs an SLO"),
        ("--trace-window 9:3 --trace-out x.json", "--trace-window: '9:3' is no window"),
        ("--trace absent.json", "absent.json: no such file"),
        ("--split valid", "no rows of split 'valid'"),
        ("--depth 3", "--depth: must be less than or equal to 2"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_leaves_nothing(
    words: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert simulate(f"{LOAD} --rate 10 -o out {words}") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert named in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
