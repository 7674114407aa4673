"""The target forward size of modelled GPUs, and ``auto`` in simulations."""

from __future__ import annotations

import json
import math

import pytest

from ecoserve.cli.main import main
from ecoserve.errors import ConfigError
from ecoserve.serving.forward_run import ForwardSize, target_forward_size
from ecoserve.serving.simulate.gpu.model import gpu_model
from ecoserve.serving.simulate.gpu.shapes import load_shape
from ecoserve.serving.simulate.run import SimulateSettings, check, simulate
from ecoserve.serving.simulate.settings import forward_times


def times_of(gpu: str, model: str) -> list[tuple[int, float]]:
    return forward_times(gpu_model(gpu, load_shape(model)))


def target_of(gpu: str, model: str) -> ForwardSize:
    return target_forward_size(times_of(gpu, model))


def test_a_13b_model_saturates_an_h100_at_some_hundred_tokens() -> None:
    """By hand: 26 GB of weights at 3.35 TB/s and 26 GFLOP a token at 990 TFLOP/s cross at 295 tokens; what kernels
    reach of either moves that up."""
    found = target_of("h100_sxm", "llama-13b")
    assert 300 <= found.tokens <= 700
    assert found.saturated
    times = dict(times_of("h100_sxm", "llama-13b"))
    assert times[256] < 1.5 * times[16], "up to the knee, tokens are nearly for free"
    assert times[4096] > 3.5 * times[1024], "beyond it they are not"


def test_a_gpu_with_less_compute_for_its_bandwidth_saturates_earlier() -> None:
    """L40S: 362 TFLOP/s for 0.86 TB/s, H100: 990 for 3.35."""
    ratio = {"l40s": 362 / 0.864, "h100_sxm": 990 / 3.35}
    found = {gpu: target_of(gpu, "llama-3.1-8b").tokens for gpu in ratio}
    assert (found["l40s"] > found["h100_sxm"]) == (ratio["l40s"] > ratio["h100_sxm"])


SETTINGS = SimulateSettings(
    trace="synthetic:100",
    split=None,
    requests=60,
    rate_rps=math.inf,
    gpu="h100_sxm",
    model="llama-3.1-8b",
    max_tokens=100,
    policy="ecoserve",
)


def test_auto_is_the_machines_own() -> None:
    auto = SETTINGS.model_copy(update={"scheduler": {"target_forward_tokens": "auto"}})
    found = target_of("h100_sxm", "llama-3.1-8b").tokens
    given = SETTINGS.model_copy(update={"scheduler": {"target_forward_tokens": found}})
    check(auto)
    assert simulate(auto).rows == simulate(given).rows
    assert simulate(auto).rows != simulate(SETTINGS).rows, "it does something"


def test_auto_needs_a_gpu() -> None:
    linear = SETTINGS.model_copy(
        update={"gpu": "linear", "model": None, "scheduler": {"target_forward_tokens": "auto"}}
    )
    with pytest.raises(ConfigError, match="auto needs a modelled GPU"):
        check(linear)


def test_the_command_prints_the_servers_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate-forward", "llama-13b", "--gpu", "h100_sxm", "--depth", "1", "--json", "-"]) == 0
    out = capsys.readouterr()
    summary = json.loads(out.out)
    assert summary["target_forward_tokens"] == target_of("h100_sxm", "llama-13b").tokens
    assert [f["tokens"] for f in summary["forwards"]][-1] == 8192
    assert f'{{"ecoserve": {{"target_forward_tokens": {summary["target_forward_tokens"]}}}}}' in out.err
    assert 5 < summary["unloaded_tpot_ms"] < summary["unloaded_ttft_ms"] < 60
