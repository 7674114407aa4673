"""The command line on several processes, with the variables by which torchrun tells them apart."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ecoserve.data import save_trace, synthetic_trace
from ecoserve.predictor import load_predictor

#: Imports once what both processes need, then is both: torchrun would start three interpreters.
_RANKS = """
import os, signal, sys
from torch.distributed import TCPStore
from ecoserve.cli.main import main
from ecoserve.predictor.encoder import training

store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"
ranks = set()
for rank in ("0", "1"):
    child = os.fork()
    if child == 0:
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
        code = 1
        try:
            code = main(sys.argv[1:])
        finally:
            sys.stdout.flush()
            os._exit(code)
    ranks.add(child)
while ranks:
    child, status = os.wait()
    ranks.remove(child)
    if status != 0:
        for other in ranks:
            os.kill(other, signal.SIGKILL)
        sys.exit(1)
"""


def test_two_processes_train_one_predictor(tiny_encoder: Path, tmp_path: Path) -> None:
    file, output = tmp_path / "trace.jsonl", tmp_path / "ckpt"
    save_trace(synthetic_trace(240, seed=0), file)
    command = [sys.executable, "-c", _RANKS, "train-predictor", str(file), "-o", str(output), "--json", "-"]
    command += ["--encoder", str(tiny_encoder), "--epochs", "1", "--rounds", "3", "--max-length", "48"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    # One of them speaks, writes and leaves nothing behind.
    assert json.loads(done.stdout)["backend"] == "stacked"
    assert not (output / ".training").exists()
    assert len(load_predictor(output).predict(["list three pets", "why?"])) == 2
