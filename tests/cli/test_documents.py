"""What the README shows can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ecoserve.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def shown_commands() -> list[str]:
    """Every line of a shell block in our documents that calls ecoserve."""
    blocks = [
        block for path in DOCUMENTS for block in re.findall(r"```(?:bash|sh)\n(.*?)```", path.read_text(), re.DOTALL)
    ]
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [part.strip() for line in lines for part in line.split("&&") if part.strip().startswith("ecoserve ")]


def test_documents_show_commands() -> None:
    assert {"doctor", "train-predictor", "serve"} <= {line.split()[1] for line in shown_commands()}


@pytest.mark.parametrize("line", sorted(set(shown_commands())))
def test_a_shown_command_exists_with_its_options(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, name, *arguments = shlex.split(line)
    entry = {entry.name: entry for entry in cli.COMMANDS}[name]
    assert cli.main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    options = [argument.partition("=")[0] for argument in arguments if argument.startswith("-") and argument != "-"]
    unknown = [option for option in options if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", shown)]
    if entry.passes_options_on:
        unknown = [option for option in unknown if not option.startswith("--")]
    assert unknown == []


def test_make_targets_that_documents_name_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = "\n".join(path.read_text() for path in [*DOCUMENTS, ROOT / "CHANGELOG.md"])
    named = {word for words in re.findall(r"`make ((?:[a-z]+ ?)+)`", text) for word in words.split()}
    named |= set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE))
    assert {"setup", "demo", "test"} <= named
    assert named <= targets


def test_files_that_documents_link_to_exist() -> None:
    for path in DOCUMENTS:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
