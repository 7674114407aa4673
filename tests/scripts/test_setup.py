"""Set-up's decisions, by its dry run and with stand-ins for the programs that it asks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "setup.sh"


def program(folder: Path, name: str, body: str) -> None:
    """Put a shell script of that name first on the path."""
    (folder / name).write_text(f"#!/bin/sh\n{body}\n")
    (folder / name).chmod(0o755)


def setup(checkout: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the script in a copy of the checkout in which no environment has been made."""
    (checkout / "scripts").mkdir(exist_ok=True)
    (checkout / "scripts" / "setup.sh").write_bytes(SCRIPT.read_bytes())
    (checkout / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    if not (checkout / "requirements").exists():
        (checkout / "requirements").symlink_to(ROOT / "requirements")
    (checkout / "bin").mkdir(exist_ok=True)
    environ = {k: v for k, v in os.environ.items() if not k.startswith("ECOSERVE_")}
    environ |= {"PATH": f"{checkout / 'bin'}:{os.environ['PATH']}", **variables}
    command = ["bash", str(checkout / "scripts" / "setup.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environ, stdin=subprocess.DEVNULL)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with stand-ins on its path: a Python 3.12 that is complete, and no GPU."""
    (tmp_path / "bin").mkdir()
    for name in ("python3.11", "python3.13", "python3"):
        program(tmp_path / "bin", name, "exit 127")
    program(tmp_path / "bin", "python3.12", 'case "$2" in *version_info*) echo 12;; esac')
    program(tmp_path / "bin", "nvidia-smi", "exit 9")
    return tmp_path


@pytest.mark.parametrize(
    ("wish", "gpu", "lock"),
    [
        ("cpu", "echo 'GPU 0: a card'", "cpu"),
        (" CUDA ", "exit 9", "cuda"),
        ("", "echo 'GPU 0: a card'", "cuda"),
        ("", "echo 'no devices'", "cpu"),
    ],
)
def test_the_wish_decides_else_the_gpu(checkout: Path, wish: str, gpu: str, lock: str) -> None:
    program(checkout / "bin", "nvidia-smi", gpu)
    answer = setup(checkout, "--dry-run", ECOSERVE_ACCELERATOR=wish)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert f"requirements/{lock}.lock" in answer.stdout
    assert ("--torch-backend=cpu" in answer.stdout) == (lock == "cpu")
    assert not (checkout / ".venv").exists()


def test_torch_is_asked_of_pip_first_and_of_its_own_index_second_and_no_address_is_written(checkout: Path) -> None:
    lines = setup(checkout, "--dry-run", ECOSERVE_ACCELERATOR="cpu").stdout.splitlines()
    torch = [line for line in lines if "torch==" in line]
    assert torch[0].endswith("-m pip install --no-input --disable-pip-version-check --no-deps torch==2.13.0+cpu ||")
    assert torch[1].endswith("--no-deps --torch-backend=cpu torch==2.13.0")
    assert "http" not in SCRIPT.read_text()


def test_an_unknown_accelerator_is_one_line(checkout: Path) -> None:
    answer = setup(checkout, ECOSERVE_ACCELERATOR="rocm")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert answer.stderr == "error: ECOSERVE_ACCELERATOR is 'rocm'; it may be cpu or cuda\n"


@pytest.mark.parametrize(
    ("version", "line"),
    [
        ("exit 127", "needs Python 3.11 to 3.13 (found none); Debian and Ubuntu: apt-get install python3 python3-venv"),
        ("echo 14", "needs Python 3.11 to 3.13 (python3.12 is 3.14)"),
        (
            'case "$2" in *ensurepip*) exit 1;; *) echo 12;; esac',
            "python3.12 lacks its venv module; Debian and Ubuntu: apt-get install python3.12-venv",
        ),
    ],
)
def test_no_usable_python_is_said_with_the_way_out(checkout: Path, version: str, line: str) -> None:
    program(checkout / "bin", "python3.12", version)
    answer = setup(checkout, "--dry-run", ECOSERVE_ACCELERATOR="cpu")
    assert answer.returncode == 1
    assert answer.stderr.startswith(f"error: {line}")


def test_the_python_that_is_named_is_taken(checkout: Path) -> None:
    program(checkout / "bin", "mine", "echo 13")
    answer = setup(checkout, "--dry-run", ECOSERVE_ACCELERATOR="cpu", ECOSERVE_PYTHON="mine")
    assert "mine -m venv .venv" in answer.stdout.splitlines()


def test_missing_libraries_are_named_with_their_packages(checkout: Path) -> None:
    program(checkout / "bin", "ldconfig", "echo libgomp.so.1")
    program(checkout / "bin", "id", "echo 1000")
    answer = setup(checkout, ECOSERVE_ACCELERATOR="cpu")
    assert answer.stderr == "error: the system lacks libnuma.so.1; Debian and Ubuntu: apt-get install libnuma1\n"


def test_root_gets_system_packages(checkout: Path) -> None:
    program(checkout / "bin", "ldconfig", "echo libgomp.so.1")
    program(checkout / "bin", "id", "echo 0")
    program(checkout / "bin", "apt-get", f'echo "$@" >> {checkout}/calls')
    program(checkout / "bin", "python3.12", "exit 127")
    answer = setup(checkout, ECOSERVE_ACCELERATOR="cpu")
    assert "setup: apt-get install libnuma1" in answer.stdout
    calls = (checkout / "calls").read_text().splitlines()
    assert calls == ["-qq update", "-qq install --yes --no-install-recommends libnuma1"]
    assert "found none" in answer.stderr


def test_a_folder_that_is_no_environment_is_left_alone(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "precious").write_text("x")
    program(checkout / "bin", "ldconfig", "echo libgomp.so.1 libnuma.so.1")
    answer = setup(checkout, ECOSERVE_ACCELERATOR="cpu")
    assert answer.stderr == "error: .venv is there but is no virtual environment; move it away\n"
    assert (checkout / ".venv" / "precious").read_text() == "x"


def test_what_decides_what_is_installed_is_in_the_stamp(checkout: Path) -> None:
    bin_ = checkout / ".venv" / "bin"
    bin_.mkdir(parents=True)
    (checkout / ".venv" / "pyvenv.cfg").touch()
    program(checkout / "bin", "ldconfig", "echo libgomp.so.1 libnuma.so.1")
    program(bin_, "python", 'case "$2" in *version_info*) echo 12;; esac')  # every installation succeeds
    program(bin_, "ecoserve", f"echo checked >> {checkout}/calls")
    half = checkout / ".venv" / "lib" / "half-1.0.dist-info"
    half.mkdir(parents=True)

    def is_fresh() -> bool:
        answer = setup(checkout, ECOSERVE_ACCELERATOR="cpu")
        assert answer.returncode == 0, answer.stderr
        return "up to date" in answer.stdout

    assert [is_fresh(), is_fresh()] == [False, True]
    assert not half.exists(), "what an interrupted installer left counts as installed"
    locks = checkout / "requirements"
    locks.unlink()
    locks.mkdir()
    (locks / "cpu.lock").write_text("torch==2.13.0+cpu\n")
    assert [is_fresh(), is_fresh()] == [False, True]
    (bin_ / "python").chmod(0o644)
    program(checkout / "bin", "python3.12", 'case "$2" in *version_info*) echo 12;; *) exit 5;; esac')
    assert setup(checkout, ECOSERVE_ACCELERATOR="cpu").returncode == 1


def test_a_failed_step_shows_the_end_of_the_log_without_warnings(checkout: Path) -> None:
    bin_ = checkout / ".venv" / "bin"
    bin_.mkdir(parents=True)
    (checkout / ".venv" / "pyvenv.cfg").touch()
    (checkout / ".venv" / "lib").mkdir()
    program(checkout / "bin", "ldconfig", "echo libgomp.so.1 libnuma.so.1")
    body = (
        'case "$*" in *version_info*) echo 12;; *"pip sync"*) echo WARNING noise; echo ERROR the reason; exit 3;; esac'
    )
    program(bin_, "python", body)
    answer = setup(checkout, ECOSERVE_ACCELERATOR="cpu")
    assert answer.returncode == 1
    assert "ERROR the reason" in answer.stderr
    assert "noise" not in answer.stderr
    assert answer.stderr.splitlines()[-1].startswith("error: uv could not install the packages; the whole log is ")
    assert not (checkout / ".venv" / "ecoserve-setup").exists()
