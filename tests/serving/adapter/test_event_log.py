"""The event log: what stands in it agrees with the counters, and it never gets in the way."""

from __future__ import annotations

import json
import resource
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import pytest
from virtual_rig import play, random_case, same

from ecoserve.errors import ConfigError
from ecoserve.serving.adapter.event_log import EventLog
from ecoserve.serving.core.counters import Event, UnderpredictionAction


def event(kind: str = "paused") -> Event:
    return Event(1.0, 2, "r", kind, 10, 12, 10, 3, 4)


def test_every_event_of_a_run_is_one_line_and_the_counters_agree(tmp_path: Path) -> None:
    seen: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for seed in range(4):
        log = tmp_path / f"events-{seed}.jsonl"
        case = random_case(seed, policy="ecoserve-exact", source="one", aborts=False)
        done = play(same(case, knobs=(*case.knobs, ("event_log", str(log)))))
        done.scheduler.event_log.close()
        rows = [json.loads(line) for line in log.read_text().splitlines()]
        lines.update(row["kind"] for row in rows)
        counters = asdict(done.scheduler.counters)
        seen.update({action.value: counters[f"underprediction_{action.value}"] for action in UnderpredictionAction})
        seen.update({"finished": counters["finished"], "resumed": counters["resumes"]})
        assert all(row["blocks"] >= 0 and row["generated"] >= 0 and row["predicted"] >= 1 for row in rows)
        assert [row["at_s"] for row in rows] == sorted(row["at_s"] for row in rows)
    for kind, count in seen.items():
        assert lines[kind] == count, kind
    assert seen["recomputed"] + seen["paused"] + seen["re_reserved"] > 10


def test_each_data_parallel_rank_has_a_log_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.config import ParallelConfig

    case = same(random_case(0), knobs=(("event_log", str(tmp_path / "events.jsonl")),))
    first = play(case).scheduler
    made = ParallelConfig.__post_init__

    def second_rank(self: ParallelConfig) -> None:
        made(self)
        self.data_parallel_index = 1

    monkeypatch.setattr(ParallelConfig, "__post_init__", second_rank)
    second = play(case).scheduler
    for scheduler, name in ((first, "events.jsonl"), (second, "events-rank1.jsonl")):
        scheduler.event_log.close()
        assert (tmp_path / name).read_text().count('"finished"') == scheduler.counters.finished > 0


def test_a_log_ends_at_its_size_and_scheduling_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(tmp_path / "events.jsonl", most_mb=0.001)
    for _ in range(1000):
        log(event())
    log.close()
    assert 0 < (tmp_path / "events.jsonl").stat().st_size <= 1000
    assert [r.message.count("has reached its size") for r in caplog.records] == [1]


def test_lines_are_whole_when_the_disk_is_full(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A limit on the size of files does what a full disk does: part of a write is done, the next one fails."""
    path = tmp_path / "events.jsonl"
    path.write_text("{}\n")
    log = EventLog(path, most_mb=1.0)
    for _ in range(100):
        log(event())
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        log.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    log(event())
    log.close()
    text = path.read_text()
    assert 800 < len(text) < 1000
    assert text.endswith("\n")
    rows = [json.loads(line) for line in text.splitlines()]
    assert rows[0] == {}
    assert [r.message.count("cannot be written any more") for r in caplog.records] == [1]


def test_a_log_that_cannot_be_opened_is_one_line_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"event_log .*file/events.jsonl: cannot be written|cannot be written"):
        EventLog(tmp_path / "file" / "events.jsonl", 1.0)


def test_lines_are_kept_until_they_are_many_or_flushed(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, 10.0)
    log(event())
    assert path.read_text() == ""
    log.flush()
    assert json.loads(path.read_text())["kind"] == "paused"
    log.close()
    log(event())
    assert len(path.read_text().splitlines()) == 1
