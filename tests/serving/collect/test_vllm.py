"""Collecting from vLLM: killed and gone on with, every row is the server's own count; a server of our own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import collect_shown
import pytest
from collect_shown import Plan, Server, show

from ecoserve.cli.collecting import collect_trace
from ecoserve.errors import ConfigError, RunError
from ecoserve.serving.collect.local import LocalServer, name_of


class OwnServer(Server):
    """A collection's own server, and a port that leads to its socket: it outlives collectors that are killed."""

    def __init__(self, model: Path, folder: Path) -> None:
        super().__init__(model, folder)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        flags = "--enforce-eager --dtype float32 --max-model-len 1024 --distributed-executor-backend uni"
        flags += " --middleware collect_shown.Recorder"
        self._own = LocalServer(str(model), flags.split(), "tiny", folder / "server.log", lambda state: None)
        self._door: asyncio.Server | None = None

    def start(self) -> None:
        self._thread.start()

    def wait(self) -> None:
        self._call(self._own.__aenter__())
        self._door = self._call(asyncio.start_server(self._connect, "127.0.0.1", self.port))

    def stop(self) -> None:
        if self._door is not None:
            self._door.close()
            self._call(self._own.__aexit__())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(self._own.socket)
        await asyncio.gather(_pass_on(reader, inner_writer), _pass_on(inner_reader, writer))


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
def started(short_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The processes that the test starts, with temporary files and a key that is another server's."""
    monkeypatch.setenv("TMPDIR", str(short_tmp))
    monkeypatch.setattr("tempfile.tempdir", str(short_tmp))
    monkeypatch.setenv("VLLM_API_KEY", "of-another-server")
    processes: list[int] = []
    real = subprocess.Popen

    def start(*args: object, **options: object) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = real(*args, **options)  # type: ignore[call-overload]
        processes.append(process.pid)
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    return processes


def assert_gone(processes: list[int], temporary: Path) -> None:
    assert processes
    assert not list(temporary.glob("ecoserve-*"))
    for pid in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.server
@pytest.mark.slow
def test_a_collection_that_is_killed_twice_has_every_answer_once(
    tiny_model: Path, tmp_path: Path, short_tmp: Path, started: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In full: benchmarks/studies/collect_shown.py (500 prompts, 4 samples, the server killed as well)."""
    studies = str(Path(collect_shown.__file__).parent)
    environ = {
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "PYTHONPATH": os.pathsep.join(filter(None, [studies, os.environ.get("PYTHONPATH")])),
        collect_shown.LOG_VARIABLE: str(tmp_path / "server_record.jsonl"),
    }
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("VLLM_LOGGING_LEVEL", raising=False)
    plan = Plan(prompts=40, samples=3, kills=2, server_too=False, concurrency=8, latest=0.5)
    figures = show(plan, tiny_model, tmp_path, server=OwnServer(tiny_model, tmp_path))
    assert figures["rows"] == 120
    assert [figures[k] for k in ("doubled", "lost", "foreign", "different", "dropped_on_loading")] == [0] * 5
    assert figures["finish_reasons"].keys() == {"stop", "length"}
    assert figures["censored"] == figures["finish_reasons"]["length"]
    assert figures["lengths_from_to"][0] < 20
    assert figures["lengths_from_to"][1] == 64
    # Only what was open at a kill is asked again.
    assert figures["server_requests_repeated"] <= 2 * 8
    assert len(started) == 1 + 3
    assert_gone(started, short_tmp)


#: Serves as the child process does, with the stand-in for vLLM.
STAND_IN = f"""
import json, os, sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from stand_in import Reply, StandIn
parent, socket, model, *flags = sys.argv[1:]
assert "VLLM_API_KEY" not in os.environ
assert flags[:2] == ["--seed", "3"] and flags[2] == "--served-model-name"
with StandIn(socket=socket, models=Reply(200, json.dumps({{"data": [{{"id": flags[3]}}]}}).encode())):
    time.sleep(600)
"""


def test_a_model_is_served_for_the_collection_alone(
    tmp_path: Path, short_tmp: Path, started: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without vLLM; with it: the test above."""
    monkeypatch.setattr("ecoserve.serving.collect.local._CHILD", STAND_IN)
    (tmp_path / "llama").mkdir()
    out = tmp_path / "out.jsonl"
    result = collect_trace(
        "synthetic:10", out, model=str(tmp_path / "llama"), samples=2, server_flags=("--seed", "3"), quiet=True
    )
    assert (result.rows, result.model, result.refused) == (result.prompts * 2, "llama", 0)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("out")] == ["out.jsonl"]
    assert_gone(started, short_tmp)


def test_a_server_that_does_not_start_is_said_and_its_log_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    with pytest.raises(
        RunError, match=r"vLLM's server ended \(exit code 2; its whole log is in .*there is no such model"
    ):
        collect_trace("synthetic:10", out, model="./no-such-model", quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out.jsonl.server.log"]
    with pytest.raises(ConfigError, match="--port=80: is set by the collection itself"):
        collect_trace("synthetic:10", out, model="./no-such-model", server_flags=("--port=80",), quiet=True)


def test_a_server_of_our_own_ends_with_its_collector(tmp_path: Path) -> None:
    """Also where the collector is killed, and cannot stop it."""
    child = f"""
import os, sys, time
from ecoserve.serving.collect.local import end_with
end_with(int(sys.argv[1]))
open({str(tmp_path / "ready")!r}, "w").write(str(os.getpid()))
time.sleep(600)
"""
    parent = (
        "import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', sys.argv[1], str(os.getpid())]).wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", parent, child])
    ready = tmp_path / "ready"
    deadline = time.monotonic() + 300
    while not (ready.exists() and ready.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    pid = int(ready.read_text())
    process.send_signal(signal.SIGKILL)
    process.wait()
    while True:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            break
        if state == "Z":
            break
        assert time.monotonic() < deadline
        time.sleep(0.01)
    # A parent that is not the one that was named is no parent: it has died before.
    orphan = [sys.executable, "-c", "from ecoserve.serving.collect.local import end_with; end_with(1); print('alive')"]
    done = subprocess.run(orphan, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (143, "")


def test_a_model_is_called_by_its_folder_or_its_id(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    assert name_of(f"{tmp_path}/llama/") == "llama"
    assert name_of("owner/name") == "owner/name"
