"""Running plans: in this process and in several, with failures, deaths and Ctrl-C; nothing finished is run twice."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import child_sweeps
import pytest
import small_runs
from rich.console import Console

from ecoserve.errors import ConfigError
from ecoserve.sweep.execute import execute
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import Meta
from ecoserve.sweep.worker import find_function, perform


def plan(seeds: int, **settings: object) -> list[PlannedRun]:
    base = {"policy": "ecoserve", "lengths": "true", "rate_rps": 5.0, "requests": 30}
    return [PlannedRun.of({**base, **settings, "seed": seed}) for seed in range(seeds)]


@pytest.fixture
def folder(tmp_path: Path) -> ResultFolder:
    return ResultFolder.create(tmp_path / "out", Meta())


@pytest.mark.parametrize("function", ["small_runs:queue", "small_runs:untyped"])
def test_runs_in_this_process(folder, function):
    tally = execute(plan(3), folder, function=function, jobs=0)
    assert (tally.finished, tally.failed, tally.skipped) == (3, 0, 0)
    assert [row.seed for row in folder.summary().runs] == [0, 1, 2]
    assert (folder.path / "summary.json").exists()


def test_worker_processes_give_the_same_results(tmp_path):
    hashes = set()
    for jobs in (0, 2):
        folder = ResultFolder.create(tmp_path / f"jobs{jobs}", Meta())
        execute(plan(4), folder, function="small_runs:queue", jobs=jobs)
        hashes.add(folder.summary().meta.runs_sha256)
    assert len(hashes) == 1


def test_a_finished_run_is_never_run_twice(folder, tmp_path):
    mark = str(tmp_path / "marks")
    execute(plan(2, mark=mark), folder, function="small_runs:queue", jobs=0)
    again = ResultFolder.create(folder.path, Meta(), resume=True)
    tally = execute(plan(4, mark=mark), again, function="small_runs:queue", jobs=0)
    assert (tally.finished, tally.skipped) == (2, 2)
    assert len(Path(mark).read_text().splitlines()) == 4
    assert len(again.summary().runs) == 4


def test_one_failure_does_not_lose_the_rest(folder):
    out = io.StringIO()
    tally = execute(plan(3), folder, function="small_runs:fails_on_seed_one", jobs=0, console=Console(file=out))
    assert (tally.finished, tally.failed) == (2, 1)
    (failure,) = folder.summary().failures
    assert failure.error == "ZeroDivisionError: one seed fails"
    assert failure.seed == 1
    assert "seed 1: failed: ZeroDivisionError: one seed fails" in " ".join(out.getvalue().split())


def test_a_failed_run_is_tried_again(folder, tmp_path):
    runs = plan(2, trace=str(tmp_path / "later"))
    assert execute(runs, folder, function="small_runs:fails_once", jobs=0).failed == 2
    (tmp_path / "later").write_text("")
    tally = execute(runs, folder, function="small_runs:fails_once", jobs=0)
    assert (tally.finished, tally.failed, tally.skipped) == (2, 0, 0)
    assert folder.summary().failures == []


@pytest.mark.usefixtures("quick_workers")
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_dying_process_fails_its_own_run_only(folder, jobs):
    tally = execute(plan(4), folder, function="small_runs:dies_on_seed_one", jobs=jobs)
    assert (tally.finished, tally.failed) == (3, 1)
    (failure,) = folder.summary().failures
    assert failure.seed == 1
    assert "process died" in failure.error


def test_ctrl_c_keeps_what_is_finished(folder):
    with pytest.raises(KeyboardInterrupt):
        execute(plan(3), folder, function="small_runs:interrupts_on_seed_one", jobs=0)
    assert [row.seed for row in folder.summary().runs] == [0]
    assert (folder.path / "summary.json").exists()


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_stopped_from_outside_no_worker_is_left_behind(tmp_path, forked, stop):
    mark, out, hold = tmp_path / "marks", tmp_path / "out", tmp_path / "hold"
    hold.touch()
    arguments = (str(out), str(mark), str(hold))
    process = forked.Process(target=child_sweeps.of_one_short_run_and_two_held, args=arguments)
    process.start()
    group = process.pid
    assert group is not None
    # Both long runs are under way and the short one is written down.
    small_runs.wait_until(
        lambda: (
            process.exitcode is not None
            or (mark.exists() and len(mark.read_text().splitlines()) == 3 and list((out / "runs").glob("*.json")) != [])
        )
    )
    os.kill(group, stop)
    process.join()
    assert process.exitcode == (1 if stop == signal.SIGINT else -stop)
    small_runs.wait_until(lambda: not _alive(group))
    folder = ResultFolder.open(out)
    assert [row.seed for row in folder.summary().runs] == [0]


def _alive(group: int) -> bool:
    """Whether any process of the group is left (zombies of an init that does not reap do not count)."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def test_user_errors_are_one_line_without_traceback():
    outcome = perform("small_runs:refuses", plan(1)[0].settings)
    assert outcome.error == "synthetic: no such trace"
    assert outcome.details == ""


def test_a_mistyped_setting_is_named():
    outcome = perform("small_runs:queue", {**plan(1)[0].settings, "block": 3})
    assert outcome.error == (
        "settings: block: there is no such setting; "
        "one of policy, lengths, rate_rps, seed, requests, trace, depth, blocks, slo_scale, mark, hold, die"
    )


def test_a_result_that_cannot_be_written_is_a_failure_of_its_run(folder):
    tally = execute(plan(3), folder, function="small_runs:returns_nan", jobs=0)
    assert (tally.finished, tally.failed) == (2, 1)
    (failure,) = folder.summary().failures
    assert "cannot be written" in failure.error


def test_what_is_not_a_result_is_a_failure():
    assert "returned dict, not a RunResult" in perform("small_runs:returns_nonsense", plan(1)[0].settings).error


@pytest.mark.parametrize("name", ["nowhere.at_all:f", "small_runs:nothing", "small_runs"])
def test_unknown_run_function(name):
    with pytest.raises(ConfigError, match="no run function"):
        find_function(name)


def test_a_log_gets_a_line_per_run(folder):
    out = io.StringIO()
    execute(plan(2), folder, function="small_runs:queue", jobs=0, console=Console(file=out, width=200))
    lines = out.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].endswith("left")
    assert lines[1].startswith("2/2 ecoserve, lengths true, 5 req/s, seed 1: ")
