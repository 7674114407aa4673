"""Sweeps on a Ray cluster of two nodes on this machine: the same tables, a killed worker included."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from ecoserve.errors import ConfigError
from ecoserve.sweep import ray_cluster
from ecoserve.sweep.execute import execute
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import Meta

pytest.importorskip("ray")

#: A process of its own, so that Ray's threads and signal handlers end with it. Warnings are errors there too.
SCRIPT = """
import json, os, sys
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
sys.path.insert(0, HERE)
from ray.cluster_utils import Cluster
from ecoserve.sweep.execute import execute
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import Meta

BASE = {"policy": "ecoserve", "rate_rps": 5.0, "requests": 30, "mark": MARK}
RUNS = [PlannedRun.of({**BASE, "lengths": k, "seed": s}) for k in ("true", "none", "noise:0.5") for s in range(3)]
# A run whose key differs on the cluster, and one that always dies.
OTHER = PlannedRun("0" * 16, {**BASE, "lengths": "true", "seed": 7})
DIES = PlannedRun.of({**BASE, "lengths": "true", "seed": 8, "die": True})

if __name__ == "__main__":
    said = {}
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        cluster.add_node(**small)
        folder = ResultFolder.create(OUT + "/ray", Meta())
        tally = execute(RUNS, folder, function="small_runs:killed_once", ray=cluster.address)
        folder.check_requests()
        said["tally"] = [tally.finished, tally.failed, tally.skipped]
        said["hash"] = folder.summary().meta.tables_sha256
        failing = ResultFolder.create(OUT + "/failing", Meta())
        tally = execute([OTHER, DIES, RUNS[0]], failing, function="small_runs:killed_once", ray=cluster.address)
        said["failing"] = [tally.finished, tally.failed]
        said["errors"] = [failure.error for failure in failing.summary().failures]
    finally:
        cluster.shutdown()
    print(json.dumps(said))
"""


def test_two_nodes_give_the_same_tables_though_a_worker_is_killed(tmp_path):
    mark = tmp_path / "marks"
    script = tmp_path / "on_ray.py"
    values = {"HERE": str(Path(__file__).parent), "MARK": str(mark), "OUT": str(tmp_path)}
    script.write_text("".join(f"{k} = {v!r}\n" for k, v in values.items()) + SCRIPT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    begun = [line.split() for line in mark.read_text().splitlines()]
    assert said["tally"] == [9, 0, 0]
    assert Path(f"{mark}.killed").exists()
    # One run of seed 1 was begun twice before the second sweep began; Ray's nodes are the workers' parents.
    assert len({node for *_, node in begun}) == 2
    assert sum(seed == "1" for seed, *_ in begun) == 4
    assert said["failing"] == [1, 2]
    assert "has another trace, checkpoint or version" in said["errors"][0]
    assert "process died" in said["errors"][1]

    base = {"policy": "ecoserve", "rate_rps": 5.0, "requests": 30, "mark": str(mark)}
    kinds = ("true", "none", "noise:0.5")
    runs = [PlannedRun.of({**base, "lengths": k, "seed": s}) for k in kinds for s in range(3)]
    local = ResultFolder.create(tmp_path / "local", Meta())
    execute(runs, local, function="small_runs:queue", jobs=0)
    assert local.summary().meta.tables_sha256 == said["hash"]


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:PORT", "127.0.0.1:99999999", "ray://127.0.0.1:PORT"])
def test_an_address_without_an_answer_is_one_line(tmp_path, address):
    with socket.socket() as held:  # bound and not listening: refused, and free of others
        held.bind(("127.0.0.1", 0))
        address = address.replace("PORT", str(held.getsockname()[1]))
        folder = ResultFolder.create(tmp_path / "out", Meta())
        with pytest.raises(ConfigError, match=r"no Ray cluster answers .*ray start --head"):
            execute([PlannedRun.of({"seed": 0})], folder, ray=address)


def test_without_ray_the_way_to_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"Ray is not installed; pip install 'ecoserve\[ray\]'"):
        ray_cluster.on_ray(None, "small_runs:queue", "local", None)  # type: ignore[arg-type]
