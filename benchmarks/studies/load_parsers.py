"""CPU seconds of JSON parsers on a file of JSON lines, beside those of the whole stream of records.

    python benchmarks/studies/load_parsers.py big.jsonl

Each reads the file once, in this process: the standard library, what ecoserve uses, orjson, msgspec, pyarrow, ijson. A
parser that is not installed, or does not take the file, is listed with the reason.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from ecoserve.data import stream_trace
from ecoserve.data.reading import FileRows


def of_lines(parse: Callable[[bytes], object]) -> Callable[[Path], int]:
    """A reader that parses line by line."""

    def read(path: Path) -> int:
        with path.open("rb") as file:
            return sum(1 for line in file if parse(line) is not None)

    return read


def with_pyarrow(path: Path) -> int:
    """One Arrow type a column."""
    with import_module("pyarrow.json").open_json(path) as batches:
        return sum(len(batch.to_pylist()) for batch in batches)


def with_ijson(path: Path) -> int:
    """Its C library, value by value."""
    with path.open("rb") as file:
        return sum(1 for _ in import_module("ijson").items(file, "", multiple_values=True))


READERS: dict[str, Callable[[Path], int]] = {
    "json, line by line": of_lines(json.loads),
    "ecoserve's reader (json, sliding buffer)": lambda path: sum(1 for _ in FileRows(path)),
    "orjson, line by line": lambda path: of_lines(import_module("orjson").loads)(path),
    "msgspec, line by line": lambda path: of_lines(import_module("msgspec").json.Decoder().decode)(path),
    "pyarrow.json": with_pyarrow,
    "ijson": with_ijson,
    "the whole stream": lambda path: sum(map(len, stream_trace(path).batches())),
}


def main() -> None:
    """Measure every reader once."""
    path = Path(sys.argv[1])
    print(f"| reader | rows | CPU s |\n|---|---|---|\n| file: {path.stat().st_size / 2**20:,.0f} MiB | | |")
    for name, read in READERS.items():
        start = time.process_time()
        try:
            rows = read(path)
        except (ImportError, ValueError) as error:
            print(f"| {name} | - | {error} |")
            continue
        print(f"| {name} | {rows:,} | {time.process_time() - start:.1f} |", flush=True)


if __name__ == "__main__":
    main()
