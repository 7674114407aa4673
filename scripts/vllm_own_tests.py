"""vLLM's own scheduler tests, run with vLLM's class and with ours; every difference has its reason here.

    python scripts/vllm_own_tests.py FOLDER [--fetch] [-o benchmarks/results/vllm_own_tests.json]

``FOLDER/tests`` are those of vLLM's source distribution, which ``--fetch`` downloads with pip (45 MB). The tests build
``Scheduler`` and ``AsyncScheduler``; in the second run both names are ours, for an engine that is synchronous or not.
A test that vLLM's own class does not pass here (no such model without the hub, no GPU) counts for neither. Exit code 1
if ours fails one that is not a different decision by design (:data:`DIFFERENT`).
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
RUN: Final = "ECOSERVE_OWN_TESTS"

_CORE: Final = "tests/v1/core"
_UNIT: Final = "tests/v1/kv_connector/unit"
#: What is run: name of the row -> files.
FILES: Final = {
    "scheduler": (f"{_CORE}/test_scheduler.py",),
    "asynchronous scheduler": (f"{_CORE}/test_async_scheduler.py", f"{_CORE}/test_worker_slot_overflow.py"),
    "priority": (f"{_CORE}/test_priority_preemption_bug.py",),
    "prefix caching": (
        f"{_CORE}/test_prefix_caching.py",
        f"{_CORE}/test_prefix_replay.py",
        f"{_CORE}/prefix_cache",
        f"{_CORE}/test_mamba_align_chunk_split.py",
    ),
    "deferred free": (f"{_CORE}/test_deferred_block_free.py", f"{_CORE}/test_swa_inflight_window_free.py"),
    "streaming input": ("tests/v1/streaming_input/test_scheduler_streaming.py",),
    "speculative decoding": (
        "tests/v1/spec_decode/test_dynamic_sd.py",
        "tests/v1/spec_decode/test_dflash_lookahead.py",
    ),
    "offloading connector": (
        f"{_UNIT}/offloading_connector/test_scheduler.py",
        "tests/v1/simple_kv_offload/test_scheduler.py",
    ),
    "NIXL connector": (f"{_UNIT}/test_nixl_connector.py", f"{_UNIT}/test_nixl_connector_hma.py"),
    "remote prefill and decode": (
        f"{_UNIT}/test_remote_decode_lifecycle.py",
        f"{_UNIT}/test_remote_prefill_lifecycle.py",
        f"{_UNIT}/test_bidirectional_kv_transfer.py",
        f"{_UNIT}/test_cache_pollution_prevention.py",
        f"{_UNIT}/test_decode_bench_connector.py",
    ),
    "failed loads": (
        f"{_UNIT}/test_kv_load_failure_recovery.py",
        f"{_UNIT}/test_invalid_blocks_correctness.py",
        f"{_UNIT}/test_error_propagation.py",
    ),
}

_ROOM: Final = "a request starts only if its first tokens fit beside the holders that rank before it"
_VICTIM: Final = "the victim is the request of last rank, not the youngest or the last of the batch"
_ORDER: Final = "requests start in order of their expected rest, not of arrival"
_HIDDEN: Final = "a queue's truth value is whether its head may start now"
_STATE: Final = "the test makes or fills a scheduler without its constructor or add_request"
_REPLAY: Final = "windows that are computed again on a hit: such a model is served in level order"
_FORWARD: Final = "a forward takes fewer prompt tokens than max_num_batched_tokens beside other requests"
#: Tests that ours is not to pass: pattern of the name -> the decision that differs.
DIFFERENT: Final = {
    "test_schedule_concurrent_partial_requests*": _FORWARD,
    "test_stop_via_update_from_output": _STATE,
    "test_abort_request_when_structured_output_fsm_cannot_advance": _STATE,
    "test_schedule_order*": _ORDER,
    "test_async_load_reservation_prevents_wedge_e2e": _ORDER,
    "test_fcfs_mixed_blocked_types_remote_load_drains_first": _ORDER,
    "test_remote_kv_promotion_drains_before_grammar_prefix": "a load that brought no KV (a mock) is queued again",
    "test_preempt_during_execution": _ROOM,
    "test_cow_retentions_deferred_until_copy_step_processed": _ROOM,
    "test_diffusion_scheduler_is_selected_by_default*": "diffusion models have a class of vLLM's, which stays",
    "test_kv_connector_handles_preemption*": _ROOM,
    "test_priority_scheduling_preemption": _ROOM,
    "test_priority_scheduling_preemption_and_resumption_when_out_of_kv*": _ROOM,
    "test_kv_pressure_preemption_with_inflight_output*": _ROOM,
    "test_kv_pressure_preempt_mid_handoff*": _VICTIM,
    "test_priority_scheduling_heap_property": _HIDDEN,
    "test_update_request_as_session*": _STATE,
    "test_async_remote_kv_hit_replays_after_load": _REPLAY,
    "test_kv_load_carrying_window_does_not_replay*": _REPLAY,
    "test_scheduler_reset_prefix_cache": "the waiting queue is sorted by rank and takes no index",
}

_OPT: Final = {
    "model_type": "opt",
    "architectures": ["OPTForCausalLM"],
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "ffn_dim": 3072,
    "max_position_embeddings": 2048,
    "vocab_size": 50272,
    "word_embed_proj_dim": 768,
    "torch_dtype": "float16",
}
_QWEN: Final = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "vocab_size": 151936,
    "torch_dtype": "bfloat16",
}
#: config.json in the place of models on the hub. The tests read no more of them than the length limit.
MODELS: Final = {
    "facebook/opt-125m": _OPT,
    "facebook/opt-350m": _OPT,
    "Qwen/Qwen3-8B": _QWEN,
}
#: CPU seconds of one test, at most.
LIMIT_S: Final = 120


# -- in pytest's process -----------------------------------------------------------------------------------------


def pytest_configure() -> None:
    if json.loads(os.environ[RUN])["ours"]:
        _substitute()


def _substitute() -> None:
    import vllm.v1.core.sched.async_scheduler as asynchronous
    import vllm.v1.core.sched.scheduler as synchronous

    from ecoserve.serving.adapter import scheduler as adapter
    from ecoserve.serving.adapter.scheduler import EcoServeScheduler

    # The tests' mocks and rare configurations, which level full refuses, show decisions all the same.
    adapter.refuse_unsupported = lambda *_: None  # type: ignore[assignment]

    class Ours(EcoServeScheduler):
        overlapping = False

        def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            vllm_config.scheduler_config.async_scheduling = self.overlapping
            super().__init__(vllm_config, *args, **kwargs)

    class OursOverlapping(Ours):
        overlapping = True

    synchronous.Scheduler = Ours  # type: ignore[misc]
    asynchronous.AsyncScheduler = OursOverlapping  # type: ignore[misc]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        crash = getattr(report.longrepr, "reprcrash", None)
        why = "" if report.passed else str(crash.message if crash else report.longrepr).split("\n")[0][:160]
        with open(json.loads(os.environ[RUN])["out"], "a", encoding="utf-8") as out:
            out.write(json.dumps([report.nodeid, report.outcome, why]) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {LIMIT_S} CPU seconds")

    signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, LIMIT_S)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


@pytest.fixture
def caplog_vllm(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    caplog.set_level(logging.INFO)
    return caplog


@pytest.fixture
def default_vllm_config() -> Iterator[Any]:
    from vllm.config import VllmConfig, set_current_vllm_config

    config = VllmConfig()
    with set_current_vllm_config(config):
        yield config


@pytest.fixture
def dist_init(tmp_path: Path) -> Iterator[None]:
    """As in vLLM's conftest, which needs packages that a scheduler does not."""
    from vllm.config import VllmConfig, set_current_vllm_config
    from vllm.distributed import cleanup_dist_env_and_memory, init_distributed_environment, initialize_model_parallel

    with set_current_vllm_config(VllmConfig()):
        init_distributed_environment(1, 0, f"file://{tmp_path}/rendezvous", 0, "gloo")
        initialize_model_parallel(1, 1)
        yield
    cleanup_dist_env_and_memory()


# -- in ours -------------------------------------------------------------------------------------------------------


def run(folder: Path, ours: bool, rows: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Test id -> outcome and the message, of the files of ``rows``."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "outcomes.jsonl"
        out.touch()
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), str(ROOT / "scripts")]),
            RUN: json.dumps({"ours": ours, "out": str(out)}),
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
        }
        files = [f for row in rows for f in FILES[row] if (folder / f).exists()]
        command = [sys.executable, "-m", "pytest", "-q", "-p", "vllm_own_tests", "-p", "no:cacheprovider"]
        command += ["-c", os.devnull, "--rootdir", str(folder), "--confcutdir", str(folder / "tests/v1")]
        ended = subprocess.run(
            [*command, "-W", "ignore", "--tb=line", *files], cwd=folder, env=environment, check=False
        )
        if ended.returncode not in (0, 1):
            raise SystemExit(f"pytest ended with code {ended.returncode}")
        outcomes: dict[str, tuple[str, str]] = {}
        for line in out.read_text().splitlines():
            name, outcome, why = json.loads(line)
            if outcomes.get(name, ("", ""))[0] != "failed":
                outcomes[name] = outcome, why
    return outcomes


def compare(vllms: dict[str, tuple[str, str]], ours: dict[str, tuple[str, str]]) -> dict[str, Any]:
    """The table, and what ours does not pass, with its reason or None."""
    table: dict[str, Counter[str]] = defaultdict(Counter)
    failed: dict[str, dict[str, dict[str, str | None]]] = defaultdict(dict)
    for name, (outcome, _) in vllms.items():
        row = next(r for r, files in FILES.items() if any(name.startswith(f) for f in files))
        if outcome != "passed":
            table[row]["not run here"] += 1
            continue
        table[row]["vllm"] += 1
        own, why = ours.get(name, ("missing", ""))
        if own == "passed":
            table[row]["ours"] += 1
            continue
        test = name.rpartition("::")[2]
        reason = next((r for pattern, r in DIFFERENT.items() if fnmatch(test, pattern.replace("[", "[[]"))), None)
        table[row]["by design" if reason else "unexplained"] += 1
        failed[row][name] = {"by design": reason, "message": why}
    keys = ("vllm", "ours", "by design", "unexplained", "not run here")
    return {"table": {row: {k: counts[k] for k in keys} for row, counts in table.items()}, "not passed": failed}


def merged(output: Path, version: str, found: dict[str, Any]) -> dict[str, Any]:
    """What was found, with the rows of ``output`` that were not run this time and are of the same vLLM."""
    before = json.loads(output.read_text()) if output.exists() else {}
    if before.get("vllm") != version:
        before = {}
    for row in found["table"]:
        for part in ("table", "not passed"):
            before.get(part, {}).pop(row, None)
    kept = {part: {**before.get(part, {}), **found[part]} for part in ("table", "not passed")}
    return {
        "command": "python scripts/vllm_own_tests.py FOLDER --fetch -o " + f"benchmarks/results/{output.name}",
        "vllm": version,
        **kept,
    }


def show(table: dict[str, dict[str, int]]) -> None:
    from rich.console import Console
    from rich.table import Table

    keys = list(next(iter(table.values())))
    shown = Table("tests of", *keys)
    for row, counts in table.items():
        shown.add_row(row, *(str(counts[k]) for k in keys))
    shown.add_row("all", *(str(sum(counts[k] for counts in table.values())) for k in keys))
    Console().print(shown)


@contextmanager
def _started(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def fetch(folder: Path, version: str) -> None:
    """Download vLLM's source distribution and unpack its tests.

    pip builds metadata after the download, which fails without a compiler: the archive is taken out of its folder.
    """
    kept = folder / f"vllm-{version}.tar.gz"
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary=:all:", "--no-build-isolation"]
        command += [f"vllm=={version}", "-d", scratch]
        with _started(command, os.environ | {"TMPDIR": scratch}) as pip:
            while pip.poll() is None and not kept.exists():
                for archive in Path(scratch).rglob(kept.name):
                    _copy_whole(archive, kept)
                time.sleep(0.2)
    if not kept.exists():
        raise SystemExit(f"pip has not downloaded vllm=={version}")
    with tarfile.open(kept) as archive_file:
        members = [m for m in archive_file.getmembers() if m.name.split("/")[1:2] == ["tests"]]
        for member in members:
            member.name = member.name.partition("/")[2]
        archive_file.extractall(folder, members, filter="data")


def _copy_whole(archive: Path, kept: Path) -> None:
    """Copy an archive that is complete; one that is still being written does not open."""
    draft = kept.with_suffix(".part")
    try:
        shutil.copyfile(archive, draft)
        with tarfile.open(draft) as whole:
            whole.getmembers()
    except (OSError, EOFError, tarfile.TarError):
        return
    draft.replace(kept)


def main() -> int:
    from ecoserve.files import write_atomically
    from ecoserve.serving.adapter.contract import vllm_version

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with vLLM's tests in it")
    parser.add_argument("--fetch", action="store_true", help="download the tests into it")
    parser.add_argument("--only", choices=FILES, action="append", help="this row of the table; may be given again")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the table; rows that are not run stay")
    args = parser.parse_args()
    folder, version = args.folder.resolve(), vllm_version().partition("+")[0]
    if args.fetch:
        folder.mkdir(parents=True, exist_ok=True)
        fetch(folder, version)
    if not (folder / _CORE).is_dir():
        print(f"{folder}: has no {_CORE}; give --fetch, or a folder with vLLM's tests", file=sys.stderr)
        return 2
    for name, config in MODELS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(config))
    rows = args.only or list(FILES)
    found = compare(run(folder, False, rows), run(folder, True, rows))
    show(found["table"])
    if args.output is not None:
        write_atomically(args.output, json.dumps(merged(args.output, version, found), indent=1) + "\n")
    tests = {name: test for row in found["not passed"].values() for name, test in row.items()}
    unexplained = [name for name, test in tests.items() if test["by design"] is None]
    for name in unexplained:
        print(f"not explained: {name}: {tests[name]['message']}")
    return 1 if unexplained else 0


if __name__ == "__main__":
    sys.exit(main())
