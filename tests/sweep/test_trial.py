"""``ecoserve try``: what it says of repeats, how it spends its time, what it refuses, and all of it on an engine."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest
import small_runs

from ecoserve.cli.main import main
from ecoserve.serving.engine_run import EngineRunSettings
from ecoserve.serving.trial_engine import Capacity
from ecoserve.sweep import trial as trying
from ecoserve.sweep.identity import PlannedRun, describe_run
from ecoserve.sweep.report import write_report
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import Summary, TrialRow

FLAGS = [
    *("--load-format=dummy", "--dtype=float32", "--enforce-eager", "--max-model-len=512", "--max-num-seqs=8"),
    *("--block-size=32", "--num-gpu-blocks-override=97", "--no-enable-prefix-caching"),
]
ROWS = [("vllm", "none"), ("vllm-priority", "noise:0.3"), ("ecoserve", "noise:0.3")]


def trial(tmp_path: Path, minutes: float = 10_000.0, rows: list[tuple[str, str]] = ROWS) -> trying.Trial:
    settings = EngineRunSettings(model="m", trace="synthetic:100", max_model_len=512, max_tokens=128, policy="vllm")
    folder = ResultFolder.create(tmp_path / "out", describe_run("try"))
    row = TrialRow(level="full", level_reason="known", order_seed=7)
    now = time.monotonic()
    return trying.Trial(None, folder, settings, rows, {}, row, now, now + 60 * minutes, lambda *_: None)


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> list[PlannedRun]:
    """A queue in place of the engine; gives what was run, in its order."""
    ran: list[PlannedRun] = []

    def run(self: trying.Trial, planned: PlannedRun) -> None:
        s = planned.settings
        known = {k: s[k] for k in ("lengths", "seed", "requests")}
        # What one slot of `small_runs` serves in a second, times eight.
        settings = {**known, "rate_rps": s["rate_rps"] * 3.0, "policy": s["policy"].replace("-priority", "")}
        result = small_runs.untyped(settings)
        result.policy = s["policy"]
        self.folder.add(planned, result)
        ran.append(planned)

    monkeypatch.setattr(trying, "calibrate", lambda *_: Capacity(1.0, 5.0, 100.0))
    monkeypatch.setattr(trying.Trial, "_one", run)
    return ran


def test_rows_of_a_rate_follow_each_other_in_an_order_that_the_seed_draws(
    tmp_path: Path, queue: list[PlannedRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trying, "_MOST_REPEATS", 4)
    found = trial(tmp_path)
    found.run()
    assert (found.row.repeats, found.row.ended) == (4, "done")
    names = [(run.settings["seed"], run.labels["condition"], run.settings["policy"]) for run in queue]
    assert len(set(names)) == len(names) == 4 * 3 * 3
    for i in range(0, len(names), 3):
        assert len({name[:2] for name in names[i : i + 3]}) == 1
    firsts = [policy for *_, policy in names[::3]]
    assert len(set(firsts)) == 3, "every row is first at times"
    again = list(trying.drawn(queue[:9], 3, random.Random(1)))
    assert again == list(trying.drawn(queue[:9], 3, random.Random(1))) != queue[:9]
    requests = {name[1]: run.settings["requests"] for name, run in zip(names, queue, strict=True)}
    assert requests["at capacity"] == pytest.approx(2 * requests["half capacity"], abs=1)
    assert "buys" in found.row.sentence
    assert "4 paired repeats" in found.row.sentence


@pytest.mark.parametrize(("stop_at", "ended"), [(5, "interrupted"), (12, "interrupted"), (14, "time")])
def test_what_was_run_is_reported_however_it_ends(
    tmp_path: Path, queue: list[PlannedRun], monkeypatch: pytest.MonkeyPatch, stop_at: int, ended: str
) -> None:
    found = trial(tmp_path)
    run = trying.Trial._one

    def until(self: trying.Trial, planned: PlannedRun) -> None:
        run(self, planned)
        if len(queue) == stop_at:
            if ended == "interrupted":
                raise KeyboardInterrupt
            self.deadline = time.monotonic() - 1

    monkeypatch.setattr(trying.Trial, "_one", until)
    found.run()
    write_report(found.folder)
    summary = Summary.model_validate_json((found.folder.path / "summary.json").read_text())
    assert summary.trial is not None
    assert (summary.trial.ended, len(summary.runs)) == (ended, stop_at)
    assert summary.trial.repeats == stop_at // 9
    page = (found.folder.path / "report.html").read_text()
    assert summary.trial.sentence[:40] in page
    if stop_at < 9:
        assert "Nothing was run to the end" in summary.trial.sentence or "one repeat" in summary.trial.sentence


@pytest.mark.parametrize(
    ("left_s", "capacity", "seconds"),
    [
        (1000.0, Capacity(1.0, 1.0, 1.0), 1000 * 0.85 / (3 * 3.5) / 5),  # five repeats
        (1000.0, Capacity(1.0, 10.0, 1.0), 20.0),  # two stays each
        (1000.0, Capacity(1.0, 19.0, 1.0), 1000 * 0.85 / (3 * 3.5) / 3),  # three repeats at least
        (1000.0, Capacity(1.0, 1.0, 2.0), 500 * 0.85 / (3 * 3.5) / 5),  # a clock at half the pace
    ],
)
def test_runs_are_as_long_as_three_to_five_repeats_allow(left_s: float, capacity: Capacity, seconds: float) -> None:
    assert trying.run_seconds(left_s, 3, capacity) == pytest.approx(seconds)


def test_without_lengths_there_is_no_row_by_priority() -> None:
    assert trying.rows_of("order", "none") == [("vllm", "none"), ("order", "none")]
    assert trying.rows_of("ecoserve", "true") == [("vllm", "none"), ("vllm-priority", "true"), ("ecoserve", "true")]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("{model}", "--trace"),
        ("--trace synthetic:100", "MODEL"),
        ("{model} --trace nowhere.json", "nowhere.json"),
        ("{model} --trace synthetic:100 --minutes 0.1", "--minutes"),
        ("{model} --trace synthetic:100 --lengths guess", "none of true"),
        ("{model} --trace synthetic:100 --predictor nowhere", "nowhere"),
        ("{model} --trace synthetic:100 --predictor p --lengths true", "contradicts"),
        ("{model} --trace synthetic:100 --threads 2 --clock cpu", "--threads 1"),
        ("{model} --trace synthetic:100 -o {full}", "not empty"),
        ("{model} --trace synthetic:100 --scheduler-cls a.B", "--scheduler-cls"),
        ("{model} --trace synthetic:100 --data-parallel-size 2", "--data-parallel-size"),
        ("{model} --trace synthetic:100 --max-num-sseqs 4", "--max-num-seqs"),
        ("llama-3.1-8b --trace synthetic:100", "--load-format dummy"),
        ("nowhere/at/all --trace synthetic:100 --load-format dummy", "no such model folder"),
    ],
)
def test_what_cannot_be_tried_is_one_line(
    words: str, message: str, tmp_path: Path, model_config_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    out = tmp_path / "out"
    typed = words.format(model=model_config_dir, full=tmp_path / "full").split()
    assert main(["try", *typed, *([] if "-o" in typed else ["-o", str(out)])]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert not out.exists()


@pytest.mark.engine
@pytest.mark.filterwarnings("ignore")
def test_all_of_it_on_a_real_engine_with_a_config_only(
    tmp_path: Path, model_config_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "tiny"
    model.mkdir()
    config = json.loads((model_config_dir / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    facts = trying.facts
    # The model of a GPU stands beside the CPU: its error says nothing, that it is there does.
    monkeypatch.setattr(trying, "facts", lambda engine: {**facts(engine), "gpu": "NVIDIA H200"})
    monkeypatch.setattr(trying, "run_seconds", lambda *_: 0.5)
    monkeypatch.setattr(trying, "_MOST_REPEATS", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"
    words = ["--trace", "synthetic:200", "--lengths", "true", "--max-tokens", "64", "-o", str(out), "--json", "-"]
    words += ["--minutes", "10000"]  # however slow the machine is
    assert main(["try", str(model), *words, *FLAGS]) == 0
    shown = capsys.readouterr()
    summary: dict[str, Any] = json.loads(shown.out)
    trial = summary["trial"]
    assert (trial["level"], trial["repeats"], trial["ended"]) == ("full", 2, "done")
    assert trial["capacity_rps"] > 0
    rates = {run["condition"]: run["rate_rps"] for run in summary["runs"]}
    assert rates["1.5 times capacity"] == pytest.approx(3 * rates["half capacity"], rel=0.02)
    assert len(summary["runs"]) == 2 * 3 * 3
    for run in summary["runs"]:
        assert run["completed"] == run["requests"] >= 10
        assert (run["clock"], run["blocks"], run["engine"]) == ("cpu", 96, "in-process")
    same = [r for r in summary["runs"] if (r["condition"], r["seed"]) == ("at capacity", 0)]
    rows = [json.loads((out / "runs" / f"{r['run']}.json").read_text())["settings"] for r in same]
    assert len({(s["requests"], s["rate_rps"]) for s in rows}) == 1
    assert summary["meta"]["model_runner"].startswith("V1 (vllm.v1.worker.cpu_model_runner")
    assert summary["meta"]["scheduler_mode"] == "sync, 1 step in flight"
    assert summary["meta"]["hardware"]["gpu"] == "NVIDIA H200"
    assert {s["batch"] for s in trial["steps"]} == {1, 8}, "a batch of 32 does not fit"
    assert all(s["measured_ms"] > 0 and s["modelled_ms"] > 0 for s in trial["steps"])
    assert {f["policy"] for f in trial["modelled"]} == {"vllm", "vllm-priority", "ecoserve"}
    assert "2 paired repeats" in trial["sentence"]
    assert trial["sentence"] in shown.err
    page = (out / "report.html").read_text()
    assert "Error of the model" in page
    assert "Row by row" in page
