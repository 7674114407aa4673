"""``ecoserve calibrate-forward`` as it is typed, on an engine of its own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ecoserve.cli.main import main

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]


def test_a_model_here_is_measured_and_its_options_are_printed(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = "--enforce-eager --dtype float32 --threads 1 --largest 96 --prompt-tokens 40 --json -"
    assert main(["calibrate-forward", str(tiny_model), *words.split()]) == 0
    out = capsys.readouterr()
    summary = json.loads(out.out)
    assert [f["tokens"] for f in summary["forwards"]] == [16, 24, 32, 48, 64, 96]
    assert all(f["forward_ms"] > 0 for f in summary["forwards"])
    assert 16 <= summary["target_forward_tokens"] <= 96
    assert summary["best_tokens_per_s"] == max(f["tokens_per_s"] for f in summary["forwards"])
    assert (summary["gpu"], summary["prompt_tokens"]) == (None, 40)
    assert f"--unloaded-ttft-ms {summary['unloaded_ttft_ms']:.1f}" in out.err


def test_what_cannot_be_measured_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([str(tmp_path / "nowhere")], ["llama-13b", "--gpu", "abacus"]):
        assert main(["calibrate-forward", *words, "--quiet"]) == 2
        assert len([x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]) == 1
