"""Collecting from vLLM: killed and gone on with, every row is the server's own count; a server of our own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from collect_shown import SAMPLING, Plan, show

from ecoserve.cli.collecting import collect_trace
from ecoserve.errors import ConfigError, RunError
from ecoserve.serving.collect.local import name_of


@pytest.mark.server
@pytest.mark.slow
def test_a_collection_that_is_killed_twice_has_every_answer_once(tiny_model: Path, tmp_path: Path) -> None:
    """In full: benchmarks/studies/collect_shown.py (500 prompts, 4 samples, the server killed as well)."""
    plan = Plan(prompts=40, samples=3, kills=2, server_too=False, concurrency=8, latest=0.5)
    figures = show(plan, tiny_model, tmp_path)
    assert figures["rows"] == 120
    assert [figures[k] for k in ("doubled", "lost", "foreign", "different", "dropped_on_loading")] == [0] * 5
    assert figures["finish_reasons"].keys() == {"stop", "length"}
    assert figures["censored"] == figures["finish_reasons"]["length"]
    assert figures["lengths_from_to"][0] < 20
    assert figures["lengths_from_to"][1] == 64
    # Only what was open at a kill is asked again.
    assert figures["server_requests_repeated"] <= 2 * 8


@pytest.mark.server
@pytest.mark.slow
def test_a_model_is_served_for_the_collection_alone(
    tiny_model: Path, tmp_path: Path, short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TMPDIR": str(short_tmp)}
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("VLLM_API_KEY", "of-another-server")
    for name in ("VLLM_ENABLE_V1_MULTIPROCESSING", "VLLM_LOGGING_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(short_tmp))
    flags = "--enforce-eager --dtype float32 --max-model-len 1024 --distributed-executor-backend uni"
    out = tmp_path / "out.jsonl"
    processes: list[int] = []
    real = subprocess.Popen

    def started(*args: object, **options: object) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = real(*args, **options)  # type: ignore[call-overload]
        processes.append(process.pid)
        return process

    monkeypatch.setattr(subprocess, "Popen", started)
    result = collect_trace(
        "synthetic:10", out, model=str(tiny_model), samples=2, server_flags=tuple(flags.split()), quiet=True, **SAMPLING
    )
    assert (result.rows, result.model, result.refused) == (result.prompts * 2, tiny_model.name, 0)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("out")] == ["out.jsonl"]
    assert not list(short_tmp.glob("ecoserve-*"))
    for pid in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


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
    deadline = time.monotonic() + 60
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
