"""Set-up's decisions: what is chosen, what is missing, when it is done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import setup_env
import setup_plan

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "setup_env.py"


def never() -> bool:
    raise AssertionError("the GPU was asked although the answer was given")


@pytest.mark.parametrize(("wish", "expected"), [("cpu", "cpu"), ("cuda", "cuda"), (" CUDA ", "cuda")])
def test_the_override_decides_without_asking_the_gpu(wish: str, expected: str) -> None:
    assert setup_plan.choose_accelerator({"ECOSERVE_ACCELERATOR": wish}, never) == expected


@pytest.mark.parametrize(("answers", "expected"), [(True, "cuda"), (False, "cpu")])
def test_without_override_the_gpu_decides(answers: bool, expected: str) -> None:
    for environ in ({}, {"ECOSERVE_ACCELERATOR": ""}):
        assert setup_plan.choose_accelerator(environ, lambda: answers) == expected


def test_an_unknown_accelerator_is_refused() -> None:
    with pytest.raises(setup_plan.SetupError, match="'rocm'; it may be cpu or cuda"):
        setup_plan.choose_accelerator({"ECOSERVE_ACCELERATOR": "rocm"}, never)


def test_a_gpu_answers_only_if_nvidia_smi_names_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not setup_env.gpu_answers()
    tool = tmp_path / "nvidia-smi"
    for script, expected in (("echo 'GPU 0: a card'", True), ("echo 'no devices'", False), ("echo GPU; exit 9", False)):
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        assert setup_env.gpu_answers() is expected


def test_a_lock_is_read_with_its_markers() -> None:
    text = """
    # a comment
    Plain_Name==1.0   # and another
    torch==2.13.0+cpu
    new==2 ; python_version >= "3.12"
    old==3 ; python_version < "3.12"
    intel==4 ; platform_machine == "x86_64"
    """
    common = {"plain-name": "1.0", "torch": "2.13.0+cpu"}
    assert setup_plan.read_lock(text, (3, 11), "x86_64") == {**common, "old": "3", "intel": "4"}
    assert setup_plan.read_lock(text, (3, 12), "aarch64") == {**common, "new": "2"}


@pytest.mark.parametrize("line", ["name>=1", "name", "name==1 ; sys_platform == 'linux'", "-r other.lock"])
def test_a_lock_line_that_is_no_pin_is_refused(line: str) -> None:
    with pytest.raises(setup_plan.SetupError, match="requirements: "):
        setup_plan.read_lock(line, (3, 11), "x86_64")


def test_only_what_is_missing_is_installed() -> None:
    pins = {"b": "2", "a": "1", "c": "3"}
    assert setup_plan.missing_pins(pins, {"a": "1", "b": "1.9", "other": "0"}) == ["b==2", "c==3"]
    assert setup_plan.missing_pins(pins, pins) == []


def test_what_an_interrupted_pip_left_does_not_count_as_installed(tmp_path: Path) -> None:
    for name, whole in (("whole_one-1.0", True), ("half-2.0", False)):
        folder = tmp_path / f"{name}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Name: x\n")
        if whole:
            (folder / "RECORD").write_text("")
    (tmp_path / "~umpy").mkdir()
    (tmp_path / "package").mkdir()
    assert setup_env.installed_versions(tmp_path) == {"whole-one": "1.0"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["package", "whole_one-1.0.dist-info"]


def test_the_first_complete_python_is_taken() -> None:
    there = {"python3.12": ((3, 12), False), "python3.13": ((3, 13), True), "python3": ((3, 9), True)}
    assert setup_plan.choose_python(there.get) == ("python3.13", (3, 13))
    assert setup_plan.choose_python({"mine": ((3, 12), True)}.get, "mine") == ("mine", (3, 12))


@pytest.mark.parametrize(
    ("there", "line"),
    [
        ({}, "needs Python 3.11 to 3.13 (found none); Debian and Ubuntu: apt-get install python3 python3-venv; "),
        ({"python3": ((3, 14), True)}, "needs Python 3.11 to 3.13 (python3 is 3.14)"),
        (
            {"python3": ((3, 12), False)},
            "python3.12 lacks its venv module; Debian and Ubuntu: apt-get install python3.12-venv",
        ),
    ],
)
def test_no_usable_python_is_said_with_the_way_out(there: dict, line: str) -> None:
    with pytest.raises(setup_plan.SetupError) as caught:
        setup_plan.choose_python(there.get)
    assert str(caught.value).startswith(line)


def test_missing_libraries_are_named_with_their_packages() -> None:
    def load(name: str) -> None:
        if name != "libgomp.so.1":
            raise OSError(name)

    setup_plan.check_libraries("cuda", load)
    with pytest.raises(setup_plan.MissingSystemPackages) as caught:
        setup_plan.check_libraries("cpu", load)
    assert str(caught.value) == "the system lacks libnuma.so.1; Debian and Ubuntu: apt-get install libnuma1"


def test_root_gets_system_packages_and_others_get_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "calls"
    tool = tmp_path / "apt-get"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    def need() -> str:
        if not log.exists():
            raise setup_plan.MissingSystemPackages("it lacks x", ["libx1"])
        return "there"

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(setup_plan.MissingSystemPackages, match="apt-get install libx1"):
        setup_env.with_system_packages(need)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert setup_env.with_system_packages(need) == "there"
    assert log.read_text().splitlines() == ["-qq update", "-qq install --yes --no-install-recommends libx1"]
    assert capsys.readouterr().out == "setup: apt-get install libx1\n"
    log.unlink()
    tool.write_text("#!/bin/sh\nexit 100\n")
    with pytest.raises(setup_plan.MissingSystemPackages):
        setup_env.with_system_packages(need)


def test_this_python_is_recognised_and_others_are_not(tmp_path: Path) -> None:
    assert setup_env.probe_python(sys.executable) == (sys.version_info[:2], True)
    assert setup_env.probe_python("no-such-python") is None
    shim = tmp_path / "python3.13"  # a version manager's shim: it is there, and fails
    shim.write_text("#!/bin/sh\necho 'not installed' >&2\nexit 127\n")
    shim.chmod(0o755)
    assert setup_env.probe_python(str(shim)) is None


def test_the_fallback_asks_uv_for_the_cpu_build_by_name_and_no_address_is_written() -> None:
    command = setup_env.torch_fallback("2.13.0+cpu")
    assert command[1:5] == ["-m", "uv", "pip", "install"]
    assert command[-3:] == ["--no-deps", "--torch-backend=cpu", "torch==2.13.0"]
    assert "http" not in SCRIPT.read_text()


def test_torch_is_asked_of_pip_first_and_of_its_own_index_second(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ran: list[str] = []

    def logged(results: list[bool]):
        def run(command: list[str], packages: int = 0) -> bool:
            ran.append(" ".join(command[3:]))
            return results.pop(0)

        return run

    monkeypatch.setattr(setup_env, "logged", logged([True]))
    setup_env.install_torch("2.13.0+cpu")
    assert len(ran) == 1
    assert ran.pop().endswith("--no-deps torch==2.13.0+cpu")
    assert capsys.readouterr().out == ""

    monkeypatch.setattr(setup_env, "logged", logged([False, True, True]))
    setup_env.install_torch("2.13.0+cpu")
    assert ["--torch-backend=cpu" in line for line in ran] == [False, False, True]
    assert "asking PyTorch's own CPU index" in capsys.readouterr().out

    log = tmp_path / "setup.log"
    log.write_text("WARNING: noise\nERROR: the reason\n")
    monkeypatch.setattr(setup_env, "LOG", log)
    monkeypatch.setattr(setup_env, "ROOT", tmp_path)
    monkeypatch.setattr(setup_env, "logged", logged([False, True, False]))
    with pytest.raises(setup_plan.SetupError, match=r"no CPU build of torch 2\.13\.0\+cpu.*PIP_FIND_LINKS"):
        setup_env.install_torch("2.13.0+cpu")
    shown = capsys.readouterr().err
    assert "the reason" in shown
    assert "noise" not in shown


def test_the_stamp_follows_whatever_decides_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_env, "VENV_PYTHON", Path(sys.executable))
    lock, project = tmp_path / "cpu.lock", tmp_path / "pyproject.toml"
    lock.write_text("a==1\n")
    project.write_text("[project]\n")
    monkeypatch.setattr(setup_env, "decisive_files", lambda accelerator: [lock, project])
    stamp = {"fingerprint": setup_env.fingerprint("cpu", [lock, project]), "accelerator": "cpu"}
    assert setup_env.up_to_date(stamp, "cpu")
    assert not setup_env.up_to_date(stamp, "cuda")
    assert not setup_env.up_to_date({}, "cpu")
    lock.write_text("a==2\n")
    assert not setup_env.up_to_date(stamp, "cpu")
    lock.write_text("a==1\n")
    assert setup_env.up_to_date(stamp, "cpu")
    monkeypatch.setattr(setup_env, "VENV_PYTHON", tmp_path / "gone")
    assert not setup_env.up_to_date(stamp, "cpu")


@pytest.mark.parametrize("content", ["", "{", "[1]", "3"])
def test_a_damaged_stamp_means_unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    monkeypatch.setattr(setup_env, "STAMP", tmp_path / "stamp.json")
    (tmp_path / "stamp.json").write_text(content)
    assert setup_env.read_stamp() == {}


def test_a_folder_that_is_no_environment_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv = tmp_path / ".venv"
    venv.mkdir()
    (venv / "precious").write_text("x")
    monkeypatch.setattr(setup_env, "VENV", venv)
    monkeypatch.setattr(setup_env, "VENV_PYTHON", venv / "bin" / "python")
    with pytest.raises(setup_plan.SetupError, match="is no virtual environment; move it away"):
        setup_env.make_venv("cpu")
    assert (venv / "precious").read_text() == "x"


@pytest.mark.parametrize(("accelerator", "build"), [("cpu", "torch==2.13.0+cpu"), ("cuda", "requirements/cuda.lock")])
def test_a_dry_run_prints_the_plan_and_touches_nothing(accelerator: str, build: str) -> None:
    environ = {**os.environ, "ECOSERVE_ACCELERATOR": accelerator, "ECOSERVE_PYTHON": sys.executable}
    answer = subprocess.run([sys.executable, str(SCRIPT), "--dry-run"], capture_output=True, text=True, env=environ)
    assert (answer.returncode, answer.stderr) == (0, "")
    lines = answer.stdout.splitlines()
    assert " -m venv " in lines[0]
    assert any(build in line for line in lines)
    assert ("--torch-backend=cpu" in answer.stdout) == (accelerator == "cpu")


def test_an_error_is_one_line() -> None:
    environ = {**os.environ, "ECOSERVE_ACCELERATOR": "abacus"}
    answer = subprocess.run([sys.executable, str(SCRIPT), "--dry-run"], capture_output=True, text=True, env=environ)
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == "error: ECOSERVE_ACCELERATOR is 'abacus'; it may be cpu or cuda\n"
