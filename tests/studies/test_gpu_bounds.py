"""gpu_bounds.py: a machine of the table, and that a number which beats physics is not passed over."""

from __future__ import annotations

import json
from pathlib import Path

import gpu_bounds
import pytest

from ecoserve.serving.simulate.gpu.hardware import GPUS, find_gpu
from ecoserve.serving.simulate.gpu.shapes import load_shape


def test_the_table_covers_every_gpu_dense_and_sparse_models_and_all_parallelisms() -> None:
    assert len(gpu_bounds.MACHINES) >= 20
    assert {gpu for _, gpu, _ in gpu_bounds.MACHINES} == set(GPUS)
    assert {tp for _, _, tp in gpu_bounds.MACHINES} == {1, 2, 4, 8}
    sparse = {bool(load_shape(model).experts) for model, _, _ in gpu_bounds.MACHINES}
    assert sparse == {False, True}


def test_one_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bounds.json"
    assert gpu_bounds.main(["--only", "qwen2.5-0.5b rtx_pro_6000_server", "--json", str(path)]) == 0
    report = json.loads(path.read_text("utf-8"))
    (machine,) = report["machines"]
    assert report["summary"]["steps"] == len(machine["steps"]) == len(gpu_bounds.STEPS)
    for step in machine["steps"].values():
        assert step["modelled_ms"] >= max(step["memory_ms"], step["compute_ms"])
    assert 0 < machine["kv"]["gib"] < machine["kv"]["left_gib"]
    assert "KV" in capsys.readouterr().out


def test_a_number_that_beats_physics_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    # Against the bounds of a GPU with a thousandth of the memory bandwidth every decode is too fast.
    slow = find_gpu("rtx_pro_6000_server")
    least = gpu_bounds.least_step_s
    monkeypatch.setattr(gpu_bounds, "least_step_s", lambda s, g, tp, work: 1000 * least(s, slow, tp, work))
    assert gpu_bounds.main(["--only", "qwen2.5-0.5b"]) == 1
    assert "BEATS PHYSICS: 1 decode at 1,000" in capsys.readouterr().out


def test_no_such_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_bounds.main(["--only", "tpu"]) == 2
    assert "holds 'tpu'" in capsys.readouterr().err


def test_bounds_by_hand() -> None:
    shape, gpu = load_shape("llama-3.1-8b"), find_gpu("h100_sxm")
    work = gpu_bounds.decodes(16, 1000)
    weights = 2 * (shape.parameters - shape.embedding_parameters)
    assert gpu_bounds.memory_s(shape, gpu, 1, work) == pytest.approx((weights + 16000 * 131072) / 3.35e12, rel=1e-3)
    assert gpu_bounds.compute_s(shape, gpu, 1, gpu_bounds.prompt(2048)) == pytest.approx(30.0e-3, rel=0.01)
    assert (
        gpu_bounds.compute_s(shape, gpu, 2, gpu_bounds.prompt(2048))
        == gpu_bounds.compute_s(shape, gpu, 1, gpu_bounds.prompt(2048)) / 2
    )
