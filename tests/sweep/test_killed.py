"""A sweep that is killed outright, wherever it stands, and resumed: its tables are those of one that was left alone."""

from __future__ import annotations

import signal
from pathlib import Path

import child_sweeps
import pytest
import small_runs

from ecoserve.errors import ConfigError, InputError
from ecoserve.sweep.execute import execute
from ecoserve.sweep.expansion import expand
from ecoserve.sweep.plan import SweepPlan
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import Meta

PLAN = """
trace: synthetic
lengths: [true, noise:0.5]
rates: [3, 6]
seeds: [0, 1, 2]
requests: 30
run: small_runs:queue
"""


def plan_of(folder: Path, more: str = "") -> Path:
    path = folder / "plan.yaml"
    path.write_text(PLAN + more, encoding="utf-8")
    return path


def run_whole(plan_file: Path, out: Path, *, jobs: int = 0, resume: bool = False) -> tuple[str, int, ResultFolder]:
    """Hash of the tables, runs that were there before, and the folder."""
    plan = SweepPlan.load(plan_file)
    folder = ResultFolder.create(out, Meta(), resume=resume)
    tally = execute(expand(plan), folder, function=plan.run, jobs=jobs)
    assert tally.failed == 0
    assert tally.total == len(expand(plan))
    folder.check_requests()
    sha256 = ResultFolder.open(out).summary().meta.tables_sha256
    assert sha256 is not None
    return sha256, tally.skipped, folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> str:
    """The hash of the undisturbed sweep."""
    folder = tmp_path_factory.mktemp("whole")
    return run_whole(plan_of(folder), folder / "out")[0]


@pytest.mark.parametrize(
    ("which", "number", "moment", "finished"),
    [
        ("sweep.yaml", 2, "before", 0),  # the plan half-written
        ("/requests/", 3, "before", 2),  # between two runs, the rows half-written
        ("/requests/", 3, "after", 2),  # rows written, the record not
        ("/runs/", 3, "before", 2),  # the record half-written
        ("/runs/", 3, "after", 3),  # the record just written
    ],
)
def test_killed_while_it_writes(tmp_path, whole, forked, which, number, moment, finished):
    out, plan = tmp_path / "out", plan_of(tmp_path)
    arguments = (str(plan), str(out), which, number, moment)
    process = forked.Process(target=child_sweeps.of_a_plan_killed_while_it_writes, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    sha256, kept, _ = run_whole(plan, out, resume=True)
    assert kept == finished
    assert sha256 == whole
    assert not [file for file in out.rglob(".*") if file.is_file()]


def test_killed_from_outside_with_two_processes(tmp_path, forked):
    hold, out = tmp_path / "hold", tmp_path / "out"
    hold.touch()
    # Runs of the second condition end when the file is gone: the kill comes before the end on any machine.
    plan = plan_of(tmp_path, f"conditions: {{free: {{}}, held: {{settings: {{hold: '{hold}'}}}}}}")
    process = forked.Process(target=child_sweeps.of_a_plan, args=(str(plan), str(out), 2))
    process.start()
    small_runs.wait_until(lambda: len(list((out / "runs").glob("*.json"))) >= 3 or process.exitcode is not None)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    hold.unlink()
    sha256, kept, resumed = run_whole(plan, out, resume=True)
    assert 3 <= kept <= 18
    # The file is a setting, so keys differ from the other sweep's; what was measured does not.
    untouched, _, alone = run_whole(plan, tmp_path / "alone")
    assert sha256 == untouched
    assert [
        row.model_dump(exclude={"wall_s", "schedule_p50_ms", "schedule_p99_ms"}) for row in resumed.summary().runs
    ] == [row.model_dump(exclude={"wall_s", "schedule_p50_ms", "schedule_p99_ms"}) for row in alone.summary().runs]


@pytest.mark.usefixtures("quick_workers")
def test_processes_and_none_have_one_hash(tmp_path, whole):
    assert run_whole(plan_of(tmp_path), tmp_path / "out", jobs=2)[0] == whole


def test_any_row_of_a_table_changes_the_hash(tmp_path, whole):
    import pyarrow as pa
    import pyarrow.parquet as pq

    _, _, folder = run_whole(plan_of(tmp_path), tmp_path / "out")
    run = folder.summary().runs[4]
    file = folder.path / "requests" / f"{run.run}.parquet"
    table = folder.requests(run.run)
    column = table.column_names.index("finish_s")
    changed = table["finish_s"].to_pylist()
    changed[7] += 1e-12 + changed[7] * 1e-15
    pq.write_table(table.set_column(column, "finish_s", pa.array(changed)), file)
    with pytest.raises(InputError, match=r"parquet: holds other rows than were written"):
        folder.check_requests()
    file.unlink()
    with pytest.raises(InputError, match="there is no such file"):
        folder.check_requests()
    assert run_whole(plan_of(tmp_path), folder.path, resume=True)[:2] == (whole, len(folder.summary().runs) - 1)


def test_two_sweeps_do_not_share_a_folder(tmp_path):
    folder = ResultFolder.create(tmp_path / "out", Meta())
    other = ResultFolder.create(tmp_path / "out", Meta(), resume=True)
    with folder.locked(), pytest.raises(ConfigError, match="another sweep is running"):
        execute([], other, jobs=0)
    execute([], other, jobs=0)
