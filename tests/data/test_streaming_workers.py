"""Real worker processes: the same records as without them, none left behind, a plain word if one is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from ecoserve.data import Message, Record, load_trace, stream_trace, streaming_workers
from ecoserve.data.cleaning import Draft, Dropped, Items
from ecoserve.data.streaming_workers import WorkerPool, pack, unpack
from ecoserve.errors import RunError

TEXTS = ["Wie heißt du?\nUnd ich?", "你好,世界", 'quotes " and , commas', "emoji 🙂 and \u2028 a separator", "plain"]


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 MiB of chats: several blocks, more exchanges than decide where lengths come from, dirt and duplicates."""
    path = tmp_path_factory.mktemp("big") / "t.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(12_000):
            text = f"{TEXTS[i % 5]} {i % 11_900}"
            turns: list[dict[str, Any]] = [{"from": "human", "value": text}, {"from": "gpt", "value": "so " * (i % 50)}]
            if i % 7 == 0:
                turns = [{"from": "gpt", "value": "I begin."}, *turns, {"from": "human", "value": "go on"}, turns[1]]
            row = {"id": f"c{i % 11_900}", "conversations": turns, "n": i}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def children() -> set[int]:
    """Processes of this one that parse."""
    found = set()
    for process in psutil.Process().children():
        try:
            if process.status() != psutil.STATUS_ZOMBIE and "streaming_workers" in " ".join(process.cmdline()):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_give_what_one_process_gives(big: Path, workers: int) -> None:
    plain, stream = stream_trace(big, workers=0), stream_trace(big, workers=workers)
    assert [r for b in stream.batches() for r in b] == [r for b in plain.batches() for r in b]
    assert (stream.report, stream.sha256) == (plain.report, plain.sha256)
    assert stream.report.dropped.keys() == {"duplicate", "empty answer"}
    assert children() == set()


def test_a_stream_that_is_left_leaves_no_process(big: Path) -> None:
    batches = stream_trace(big, workers=2).batches()
    assert next(batches)
    assert len(children()) == 2
    batches.close()
    assert children() == set()
    assert len(load_trace(big, workers=2, limit=50)) == 50
    assert children() == set()


def test_a_killed_worker_is_one_plain_line(big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = tmp_path / "longer.jsonl"  # than what workers have in hand when the first batch is there
    longer.write_bytes(big.read_bytes() * 8)
    pools: list[WorkerPool] = []

    class Kept(WorkerPool):
        def __init__(self, *args: Any, **how: Any) -> None:
            super().__init__(*args, **how)
            pools.append(self)

    monkeypatch.setattr(streaming_workers, "WorkerPool", Kept)
    batches = stream_trace(longer, workers=2).batches()
    next(batches)
    for process in pools[0].processes:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    with pytest.raises(RunError, match=r"reads the trace was ended by SIGKILL.*workers=0"):
        list(batches)
    assert children() == set()


def run_script(folder: Path, body: str, *arguments: str) -> subprocess.Popen[str]:
    """A script as a user writes it: no guard around its main part."""
    script = folder / "script.py"
    script.write_text(f"import sys\nfrom ecoserve.data import stream_trace\n{body}\n")
    command = [sys.executable, str(script), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_script_needs_no_guard(big: Path, tmp_path: Path) -> None:
    body = "print(sum(len(b) for b in stream_trace(sys.argv[1], workers=2).batches()))"
    with run_script(tmp_path, body, str(big)) as process:
        out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert int(out) == len(load_trace(big, workers=0))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_however_a_program_ends_its_workers_do(big: Path, tmp_path: Path, how: signal.Signals) -> None:
    body = (
        "import time, psutil\n"
        "batches = stream_trace(sys.argv[1], workers=2).batches()\n"
        "next(batches)\n"
        "print(*[p.pid for p in psutil.Process().children()], flush=True)\n"
        "time.sleep(600)"
    )
    with run_script(tmp_path, body, str(big)) as process:
        assert process.stdout is not None
        workers = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        process.send_signal(how)
        _, err = process.communicate(timeout=120)
    assert process.returncode != 0
    # Only the program itself says that it was interrupted.
    assert err.count("KeyboardInterrupt") == (how == signal.SIGINT)
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []


def test_what_goes_through_the_pipe_comes_out_equal() -> None:
    shared = Message("user", "你好 \udce9")
    record = Record(
        "c", 1, "p", (shared, Message("system", "")), None, 3, None, (4, 5), "m", 1.5, "dev", True, 2, "stop"
    )
    rows: list[Items] = [
        [Draft(record, ("a note",), 2**64 - 1, True, None, b"line"), Dropped("why", "c")],
        [],
        [Draft(Record("d", prefix_hashes=(1, 2), messages=(shared,)), (), None, False, "absurd length")],
    ]
    again = unpack(pack(rows))
    assert again == rows
    first, second = again[0][0], again[2][0]
    assert isinstance(first, Draft)
    assert isinstance(second, Draft)
    # A message of several records is there once.
    assert first.record.messages[0] is second.record.messages[0]
