"""The two commands: what they write, say and return."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from ecoserve.cli import report, sweep
from ecoserve.cli.common import guard

PLAN = """
title: Small
trace: synthetic
lengths: [true, noise:0.5, none]
rates: [3]
seeds: [0, 1]
requests: 20
run: small_runs:queue
"""


def call(command: object, *arguments: str | Path) -> int:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    return guard(lambda: app([str(a) for a in arguments], prog_name="ecoserve", standalone_mode=False))


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(PLAN, encoding="utf-8")
    return path


def test_sweep_writes_results_and_report(plan, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(sweep.command, plan, "-o", out, "--jobs", "0", "--json", tmp_path / "s.json") == 0
    names = {path.name for path in out.iterdir()}
    assert names == {"sweep.yaml", "runs", "requests", "kv", "summary.json", "report.html"}
    summary = json.loads((tmp_path / "s.json").read_text(encoding="utf-8"))
    assert summary == json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert len(summary["runs"]) == 2 * (1 + 3)
    assert summary["meta"]["synthetic"] is True
    assert summary["meta"]["settings"]["requests"] == 20
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "report.html" in captured.err


@pytest.mark.usefixtures("quick_workers")
def test_sweep_in_worker_processes_and_json_to_stdout(plan, tmp_path, capsys):
    assert call(sweep.command, plan, "-o", tmp_path / "out", "--jobs", "2", "--json", "-", "--quiet") == 0
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)["runs"]) == 8
    assert captured.err == ""


def test_a_folder_is_not_run_over_but_resumed(plan, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(sweep.command, plan, "-o", out, "--jobs", "0") == 0
    first = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert call(sweep.command, plan, "-o", out, "--jobs", "0") == 2
    assert "--resume" in capsys.readouterr().err
    longer = plan.with_name("longer.yaml")
    longer.write_text(PLAN.replace("[0, 1]", "[0, 1, 2]"), encoding="utf-8")
    assert call(sweep.command, longer, "-o", out, "--jobs", "0", "--resume") == 0
    second = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    kept = {run["run"]: run["wall_s"] for run in second["runs"]}
    assert len(kept) == 12
    assert all(kept[run["run"]] == run["wall_s"] for run in first["runs"])


def test_dry_run_runs_nothing(plan, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(sweep.command, plan, "-o", out, "--dry-run", "--json", "-") == 0
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert (len(said["runs"]), said["to_run"], said["at_most_more"]) == (8, 8, 0)
    assert said["estimated_s"] > 0
    assert said["estimated_from"] == "a short run of each of 2 policies"
    assert "8 of 8 runs to do; time: about" in captured.err
    assert not out.exists()
    assert call(sweep.command, plan, "-o", out, "--jobs", "0", "--quiet") == 0
    longer = plan.with_name("longer.yaml")
    longer.write_text(PLAN.replace("[0, 1]", "[0, 1, 2]"), encoding="utf-8")
    before = (out / "sweep.yaml").read_bytes()
    assert call(sweep.command, longer, "-o", out, "--dry-run", "--json", "-") == 0
    said = json.loads(capsys.readouterr().out)
    assert (len(said["runs"]), said["to_run"]) == (12, 4)
    assert said["estimated_s"] > 0
    assert said["estimated_from"] == "8 finished runs"
    assert (out / "sweep.yaml").read_bytes() == before


def test_dry_run_of_what_fails_says_so(plan, tmp_path, capsys):
    plan.write_text(PLAN.replace("small_runs:queue", "small_runs:refuses"), encoding="utf-8")
    assert call(sweep.command, plan, "-o", tmp_path / "out", "--dry-run") == 0
    assert "policy vllm fails: synthetic: no such trace" in capsys.readouterr().err


def test_dry_run_of_a_search_counts_what_may_come(plan, tmp_path, capsys):
    search = "search: {range: [0.5, 64], metric: normalized_latency_mean_ms, at_most: 23}"
    plan.write_text(f"{PLAN}{search}\n", encoding="utf-8")
    out = tmp_path / "out"
    assert call(sweep.command, plan, "-o", out, "--dry-run", "--json", "-") == 0
    said = json.loads(capsys.readouterr().out)
    # Four settings of which the first seed begins; each may come to twelve rates with two seeds.
    assert (len(said["runs"]), said["to_run"], said["at_most_more"]) == (8 + 4, 12, 4 * (24 - 1))
    assert call(sweep.command, plan, "-o", out, "--jobs", "0") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "rates tried" in line]
    assert [line.partition(":")[0] for line in lines][:2] == ["vllm, lengths none", "ecoserve, lengths true"]
    assert "(found; " in lines[0]
    assert call(sweep.command, plan, "-o", out, "--dry-run", "--json", "-") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["to_run"], said["at_most_more"], said["estimated_s"]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--ray", "127.0.0.1:7", "--jobs", "2"], "--jobs: the cluster decides"),
        (["--ray", "nowhere"], "--ray nowhere: no Ray cluster answers"),
    ],
)
def test_a_cluster_that_cannot_be_used_leaves_nothing_behind(plan, tmp_path, capsys, options, message):
    pytest.importorskip("ray")
    assert call(sweep.command, plan, "-o", tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_server_is_not_run_at_twice_at_once(plan, tmp_path, capsys):
    plan.write_text("{trace: synthetic, rates: 1, engine: url, urls: {vllm: 'http://127.0.0.1:9'}}", encoding="utf-8")
    assert call(sweep.command, plan, "-o", tmp_path / "out", "--jobs", "2") == 2
    assert "disturb each other" in capsys.readouterr().err


def test_failed_runs_end_in_code_1_with_the_rest_written(plan, tmp_path, capsys):
    plan.write_text(PLAN.replace("small_runs:queue", "small_runs:fails_on_seed_one"), encoding="utf-8")
    assert call(sweep.command, plan, "-o", tmp_path / "out", "--jobs", "0") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "4 of 8 runs failed, the first with: ZeroDivisionError: one seed fails" in error
    assert "--resume" in error
    assert len(json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["runs"]) == 4
    assert (tmp_path / "out" / "report.html").exists()


def test_ctrl_c_leaves_a_readable_folder(plan, tmp_path, capsys):
    plan.write_text(PLAN.replace("small_runs:queue", "small_runs:interrupts_on_seed_one"), encoding="utf-8")
    assert call(sweep.command, plan, "-o", tmp_path / "out", "--jobs", "0") == 130
    assert (tmp_path / "out" / "report.html").exists()
    assert len(json.loads((tmp_path / "out" / "summary.json").read_text(encoding="utf-8"))["runs"]) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [("trace: nowhere.json\nrates: 1", "there is no nowhere.json"), ("rates: [", "is not YAML"), ("rates: 1", "trace")],
)
def test_bad_plans_are_one_line_and_code_2(plan, tmp_path, capsys, text, message):
    plan.write_text(text, encoding="utf-8")
    assert call(sweep.command, plan, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_report_rebuilds(plan, tmp_path, capsys):
    out = tmp_path / "out"
    assert call(sweep.command, plan, "-o", out, "--jobs", "0", "--quiet") == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    (out / "report.html").unlink()
    (out / "summary.json").unlink()
    assert call(report.command, out, "--json", "-") == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 8
    assert (out / "report.html").read_text(encoding="utf-8") == page


def test_report_of_something_else(tmp_path, capsys):
    assert call(report.command, tmp_path) == 2
    assert "is not a result folder" in capsys.readouterr().err
