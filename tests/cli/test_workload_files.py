"""A workload file at the command line: taken as a trace; what is wrong with it ends the command in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ecoserve.cli import main as cli

GOOD = "requests: 30\nprompt: {tokens: 50}\nresponse: {tokens: {law: exponential, scale: 30}}\n"
BAD = [
    (GOOD + "colour: red\n", "w.yaml: there is no key 'colour' here; keys are prompt, response,"),
    (
        GOOD + "arrivals: {process: poisson, rate: -2}\n",
        "w.yaml: arrivals.rate: input should be greater than 0, not -2",
    ),
    (GOOD.replace("exponential", "zipf"), "w.yaml: response.tokens: 'zipf' is no law of lengths; one of lognormal,"),
    (GOOD + "requests: 40\n", "w.yaml: is not YAML (line 4: 'requests' is there twice)"),
    ("requests: 5\nrows: {trace: w.yaml}\n", "w.yaml: a workload cannot be made of the workload "),
    ("requests: 5\nrows: {trace: gone.jsonl}\n", "w.yaml: trace gone.jsonl: no such file; check the path"),
    (None, "w.yaml: there is no such file"),
]


@pytest.mark.parametrize(("content", "said"), BAD, ids=[said for _, said in BAD])
@pytest.mark.parametrize("command", ["profile w.yaml", "train-predictor w.yaml --backend lightgbm -o ckpt"])
def test_a_mistake_ends_a_command_in_one_line(
    command: str,
    content: str | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("w.yaml").write_text(content)
    assert cli.main(command.split()) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {said}")
    assert {path.name for path in tmp_path.iterdir()} <= {"w.yaml"}


def test_a_profile_of_a_workload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("w.yaml").write_text(GOOD)
    assert cli.main(["profile", "w.yaml", "--quiet", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)
