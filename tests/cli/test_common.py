"""How a command ends, and the JSON it writes."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from ecoserve.cli import common, doctor
from ecoserve.errors import CheckpointError, EcoServeError, RunError, ThresholdError, TraceError
from ecoserve.files import write_atomically


def failing(error: BaseException) -> Callable[[], Any]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (
            TraceError("no such file", where="a.json", fix="give another"),
            2,
            "error: a.json: no such file; give another",
        ),
        (CheckpointError("damaged"), 2, "error: damaged"),
        (RunError("the engine died"), 1, "error: the engine died"),
        (ThresholdError("mae 61 is above 60"), 3, "error: mae 61 is above 60"),
        (EcoServeError("two\nlines"), 1, "error: two lines"),
        (KeyboardInterrupt(), 130, "ecoserve: interrupted"),
        (ValueError("odd\nthing"), 1, "error: unexpected ValueError: odd thing; ECOSERVE_DEBUG=1 shows the traceback"),
        (KeyError(), 1, "error: unexpected KeyError; ECOSERVE_DEBUG=1 shows the traceback"),
        (typer.BadParameter("not a number"), 2, "error: Invalid value: not a number"),
    ],
)
def test_however_it_ends_it_is_one_line_and_the_code_says_whose_fault(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert common.guard(failing(error)) == code
    assert capsys.readouterr() == ("", line + "\n")


@pytest.mark.parametrize(("result", "code"), [(None, 0), (3, 3), ("text", 0), (0, 0)])
def test_an_integer_result_is_the_exit_code(result: object, code: int) -> None:
    assert common.guard(lambda: result) == code


def test_exit_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    assert common.guard(failing(typer.Exit(3))) == 3
    assert capsys.readouterr() == ("", "")


def test_debug_shows_the_traceback_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ECOSERVE_DEBUG", "1")
    assert common.guard(failing(RunError("broken"))) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert shown.endswith("error: broken\n")


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    code = (
        "import sys; from ecoserve.cli.common import emit_json, guard\n"
        "sys.exit(guard(lambda: emit_json({'rows': list(range(200000))}, '-')))"
    )
    # Unbuffered, Python drops what a half-taken write left over and hears nothing of the broken pipe.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, env=environ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 1


@dataclass
class Row:
    name: str
    value: float


def test_json_takes_what_summaries_are_made_of(tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "summary.json"
    summary = {
        "row": Row("a", math.nan),
        "array": np.arange(3),
        "scalar": np.float32(0.5),
        "path": Path("x/y"),
        "set": {3},
        "ünï": (True, None, math.inf),
        7: np.bool_(True),
    }
    common.emit_json(summary, target)
    assert json.loads(target.read_text()) == {
        "row": {"name": "a", "value": None},
        "array": [0, 1, 2],
        "scalar": 0.5,
        "path": "x/y",
        "set": [3],
        "ünï": [True, None, None],
        "7": True,
    }
    assert [path.name for path in target.parent.iterdir()] == ["summary.json"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~mask


def test_json_to_stdout_and_to_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    common.emit_json({"a": 1}, None)
    assert capsys.readouterr().out == ""
    common.emit_json({"a": 1}, "-")
    assert json.loads(capsys.readouterr().out) == {"a": 1}


def test_json_that_cannot_be_written_leaves_the_old_file_alone(tmp_path: Path) -> None:
    target = tmp_path / "summary.json"
    target.write_text("old")
    with pytest.raises(TypeError, match="no JSON for object"):
        common.emit_json({"a": object()}, target)
    assert target.read_text() == "old"
    with pytest.raises(RunError, match="cannot be written"):
        common.emit_json({}, target / "below-a-file.json")
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", lambda *paths: failing(KeyboardInterrupt())())
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file", "text")
    assert list(tmp_path.iterdir()) == []


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(plain)
def test_plain_values_come_back_equal(value: object) -> None:
    assert json.loads(common.json_text(value)) == value


def test_progress_is_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for quiet in (True, False):
        with common.progress_bar(quiet) as progress:
            progress.advance(progress.add_task("work", total=3))
    common.stderr_console(quiet=True).print("not shown")
    assert capsys.readouterr() == ("", "")
    common.stderr_console().print("shown " + "x" * 300)
    assert capsys.readouterr() == ("", "shown " + "x" * 300 + "\n")


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("torch.nn", "error: this needs torch; pip install 'ecoserve[encoder]'"),
        ("vllm", "error: this needs vllm; pip install 'ecoserve[cuda] or ecoserve[cpu]'"),
    ],
)
def test_a_package_that_is_missing_is_named_with_its_extra(
    package: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def call() -> None:
        raise ModuleNotFoundError(f"No module named {package!r}", name=package)

    assert common.guard(call) == 2
    assert capsys.readouterr().err.strip() == line


def test_extras_that_are_named_exist() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    named = {*common.EXTRA_OF.values(), *doctor.EXTRAS} - {common.EXTRA_OF["vllm"]}
    assert named <= set(project["optional-dependencies"])
