"""fidelity.py: logs with more or less in them, settings, and what a modelled run is compared with."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import fidelity
import pytest
from fidelity_logs import read_log
from fidelity_runs import Other, calibrate, engine_of, model_of
from fidelity_settings import engine_settings

from ecoserve.errors import ConfigError, InputError

#: Of a machine: "the log" of these tests is the simulation's own, shifted by so many seconds a token.
PROMPTS = [40, 300, 1500, 64, 700, 20]
OUTPUTS = [30, 12, 25, 40, 1, 22]


def write_log(folder: Path, *, engine: dict[str, Any] | None = None, gpu: str = "RTXPRO6000") -> Path:
    """A small log in the layout of the real ones; a token takes 20 ms, a first token 50 ms."""
    folder.mkdir()
    instance = {"model_name": "Qwen/Qwen2.5-0.5B", "hardware": gpu, "npu_mem": {"mem_util": 0.9}, "tp_size": 1}
    config = {"link_bw": 16, "link_latency": 20000, "nodes": [{"instances": [instance]}]}
    kwargs = {"model": "Qwen/Qwen2.5-0.5B", "tensor_parallel_size": 1, "max_num_seqs": 128, **(engine or {})}
    meta = {"vllm_version": "0.19.0", "engine_kwargs": kwargs, "started_at": "2026-04-25T18:47:18.000000Z"}
    start, clock = 1777142838.5, 5000.0
    rows, load = [], []
    for i, (prompt, output) in enumerate(zip(PROMPTS, OUTPUTS, strict=True)):
        arrival = 0.1 * i
        first = clock + arrival + 0.05
        rows.append(
            {
                "request_id": f"bench-{i}",
                "input_toks": prompt,
                "output_toks": output,
                "arrival_time": start + arrival,
                "queued_ts": clock + arrival + 0.002,
                "scheduled_ts": clock + arrival + 0.003,
                "first_token_ts": first,
                "last_token_ts": first + 0.02 * (output - 1),
            }
        )
        load.append({"input_toks": prompt, "input_tok_ids": [(i * 31 + j) % 1000 for j in range(prompt)]})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "requests.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with gzip.open(folder / "workload.jsonl.gz", "wt") as file:
        file.write("".join(json.dumps(r) + "\n" for r in load))
    with (folder / "timeseries.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["t", "running", "waiting"])
        writer.writerows([[0.6, 2, 0], [1.0, 4, 0], [9.0, 0, 0]])
    return folder


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_times_are_since_the_first_arrival(tmp_path: Path) -> None:
    log = read_log(write_log(tmp_path / "log"))
    assert [r.arrival_s for r in log.requests] == pytest.approx([0.1 * i for i in range(6)], abs=1e-6)
    # 2 ms pass between arrival and queue everywhere: they are the clocks' distance and cannot be seen.
    assert log.requests[0].first_token_s == pytest.approx(0.048, abs=1e-6)
    assert [len(r.prompt) for r in log.requests] == PROMPTS
    assert log.ticks[0][0] == pytest.approx(0.1, abs=1e-6)
    assert (log.model, log.hardware, log.link, log.notes) == ("Qwen/Qwen2.5-0.5B", "RTXPRO6000", (2e-5, 16e9), [])


def test_the_same_log_otherwise_packed_is_the_same(tmp_path: Path) -> None:
    log = read_log(write_log(tmp_path / "log"))
    other = write_log(tmp_path / "other")
    (other / "workload.jsonl").write_bytes(gzip.decompress((other / "workload.jsonl.gz").read_bytes()))
    (other / "workload.jsonl.gz").unlink()
    lines = (other / "requests.jsonl").read_text().splitlines()
    (other / "requests.jsonl.gz").write_bytes(gzip.compress("\n".join([*reversed(lines), ""]).encode()))
    (other / "requests.jsonl").unlink()
    assert read_log(other).requests == log.requests


def test_what_may_be_missing_is_noted(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "log")
    (folder / "timeseries.csv").unlink()
    (folder / "workload.jsonl.gz").write_bytes(gzip.compress(b'{"input_toks": 1}\n' * len(PROMPTS)))
    log = read_log(folder)
    assert [len(r.prompt) for r in log.requests] == PROMPTS
    assert len({tuple(r.prompt[:16]) for r in log.requests}) == len(PROMPTS)
    assert len(log.notes) == 2
    assert log.ticks == []


@pytest.mark.parametrize("name", ["config.json", "meta.json", "requests.jsonl", "workload.jsonl.gz"])
def test_what_must_be_there_is_named(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_log(tmp_path / "log")
    (folder / name).unlink()
    assert fidelity.main([str(folder)]) == 2
    assert f"has no {name.removesuffix('.gz')}" in capsys.readouterr().err


def test_damage_is_one_line(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "log")
    rows = (folder / "requests.jsonl").read_text().splitlines()
    for text, says in (
        ("", "0 of 0 requests"),
        (rows[0].replace('"first_token_ts": 5000.05', '"first_token_ts": null'), "1 of 1 requests have no first"),
        (rows[0].replace('"input_toks": 40', '"input_toks": 41'), "41 prompt tokens"),
        (rows[0].replace("queued_ts", "queued"), "'queued_ts' is missing"),
        (rows[0].replace("bench-0", "bench"), "1 requests of a workload of 6"),
        ("{", "JSONDecodeError"),
    ):
        (folder / "requests.jsonl").write_text(text + "\n")
        with pytest.raises(InputError, match=says) as raised:
            read_log(folder)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"depth": 2, "max_num_seqs": 128, "max_num_batched_tokens": 2048, "prefix_caching": True}),
        ({"async_scheduling": False}, {"depth": 1}),
        ({"distributed_executor_backend": "ray"}, {"depth": 1}),
        ({"enable_chunked_prefill": False, "enable_prefix_caching": False}, {"chunked_prefill": False}),
        ({"kv_cache_dtype": "fp8_e4m3", "quantization": "fp8"}, {"kv_cache": "fp8", "weights": "fp8"}),
        ({"num_gpu_blocks_override": 500, "block_size": 32}, {"kv_blocks": 499, "block_size": 32}),
        ({"gpu_memory_utilization": 0.8, "tensor_parallel_size": 2}, {"memory_share": 0.8, "tp": 2}),
        ({"data_parallel_size": 2, "enable_expert_parallel": True}, {"expert_ranks": 2}),
    ],
)
def test_settings_and_their_defaults(given: dict[str, Any], expected: dict[str, Any]) -> None:
    settings = engine_settings("0.19.0", given, {})
    assert {name: getattr(settings, name) for name in expected} == expected


def test_old_versions_schedule_when_the_step_is_done() -> None:
    assert engine_settings("0.13.2", {}, {}).depth == 1
    assert engine_settings("v0.14.0rc1", {}, {}).depth == 2
    assert engine_settings("0.13.2", {"async_scheduling": True}, {}).depth == 2


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline"),
        ({"speculative_config": {"method": "ngram"}}, "speculative_config"),
        ({"data_parallel_size": 2}, "several logs"),
        ({"enable_expert_parallel": True, "tensor_parallel_size": 2}, "experts divided whole"),
        ({"quantization": "awq"}, "awq"),
        ({"dtype": "float32"}, "float32"),
    ],
)
def test_another_kind_of_run_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        engine_settings("0.19.0", given, {})


def test_the_engine_has_the_logs_settings(tmp_path: Path) -> None:
    log = read_log(write_log(tmp_path / "log", engine={"enable_chunked_prefill": False, "max_model_len": 4096}))
    shape = engine_of(log, model_of(log, Other()))
    assert (shape.max_model_len, shape.max_num_batched_tokens, shape.chunked_prefill) == (4096, 4096, False)
    with pytest.raises(ConfigError, match="names no GPU"):
        model_of(read_log(write_log(tmp_path / "nowhere", gpu="")), Other())


def test_a_log_is_compared_and_calibrated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, path = write_log(tmp_path / "log", engine={"max_model_len": 4096}), tmp_path / "out.json"
    assert fidelity.main([str(folder), "--json", str(path)]) == 0
    (result,) = json.loads(path.read_text("utf-8"))["logs"]
    # What was measured: 20 ms a token, 50 ms to the first one less the 2 that cannot be seen.
    assert result["tpot"]["mean"]["measured_ms"] == pytest.approx(20.0, abs=0.01)
    assert result["ttft"]["p99"]["measured_ms"] == pytest.approx(48.0, abs=0.01)
    # So small a model is ten times as fast on that GPU.
    before = result["tpot"]["mean"]["modelled_ms"]
    assert 1.0 < before < 5.0
    assert result["within_targets"] == {"tpot": False, "e2el": False, "ttft": False}
    assert len(result["series"]["running_modelled"]) == 3
    assert "off by more than the target" in capsys.readouterr().out
    gap = calibrate(read_log(folder), Other(), rounds=2, say=lambda line: None)
    assert gap > 1e-3
    assert fidelity.main([str(folder), "--host", json.dumps({"gap_request_s": gap}), "--json", str(path)]) == 0
    (result,) = json.loads(path.read_text("utf-8"))["logs"]
    assert abs(20.0 - result["tpot"]["mean"]["modelled_ms"]) < 0.5 * (20.0 - before)


def test_bad_options_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(write_log(tmp_path / "log"))
    for options, says in (
        (["--host", "{"], "--host"),
        (["--host", '{"gap": 1}'], "gap"),
        (["--gpu", "abacus"], "abacus"),
        (["--model", "no-such/model"], "no-such/model"),
        ([str(tmp_path / "absent")], "absent"),
    ):
        assert fidelity.main([folder, *options]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1


@pytest.mark.slow
def test_a_real_run_is_within_the_targets() -> None:
    folder = Path("../shared/data/vllm_logs/rtxpro6000_llama-3.1-8b")
    if not folder.is_dir():
        pytest.skip("needs the logs")
    log = read_log(folder)
    model = model_of(log, Other())
    result = fidelity.compare(log, model, *fidelity.simulate(log, model))
    assert result["within_targets"] == {"tpot": True, "e2el": True, "ttft": True}
    assert result["running"]["correlation"] > 0.99
