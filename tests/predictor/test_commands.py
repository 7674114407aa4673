"""The commands train, evaluate and predict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ecoserve.errors import CheckpointError, ConfigError, TraceError
from ecoserve.predictor import load_predictor

Call = Callable[..., Any]
KEYS = {"rows", "mae_tokens", "within_50", "within_100", "kendall_tau", "bin_accuracy", "pinball_loss", "coverage_90"}


def test_train_evaluate_predict(call: Call, trace_file: Path, tmp_path: Path) -> None:
    folder, summary = tmp_path / "ckpt", tmp_path / "train.json"
    trained = call(
        "train_predictor", trace_file, "-o", folder, "--backend", "lightgbm", "--rounds", "10", "--max-rows", "400",
        "--served-model", "m", "--seed", "3", "--json", summary,
    )  # fmt: skip
    said = json.loads(summary.read_text())
    assert set(said["dev"]) > KEYS
    assert said["rows_trained"] + said["rows_held_out"] == 400
    config = load_predictor(folder).config
    assert (config.served_model, config.seed, config.backend) == ("m", 3, "lightgbm")
    assert "constant median" in trained.stderr

    evaluated = call("evaluate_predictor", folder, trace_file, "--json", "-", "--quiet")
    figures = json.loads(evaluated.stdout)
    assert set(figures) > KEYS
    for key in KEYS - {"latency_p50_ms", "latency_p99_ms"}:
        assert figures[key] == pytest.approx(said["dev"][key])
    assert figures["constant_median"]["kendall_tau"] == 0
    everything = json.loads(call("evaluate_predictor", folder, trace_file, "--split", "all", "--json", "-").stdout)
    assert everything["rows"] == 900


def test_predict_reads_prompts_and_chats(call: Call, boosted_dir: Path, tmp_path: Path) -> None:
    lines = tmp_path / "prompts.jsonl"
    chat = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name two pets."}]}
    lines.write_text(f'plain text\n\n"quoted"\n{{"prompt": "object"}}\n{json.dumps(chat)}\n[sic] a bracket\n')
    result = call("predict", boosted_dir, "argument", "--input", lines, "--json", "-")
    said = json.loads(result.stdout)["predictions"]
    assert [p["prompt"] for p in said] == [
        "argument", "plain text", "quoted", "object", "Name two pets.", "[sic] a bracket"
    ]  # fmt: skip
    predictor = load_predictor(boosted_dir)
    [lengths] = predictor.predict(["plain text"])
    assert said[1]["median_tokens"] == lengths.quantile(0.5)
    assert said[1]["quantiles_tokens"]["0.9"] == lengths.quantile(0.9)
    assert said[1]["upper_bounds_tokens"] == {"0.9": predictor.upper_bounds(["plain text"])[0]}
    assert said[1]["mean_tokens"] == pytest.approx(lengths.mean(), abs=0.05)

    shown = call("predict", boosted_dir, "--input", "-", text="from stdin\n")
    assert "from stdin" in shown.stdout
    assert str(predictor.predict(["from stdin"])[0].quantile(0.5)) in shown.stdout
    assert "bound" not in shown.stdout
    bounded = call("predict", boosted_dir, "plain text", "--bound", "0.8")
    assert "80 % stay within the bound" in bounded.stdout
    assert f" {predictor.upper_bounds(['plain text'], 0.8)[0]} " in bounded.stdout


def test_bad_input_is_one_clear_error(call: Call, trace_file: Path, boosted_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match=r"--backend: no backend 'magic'; one of stacked, encoder, lightgbm"):
        call("train_predictor", trace_file, "-o", out, "--backend", "magic")
    with pytest.raises(ConfigError, match="--epochs: is no option of the lightgbm backend"):
        call("train_predictor", trace_file, "-o", out, "--backend", "lightgbm", "--epochs", "2")
    with pytest.raises(ConfigError, match="--epochs: must be greater than 0"):
        call("train_predictor", trace_file, "-o", out, "--epochs", "0")
    with pytest.raises(ConfigError, match="--body-lr: must be greater than 0"):
        call("train_predictor", trace_file, "-o", out, "--body-lr", "0")
    with pytest.raises(ConfigError, match="--start-from: starts from a checkpoint's encoder already"):
        call("train_predictor", trace_file, "-o", out, "--start-from", boosted_dir, "--encoder", "all-MiniLM-L6-v2")
    with pytest.raises(ConfigError, match="without an encoder to start from"):
        call("train_predictor", trace_file, "-o", out, "--start-from", boosted_dir)
    with pytest.raises(TraceError, match="10 training rows"):
        call("train_predictor", trace_file, "-o", out, "--backend", "lightgbm", "--max-rows", "10")
    with pytest.raises(TraceError):
        call("train_predictor", tmp_path / "missing.json", "-o", out)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        call("evaluate_predictor", tmp_path / "nothing", trace_file)
    with pytest.raises(ConfigError, match="--split"):
        call("evaluate_predictor", boosted_dir, trace_file, "--split", "test")
    with pytest.raises(ConfigError, match="no prompt given"):
        call("predict", boosted_dir)
    with pytest.raises(ConfigError, match=r"no bound at 0\.7; this predictor's levels: 0\.5, 0\.8, 0\.9, 0\.95"):
        call("predict", boosted_dir, "text", "--bound", "0.7")
    with pytest.raises(TraceError, match="no such file"):
        call("predict", boosted_dir, "--input", tmp_path / "missing.txt")
    (tmp_path / "bad.jsonl").write_text('fine\n{"messages": [{"role": "user"}]}\n')
    with pytest.raises(TraceError, match=r"bad\.jsonl:2: neither a prompt nor chat messages"):
        call("predict", boosted_dir, "--input", tmp_path / "bad.jsonl")
    assert not out.exists()
