"""The frame of the command line: what is loaded when, and how wrong usage ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from ecoserve.cli import main as cli

HEAVY = ("torch", "vllm", "transformers", "datasets", "lightgbm", "sklearn", "scipy", "numpy", "pandas", "plotly")


def modules_after(*lines: list[str]) -> list[set[str]]:
    """The top-level modules that each of these command lines has added, one after another in a fresh interpreter."""
    code = (
        "import json, sys\n"
        "from ecoserve.cli.main import main\n"
        "added, known = [], set()\n"
        f"for line in {lines!r}:\n"
        "    main(line)\n"
        "    now = {name.partition('.')[0] for name in sys.modules}\n"
        "    added.append(sorted(now - known))\n"
        "    known |= now\n"
        "print(json.dumps(added), file=sys.stderr)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [set(names) for names in json.loads(answer.stderr.splitlines()[-1])]


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["doctor", "--help"], []])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    [loaded] = modules_after(arguments)
    assert "typer" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_every_command_explains_itself_without_importing_an_engine() -> None:
    names = [entry.name for entry in cli.COMMANDS]
    added = modules_after(*([name, "--help"] for name in names))
    engines = {"torch", "vllm", "transformers", "datasets", "lightgbm"}
    assert {name: modules & engines for name, modules in zip(names, added, strict=True) if modules & engines} == {}


@pytest.mark.parametrize("entry", cli.COMMANDS, ids=lambda entry: entry.name)
def test_every_command_loads_and_is_documented(entry: cli.Entry, capsys: pytest.CaptureFixture[str]) -> None:
    first = (entry.load().__doc__ or "").strip().splitlines()[0]
    assert first.endswith((".", ";"))
    assert len(entry.summary) <= 52, "more does not fit on one line of the list"
    assert cli.main([entry.name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"ecoserve {entry.name}" in shown
    assert first[:40] in shown


def test_help_lists_every_command_and_every_command_file_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f" {entry.name} " in shown and entry.summary in shown for entry in cli.COMMANDS)
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - {"__init__", "main", "common"}
    commands = {name for name in files if "def command(" in (Path(cli.__file__).parent / f"{name}.py").read_text()}
    assert commands == {entry.name.replace("-", "_") for entry in cli.COMMANDS if not entry.at}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "No such command 'nonsense'; see: ecoserve --help"),
        (["doctor", "--nonsense"], "No such option: --nonsense; see: ecoserve doctor --help"),
        (["doctor", "stray"], "see: ecoserve doctor --help"),
        (["--nonsense"], "No such option: --nonsense"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_no_command_shows_the_help_and_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "Usage: ecoserve" in capsys.readouterr().out


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ecoserve {version('ecoserve')}\n"


def test_the_installed_script_is_this_program() -> None:
    script = Path(sys.executable).with_name("ecoserve")
    answer = subprocess.run([str(script), "nonsense"], capture_output=True, text=True, check=False)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("error: No such command")


def test_a_command_that_passes_options_on_keeps_what_it_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `serve` relies on: vLLM's flags, in any place, with their values, arrive untouched and in order."""
    got: list[list[str]] = []

    def command(context: typer.Context, model: str, predictor: str = typer.Option("none", "--predictor")) -> None:
        """Summary."""
        got.append([model, predictor, *context.args])

    entry = cli.Entry("fake", "Summary.", passes_options_on=True)
    monkeypatch.setattr(cli, "COMMANDS", (entry,))
    monkeypatch.setattr(cli.Entry, "load", lambda self: command)
    line = ["fake", "m", "--max-num-seqs", "8", "--predictor", "p", "--enforce-eager", "-tp=2"]
    assert cli.main(line) == 0
    assert got == [["m", "p", "--max-num-seqs", "8", "--enforce-eager", "-tp=2"]]
