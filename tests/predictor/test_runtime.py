from __future__ import annotations

from pathlib import Path

import pytest

from ecoserve.predictor import runtime
from ecoserve.predictor.runtime import silent


class Time:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_it_goes_on_where_an_earlier_leg_was_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    monkeypatch.setattr(runtime, "time", time)
    heard: list[tuple[str, int, int]] = []
    first = runtime.Stopwatch(tmp_path, lambda *said: heard.append(said))
    time.now += 3.0
    first("a", 1, 9)
    assert not list(tmp_path.iterdir())
    time.now += 4.0
    first("b", 2, 9)
    time.now += 2.0
    first("c", 3, 9)
    assert [step for _, step, _ in heard] == [1, 2, 3]
    assert first.seconds == 9.0
    # Killed here; what was kept last counts.
    time.now += 100.0
    second = runtime.Stopwatch(tmp_path, silent)
    time.now += 1.0
    assert second.seconds == 8.0


def test_a_time_that_cannot_be_read_or_kept_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time = Time()
    monkeypatch.setattr(runtime, "time", time)
    (tmp_path / "seconds").write_text("many")
    watch = runtime.Stopwatch(tmp_path, silent)
    gone = runtime.Stopwatch(tmp_path / "gone", silent)
    time.now += 60.0
    gone("a", 1, 1)
    assert watch.seconds == gone.seconds == 60.0
