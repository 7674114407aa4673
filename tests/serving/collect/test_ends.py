"""However a run ends, what was answered is kept: kill -9 at any point, Ctrl-C once and twice, SIGTERM."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stand_in import StandIn, answer, journaled, prompts_file, rows_of, true_length

from ecoserve.serving.collect.journal import journal_of

RUNNER = Path(__file__).with_name("runner.py")


def start(**values: Any) -> subprocess.Popen[str]:
    """A collection in a process of its own."""
    command = [sys.executable, str(RUNNER), json.dumps(values, default=str)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_at_random_it_ends_with_every_sample_once(tmp_path: Path) -> None:
    source, out, rng = prompts_file(tmp_path, 100), tmp_path / "out.jsonl", random.Random(7)
    limit, kept = 0, 0
    with StandIn() as server:
        server.behave = lambda body, n: answer(body, once=lambda: server.answered < limit)
        values = {"prompts": source, "output": out, "url": server.url, "samples": 4, "concurrency": 8, "quiet": True}
        for _ in range(3):
            more, before = rng.randint(20, 100), kept
            limit += more
            process = start(**values)
            wait_for(lambda at=limit: server.answered == at)  # type: ignore[misc]
            process.kill()
            process.communicate()
            assert process.returncode == -signal.SIGKILL
            kept = journaled(out)["answered"]
            # At most eight answers were not in the journal yet, and eight went to the process killed before.
            assert before + more - 16 <= kept <= before + more
            limit = server.answered
        limit = 10_000
        process = start(**values)
        said, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    result = json.loads(said)
    assert (result["rows"], result["rows_earlier"]) == (400, kept)
    rows = rows_of(out)
    assert len({(r["conversation"], r.get("sample", 0)) for r in rows}) == len(rows) == 400
    # Each row is what the server said about one of its samples, each sample's once.
    by_prompt: dict[str, list[int]] = {}
    for text, seed in server.asked:
        by_prompt.setdefault(text, []).append(true_length(text, seed)[0])
    for i in range(100):
        mine = sorted(r["response_tokens"] for r in rows if r["conversation"] == f"c{i}")
        assert mine == sorted(by_prompt[f"question {i}"])
    # What was open when it was killed is asked again, nothing else.
    assert 400 <= sum(server.asked.values()) <= 400 + 3 * 8
    assert not journal_of(out).exists()


@pytest.mark.parametrize("ending", ["once", "twice", "SIGTERM"])
def test_a_signal_ends_it_with_a_word_about_going_on(tmp_path: Path, ending: str) -> None:
    source, out = prompts_file(tmp_path, 50), tmp_path / "out.jsonl"
    released = threading.Event()
    with StandIn() as server:
        server.behave = lambda body, n: answer(body, once=released.is_set if len(server.bodies) > 20 else lambda: True)
        values = {"prompts": source, "output": out, "url": server.url, "concurrency": 4}
        process = start(**values)
        # Four more are open, so all before them are in the journal.
        wait_for(lambda: server.open == 4 and len(server.bodies) == 24)
        process.send_signal(signal.SIGTERM if ending == "SIGTERM" else signal.SIGINT)
        if ending != "SIGTERM":
            assert process.stderr is not None
            line = process.stderr.readline()
            assert line.endswith("ending: 4 requests are open; once more drops them\n"), line
            # Nothing else is sent while the open ones end.
            released.set() if ending == "once" else process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=300)
        code, kept = (143 if ending == "SIGTERM" else 130), (24 if ending == "once" else 20)
        assert (process.returncode, said) == (code, "")
        assert (
            errors
            == f"ecoserve: interrupted: {kept} of 50 answers are kept in {journal_of(out)}; the same command goes on\n"
        )
        assert journaled(out) == {"answered": kept}
        assert not out.exists()
        released.set()
        said, errors = start(**values).communicate(timeout=300)
    assert json.loads(said)["rows_earlier"] == kept
    assert sum(server.asked.values()) == 50 + (24 - kept)
    assert len(rows_of(out)) == 50


def test_what_is_wrong_is_one_line_and_an_exit_code(tmp_path: Path) -> None:
    source, out = prompts_file(tmp_path, 2), tmp_path / "out.jsonl"
    process = start(prompts=source, output=out, url="http://127.0.0.1:9")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert errors.startswith("error: http://127.0.0.1:9/v1: no server answers (ConnectError")
    assert errors.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["prompts.jsonl"]
