"""Checking another vLLM: what is unpacked, what is said of it, exit codes. No wheel is fetched, no test of ours run."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
import vllm_compat as script

REPORT = """<testsuites><testsuite>
<testcase classname="a.b" name="good"/><testcase classname="a.b" name="left_out"><skipped/></testcase>
{failed}</testsuite></testsuites>"""
FAILED = '<testcase classname="a.b" name="{name}"><failure message="AttributeError: x&#10;more"/></testcase>'


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "vllm-9.0.0-cp38-abi3-linux.whl"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("vllm/__init__.py", "")
        made.writestr("vllm/_C.abi3.so", "compiled")
        made.writestr("vllm-9.0.0.dist-info/METADATA", "Requires-Dist: numpy>=1\nRequires-Dist: no-such-package>2\n\n")
    return path


def test_the_python_part_is_unpacked_and_what_it_lacks_here_is_said(wheel: Path, tmp_path: Path) -> None:
    overlay = script.unpacked(str(wheel), tmp_path / "scratch")
    assert {p.name for p in overlay.rglob("*") if p.is_file()} == {"__init__.py", "METADATA"}
    assert script.unpacked(str(overlay), tmp_path) == overlay
    assert script.unmet(overlay) == ["no-such-package>2"]


def test_compiled_parts_are_the_installed_ones(monkeypatch: pytest.MonkeyPatch, wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "own/vllm").mkdir(parents=True)
    (tmp_path / "own/vllm/_C_cpu.so").write_text("ours")
    monkeypatch.setattr(script, "installed", lambda: tmp_path / "own")
    target = script.with_compiled(script.unpacked(str(wheel), tmp_path / "scratch"), tmp_path / "compiled")
    assert {p.name for p in (target / "vllm").iterdir()} == {"__init__.py", "_C_cpu.so"}


@pytest.mark.parametrize("source", ["latest", "0", "no/folder", "{tmp}"])
def test_no_such_vllm_is_one_line_and_exit_code_2(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([source.format(tmp=tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {source.format(tmp=tmp_path)}: ")


@pytest.mark.parametrize(
    ("broken", "failed", "code", "said"),
    [
        ([], [], 0, "vLLM 9.0.0: 0 names moved, 1 tests passed, 0 failed"),
        (["vllm.X is gone (used in a.py:1)"], [], 1, "moved: vllm.X is gone (used in a.py:1)"),
        ([], ["one", "two"], 1, "failed, 2 x AttributeError: x\n    a.b::one\n    a.b::two\n"),
    ],
)
def test_what_moved_is_printed_and_is_the_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wheel: Path,
    tmp_path: Path,
    broken: list[str],
    failed: list[str],
    code: int,
    said: str,
) -> None:
    seen: list[dict[str, str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        seen.append(options.get("env", {}))
        report = next((Path(word.partition("=")[2]) for word in command if word.startswith("--junitxml=")), None)
        if report is not None:
            report.write_text(REPORT.format(failed="".join(FAILED.format(name=n) for n in failed)))
        found = {"version": "9.0.0", "known": False, "broken": broken, "modules": []}
        return subprocess.CompletedProcess(command, 0, json.dumps(found), "")

    monkeypatch.setattr(script.subprocess, "run", run)
    assert script.main([str(wheel), "--scratch", str(tmp_path / "scratch"), "tests/some.py"]) == code
    printed = capsys.readouterr().out
    assert said in printed
    assert ("level full does not know this version" in printed) == (code == 0)
    assert all(e["PYTHONPATH"].startswith(f"{tmp_path}/scratch/overlay:") for e in seen)
