"""What set-up decides: which Python, which build, which pins, what the system lacks. Plain values in, plain values out.

scripts/setup_env.py does what this says. Standard library only, any Python 3 from 3.7 on.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Mapping

OLDEST, NEWEST = (3, 11), (3, 13)
#: the version that most was tested with comes first
PYTHONS = ("python3.11", "python3.12", "python3.13", "python3")
#: libraries of the system that wheels load and do not carry, and Debian's packages of them
LIBRARIES = {
    "cpu": {"libnuma.so.1": "libnuma1", "libgomp.so.1": "libgomp1"},  # vLLM's CPU kernels; LightGBM
    "cuda": {"libgomp.so.1": "libgomp1"},
}


class SetupError(Exception):
    """Set-up cannot go on; its text is the one line that the user sees."""


class MissingSystemPackages(SetupError):
    """Debian packages are missing that only the system's administrator can install."""

    def __init__(self, what: str, packages: list[str]) -> None:
        self.packages = packages
        super().__init__(f"{what}; Debian and Ubuntu: apt-get install {' '.join(packages)}")


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
        name = f"python{dotted(lacking)}"
        raise MissingSystemPackages(f"{name} lacks its venv module", [f"{name}-venv"])
    raise SetupError(
        f"needs Python {dotted(OLDEST)} to {dotted(NEWEST)} ({', '.join(seen) or 'found none'}); Debian and Ubuntu: "
        "apt-get install python3 python3-venv; or name one in ECOSERVE_PYTHON"
    )


def dotted(version: tuple[int, int]) -> str:
    """``(3, 11)`` as ``3.11``."""
    return ".".join(map(str, version))


def check_libraries(accelerator: str, load: Callable[[str], object] = ctypes.CDLL) -> None:
    """See that the system's libraries are there, before minutes are spent on packages that will not load."""
    absent = []
    for library in LIBRARIES[accelerator]:
        try:
            load(library)
        except OSError:
            absent.append(library)
    if absent:
        raise MissingSystemPackages(
            f"the system lacks {' and '.join(absent)}", [LIBRARIES[accelerator][name] for name in absent]
        )
