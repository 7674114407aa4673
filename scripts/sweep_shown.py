"""Is a sweep the same sweep when it is killed and resumed, run in processes, or on a Ray cluster that loses a worker?

    python scripts/sweep_shown.py benchmarks/results/sweep_hash.json

One small sweep in virtual time, four times, each from nothing: left alone; killed (SIGKILL) when a third of it is done
and resumed; in two processes; on a Ray cluster of two nodes on this machine, one of whose workers is killed while it
runs. Each must come to the same hash of run and request rows. Takes about two minutes of CPU time.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from short_json import dumps

from ecoserve.sweep.environment import hardware, versions
from ecoserve.sweep.results import ResultFolder

PLAN = """
title: The same sweep
trace: synthetic:500
policies: [vllm, ecoserve]
lengths: [true, noise:0.5]
rates: [10]
seeds: [0, 1, 2]
requests: 60
blocks: 250
settings: {max_tokens: 512, max_model_len: 2048, slo_scale: 5}
"""
RUNS = 9
TASK = b"ray::perform_here"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "plan.yaml").write_text(PLAN, encoding="utf-8")
        told = {
            "left alone": alone(base),
            "killed and resumed": killed(base),
            "two processes": sweep(base, "processes", "--jobs", "2"),
            "Ray, two nodes, one worker killed": on_ray(base),
        }
    result = {
        "command": "python scripts/sweep_shown.py benchmarks/results/sweep_hash.json",
        "runs": RUNS,
        "sweeps": told,
        "one_hash": len({entry["tables_sha256"] for entry in told.values()}) == 1,
        "versions": versions(),
        "hardware": hardware(),
    }
    arguments.output.write_text(dumps(result) + "\n", encoding="utf-8")
    print(dumps({"one_hash": result["one_hash"], "sweeps": told}))
    sys.exit(0 if result["one_hash"] else 1)


def command(base: Path, name: str, *options: str) -> list[str]:
    plan, out = str(base / "plan.yaml"), str(base / name)
    return [sys.executable, "-m", "ecoserve.cli.main", "sweep", plan, "-o", out, "--quiet", *options]


def sweep(base: Path, name: str, *options: str) -> dict[str, Any]:
    """Run it to the end."""
    subprocess.run(command(base, name, *options), check=True)
    return described(base / name)


def described(out: Path) -> dict[str, Any]:
    folder = ResultFolder.open(out)
    folder.check_requests()
    summary = folder.summary()
    assert (len(summary.runs), len(summary.failures)) == (RUNS, 0)
    return {"tables_sha256": summary.meta.tables_sha256}


def alone(base: Path) -> dict[str, Any]:
    return sweep(base, "alone", "--jobs", "0")


def killed(base: Path) -> dict[str, Any]:
    """Killed outright after three runs, then resumed."""
    process = subprocess.Popen(command(base, "killed", "--jobs", "0"))
    while len(list((base / "killed" / "runs").glob("*.json"))) < RUNS // 3:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    kept = len(list((base / "killed" / "runs").glob("*.json")))
    assert kept < RUNS
    return {**sweep(base, "killed", "--jobs", "0", "--resume"), "runs_before": kept}


def on_ray(base: Path) -> dict[str, Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    gone: list[int] = []
    try:
        cluster.add_node(**small)
        watch = threading.Thread(target=kill_a_worker, args=(base / "ray" / "runs", gone), daemon=True)
        watch.start()
        told = sweep(base, "ray", "--ray", cluster.address)
        watch.join(1.0)
    finally:
        cluster.shutdown()
    assert len(gone) == 1, "no worker was killed"
    return {**told, "workers_killed": len(gone)}


def kill_a_worker(runs: Path, gone: list[int]) -> None:
    """Kill the first worker that is seen at a run, once another run is written down."""
    while not gone:
        time.sleep(0.01)
        if not list(runs.glob("*.json")):
            continue
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                # Ray names a worker after the task that it runs.
                if TASK in file.read_bytes() and not gone:
                    os.kill(int(file.parent.name), signal.SIGKILL)
                    gone.append(int(file.parent.name))
            except OSError:
                continue


if __name__ == "__main__":
    main()
