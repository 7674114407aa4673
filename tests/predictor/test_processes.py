"""The command line on several processes, as torchrun starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ecoserve.data import save_trace, synthetic_trace
from ecoserve.predictor import load_predictor


def test_two_processes_train_one_predictor(tiny_encoder: Path, tmp_path: Path) -> None:
    file, output = tmp_path / "trace.jsonl", tmp_path / "ckpt"
    save_trace(synthetic_trace(240, seed=0), file)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "ecoserve.cli.main", "train-predictor", str(file), "-o", str(output), "--json", "-"]
    command += ["--encoder", str(tiny_encoder), "--epochs", "1", "--rounds", "3", "--max-length", "48"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    # One of them speaks, writes and leaves nothing behind.
    assert json.loads(done.stdout)["backend"] == "stacked"
    assert not (output / ".training").exists()
    assert len(load_predictor(output).predict(["list three pets", "why?"])) == 2
