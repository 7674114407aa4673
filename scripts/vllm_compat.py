"""What another version of vLLM breaks, without installing it: its Python code laid over this environment, in a folder.

    python scripts/vllm_compat.py 0.33.0 [--with PACKAGE ...] [--compiled] [TESTS ...]

Fetches the wheel of that version (some 340 MB), or takes a folder with an unpacked wheel or a wheel instead. On it run
the contract and the tests that need no kernel: adapter, core, front, virtual time. Printed are the files that we import
and that differ from the installed version's, the names that have moved, and the tests that fail with their reasons.
A package that the new version wants and this environment lacks is said; ``--with`` lays it over, too. The wheel's
compiled parts are left out. With ``--compiled`` those of the installed version take their place, and tests of engines
and servers run as well: vLLM promises nothing of the kind, so what fails then may fail for that. Exit code 0 if nothing
breaks, 1 if something does, 2 if there is no such version.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from email.parser import HeaderParser
from importlib import metadata, util
from pathlib import Path
from xml.etree import ElementTree

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
#: Tests that touch vLLM and need no kernel.
TESTS = ("tests/serving",)
#: vLLM's wheels are made for one Python and any later one.
WHEEL = ("--python-version", "3.12", "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_31_x86_64")

#: Left out of a wheel.
COMPILED = (".so", ".cu", ".cuh", ".h", ".hpp", "vllm-rs")

CONTRACT = """
import json
from ecoserve.serving.adapter import contract
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
version = contract.vllm_version()
modules = {p.partition(":")[0] for n in contract.needs() for p in n.place.split("|")}
modules |= {base.__module__ for base in AsyncScheduler.__mro__ if base.__module__.startswith("vllm")}
print(json.dumps({"version": version, "known": contract.full_knows(version), "broken": contract.check(),
                  "modules": sorted(modules)}))
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("vllm", help="a version; or a wheel, or a folder with an unpacked one")
    parser.add_argument("tests", nargs="*", default=list(TESTS), help="as pytest takes them; default tests/serving")
    parser.add_argument(
        "--with", dest="packages", action="append", default=[], metavar="PACKAGE", help="laid over, too"
    )
    parser.add_argument("--compiled", action="store_true", help="run engines too, on the installed compiled parts")
    parser.add_argument("--scratch", type=Path, help="folder to work in, and to keep; default a temporary one")
    given = parser.parse_intermixed_args(arguments)
    sys.stdout.reconfigure(line_buffering=True)
    with tempfile.TemporaryDirectory(prefix="vllm-compat-") as temporary:
        scratch: Path = (given.scratch or Path(temporary)).resolve()
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            overlay = unpacked(given.vllm, scratch)
            if given.compiled:
                overlay = with_compiled(overlay, scratch / "compiled")
            if given.packages:
                pip("install", "--no-deps", "--upgrade", "--target", str(scratch / "with"), *given.packages)
        except FileNotFoundError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return compare(overlay, scratch, given.tests, "" if given.compiled else "not engine and not server")


def unpacked(source: str, scratch: Path) -> Path:
    """The folder with the Python part of a wheel: of a version that is fetched, a wheel, or a folder as it is.

    Raises:
        FileNotFoundError: if there is none.
    """
    path = Path(source)
    if path.is_dir():
        if not (path / "vllm" / "__init__.py").is_file():
            raise FileNotFoundError(f"{source}: has no vllm/__init__.py, so it is no unpacked wheel of vLLM")
        return path.resolve()
    if not path.is_file():
        if not re.fullmatch(r"\d+(\.\w+)+", source):
            raise FileNotFoundError(
                f"{source}: neither a version of vLLM nor a file or folder; a version is like 0.33.0"
            )
        print(f"fetching vllm {source}", file=sys.stderr)
        pip("download", "--no-deps", "--only-binary=:all:", *WHEEL, "--dest", str(scratch), f"vllm=={source}")
        (path,) = scratch.glob(f"vllm-{source}-*.whl")
    overlay = scratch / "overlay"
    with zipfile.ZipFile(path) as wheel:
        wheel.extractall(overlay, [n for n in wheel.namelist() if not n.endswith(COMPILED)])
    return overlay


def with_compiled(overlay: Path, target: Path) -> Path:
    """A copy of vLLM in ``overlay`` that has the installed version's compiled parts."""
    ignored = shutil.ignore_patterns(*(f"*{end}" for end in COMPILED))
    for folder in (overlay / "vllm", *overlay.glob("vllm*.dist-info")):
        shutil.copytree(folder, target / folder.name, dirs_exist_ok=True, ignore=ignored)
    for part in installed().glob("vllm/*.so"):
        shutil.copy(part, target / "vllm")
    return target


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise FileNotFoundError(f"pip cannot get {arguments[-1]}: {last[0] if last else 'it says nothing'}")


def compare(overlay: Path, scratch: Path, tests: list[str], marks: str) -> int:
    """Contract and tests on the overlay; prints what moved and returns the exit code."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(overlay), str(scratch / "with"), str(ROOT)]),
        "PYTHONPYCACHEPREFIX": str(scratch / "bytecode"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(scratch / "hypothesis"),
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_LOGGING_LEVEL": "ERROR",
    }
    print(f"lacking here: {'; '.join(unmet(overlay)) or 'nothing'}")
    run = [sys.executable, "-c", CONTRACT]
    done = subprocess.run(run, env=environment, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"the contract cannot be checked: {(done.stderr.splitlines() or ['no output'])[-1]}")
        return 1
    found = json.loads(done.stdout.splitlines()[-1])
    for line in changed(overlay, found["modules"]):
        print(f"differs: {line}")
    for line in found["broken"]:
        print(f"moved: {line}")
    report = scratch / "tests.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-m", marks, "-p", "no:cacheprovider"]
    command += [f"--basetemp={scratch / 'tests'}", f"--junitxml={report}", *tests]
    code = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode
    if not report.is_file():
        print(f"pytest ended with {code} and no report; is {' '.join(tests)} there?")
        return 1
    passed, failures = outcome(report)
    for reason, names in sorted(failures.items(), key=lambda item: -len(item[1])):
        print(f"failed, {len(names)} x {reason}")
        print("".join(f"    {name}\n" for name in names), end="")
    failed = sum(map(len, failures.values()))
    print(f"vLLM {found['version']}: {len(found['broken'])} names moved, {passed} tests passed, {failed} failed")
    if found["broken"] or failed or not passed:
        return 1
    if not found["known"]:
        print("level full does not know this version: widen FULL (adapter/contract.py) and pyproject.toml")
    return 0


def unmet(overlay: Path) -> list[str]:
    """Packages that the wheel wants for this Python and that are not installed, and versions that do not fit."""
    out = []
    for info in overlay.glob("vllm*.dist-info/METADATA"):
        for line in HeaderParser().parsestr(info.read_text()).get_all("Requires-Dist", []):
            wanted = Requirement(line)
            if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
                have = next((d.version for d in metadata.distributions(name=wanted.name)), None)
                if have is None or not wanted.specifier.contains(have, prereleases=True):
                    out.append(f"{wanted.name}{wanted.specifier}" + (f", there is {have}" if have else ""))
    return out


def changed(overlay: Path, modules: list[str]) -> list[str]:
    """Files of the modules that we import which differ from the installed ones: lines added and removed."""
    own = installed()
    out = []
    for module in modules:
        name = module.replace(".", "/")
        path = next((p for p in (f"{name}.py", f"{name}/__init__.py") if (own / p).is_file()), None)
        if path is None:
            continue
        command = ["git", "diff", "--no-index", "--numstat", str(own / path), str(overlay / path)]
        stat = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
        if stat:
            out.append(f"{path} +{stat[0]} -{stat[1]}")
        elif not (overlay / path).is_file():
            out.append(f"{path} is gone")
    return out


def installed() -> Path:
    """The folder that the installed vLLM is in."""
    spec = util.find_spec("vllm")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("no vLLM is installed; run `make setup`")
    return Path(spec.origin).parent.parent


def outcome(report: Path) -> tuple[int, dict[str, list[str]]]:
    """Number of tests that passed, and reason -> those that failed, of pytest's report."""
    passed, failures = 0, defaultdict(list)
    for case in ElementTree.parse(report).iter("testcase"):
        bad = next((case.find(kind) for kind in ("failure", "error") if case.find(kind) is not None), None)
        if bad is not None:
            reason = (bad.get("message") or "").splitlines() or ["no reason"]
            failures[reason[0][:200]].append(f"{case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is None:
            passed += 1
    return passed, dict(failures)


if __name__ == "__main__":
    sys.exit(main())
