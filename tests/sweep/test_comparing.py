"""Two folders compared: what noise is called, what an effect is called, and by which right."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import small_runs
import typer

from ecoserve.cli import report
from ecoserve.cli.common import guard
from ecoserve.serving.runs import RunResult
from ecoserve.sweep.comparing import MARGIN, Comparison, Difference, compare, verdict_of
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import Meta

NORMALIZED = "normalized_latency_mean_ms"


def scaled(result: RunResult, factor: float) -> RunResult:
    """Every latency times a factor; arrivals as they are."""
    for row in result.rows:
        assert row.first_token_s is not None
        assert row.finish_s is not None
        row.first_token_s = row.arrival_s + factor * (row.first_token_s - row.arrival_s)
        row.finish_s = row.arrival_s + factor * (row.finish_s - row.arrival_s)
    return result


def folder(
    path: Path, factors: dict[int, float], *, rates: tuple[float, ...] = (4.0,), **settings: object
) -> ResultFolder:
    """One run a seed and rate, its latencies times the seed's factor."""
    out = ResultFolder.create(path, Meta(title=path.name))
    for rate in rates:
        for seed, factor in factors.items():
            values = {"policy": "ecoserve", "lengths": "noise:0.5", "rate_rps": rate, "requests": 120, **settings}
            run = PlannedRun.of({**values, "seed": seed}, {"engine": "virtual", "condition": None})
            out.add(run, scaled(small_runs.untyped(dict(run.settings)), factor))
    out.write_summary()
    return out


def of(comparison: Comparison, metric: str) -> Difference:
    return next(d for d in comparison.overall if d.metric == metric)


def noise(seed: int, size: float, seeds: int = 5) -> dict[int, float]:
    draws = np.random.default_rng(seed).normal(0.0, size, seeds)
    return {i: float(np.exp(d)) for i, d in enumerate(draws)}


@pytest.fixture(scope="module")
def before(tmp_path_factory) -> ResultFolder:
    return folder(tmp_path_factory.mktemp("a") / "a", dict.fromkeys(range(5), 1.0))


@pytest.mark.parametrize("trial", range(4))
@pytest.mark.parametrize(("effect", "verdict"), [(1.0, "no difference"), (1.05, "higher"), (0.95, "lower")])
def test_noise_is_no_difference_and_an_effect_is_one(tmp_path, before, trial, effect, verdict):
    after = folder(tmp_path / "b", {seed: effect * f for seed, f in noise(trial, 0.005).items()})
    found = of(compare(before, after), NORMALIZED)
    assert (found.verdict, found.method, found.seeds) == (verdict, "paired by seed", 5)
    assert found.better == {"no difference": None, "higher": False, "lower": True}[verdict]
    assert found.low <= found.relative <= found.high
    assert found.relative == pytest.approx(effect - 1, abs=0.01)


def test_two_seeds_that_disagree_tell_nothing(tmp_path, before):
    after = folder(tmp_path / "b", {0: 1.0, 1: 1.2})
    found = of(compare(before, after), NORMALIZED)
    assert found.verdict == "cannot tell"
    assert found.low < 0 < found.high


def test_the_same_is_no_difference_and_is_said_to_be_the_same(tmp_path, before):
    comparison = compare(before, folder(tmp_path / "b", dict.fromkeys(range(5), 1.0)))
    assert comparison.same_tables
    assert {d.verdict for d in comparison.overall} == {"no difference"}
    assert {d.method for d in comparison.overall} == {"equal"}


@pytest.mark.parametrize(("factor", "verdict"), [(1.005, "no difference"), (1.05, "higher")])
def test_one_seed_is_compared_request_by_request(tmp_path, factor, verdict):
    a, b = folder(tmp_path / "a", {3: 1.0}), folder(tmp_path / "b", {3: factor})
    comparison = compare(a, b)
    found = of(comparison, NORMALIZED)
    assert (found.verdict, found.method) == (verdict, "paired by request")
    assert found.relative == pytest.approx(factor - 1)
    # What is no metric of single requests is not guessed at from one seed.
    assert of(comparison, "output_tokens_per_s").verdict in ("cannot tell", "no difference")
    assert of(comparison, "preemptions").method == "equal"


def test_other_seeds_are_compared_side_by_side(tmp_path):
    a = folder(tmp_path / "a", dict.fromkeys(range(4), 1.0), rates=(0.5,))
    same = folder(tmp_path / "same", dict.fromkeys(range(10, 14), 1.0), rates=(0.5,))
    twice = folder(tmp_path / "twice", dict.fromkeys(range(10, 14), 2.0), rates=(0.5,))
    assert of(compare(a, same), "e2el_mean_ms").method == "unpaired"
    assert of(compare(a, same), "e2el_mean_ms").verdict == "cannot tell"
    assert of(compare(a, twice), "e2el_mean_ms").verdict == "higher"


def test_settings_that_one_lacks_are_named(tmp_path):
    a = folder(tmp_path / "a", {0: 1.0, 1: 1.0}, rates=(2.0, 4.0))
    b = folder(tmp_path / "b", {0: 1.0, 1: 1.0}, rates=(4.0, 6.0))
    comparison = compare(a, b)
    assert [s.name["rate_rps"] for s in comparison.settings] == [4.0]
    assert [name["rate_rps"] for name in comparison.only_a] == [2.0]
    assert [name["rate_rps"] for name in comparison.only_b] == [6.0]


@pytest.mark.parametrize(
    ("relative", "low", "high", "verdict"),
    [
        (0.05, 0.04, 0.06, "higher"),
        (-0.05, -0.06, -0.04, "lower"),
        (0.005, 0.004, 0.006, "no difference"),
        (0.0, -MARGIN, MARGIN, "no difference"),
        (0.015, -0.001, 0.031, "cannot tell"),
        (0.3, -0.1, 0.7, "cannot tell"),
    ],
)
def test_verdicts(relative, low, high, verdict):
    assert verdict_of(relative, low, high) == verdict


def call(*arguments: str | Path) -> int:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(report.command)
    return guard(lambda: app([str(a) for a in arguments], prog_name="ecoserve", standalone_mode=False))


def test_the_command_says_it_in_a_table_in_json_and_on_a_page(tmp_path, capsys):
    a = folder(tmp_path / "a", dict.fromkeys(range(3), 1.0), rates=(2.0, 4.0))
    b = folder(tmp_path / "b", dict.fromkeys(range(3), 1.05), rates=(2.0, 4.0))
    page = tmp_path / "compare.html"
    assert call("--compare", a.path, b.path, "--json", "-", "--html", page) == 0
    captured = capsys.readouterr()
    said = json.loads(captured.out)
    assert (said["overall"][0]["metric"], said["overall"][0]["verdict"]) == (NORMALIZED, "higher")
    assert said["overall"][0]["relative"] == pytest.approx(0.05)
    assert [s["rate_rps"] for s in said["settings"]] == [2.0, 4.0]
    assert "Worse: normalized latency mean +5.0 %" in captured.err
    assert "higher" in captured.err
    text = page.read_text(encoding="utf-8")
    assert "ecoserve, noise:0.5, 2 req/s" in text
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert call("--compare", a.path, b.path, "--by-setting", "--fail-on-worse") == 3
    assert f"{NORMALIZED} +5.0 %" in capsys.readouterr().err.splitlines()[-1]
    assert call(a.path, "--compare", b.path, "--fail-on-worse", "--quiet") == 0


def test_nothing_in_common_is_bad_input(tmp_path, capsys):
    a, b = folder(tmp_path / "a", {0: 1.0}), folder(tmp_path / "b", {0: 1.0}, rates=(9.0,))
    assert call("--compare", a.path, b.path) == 2
    assert "no setting in common" in capsys.readouterr().err
    assert call(a.path, "--fail-on-worse") == 2
    assert "go with --compare" in capsys.readouterr().err
