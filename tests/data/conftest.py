"""Small trace files, made on the spot."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write rows to ``name`` as its suffixes say (.json list, .jsonl lines, each also .gz, .parquet)."""

    def to_file(rows: list[Any], name: str = "trace.json") -> Path:
        path = tmp_path / name
        if name.endswith(".parquet"):
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.Table.from_pylist(rows), path)
            return path
        lines = ".jsonl" in name
        text = "".join(json.dumps(r) + "\n" for r in rows) if lines else json.dumps(rows)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return to_file


def alpaca(n: int, **more: Any) -> list[dict[str, Any]]:
    """``n`` Alpaca rows that are all different."""
    return [
        {"instruction": f"Say number {i}", "input": "", "output": f"This is number {i}, as you asked.", **more}
        for i in range(n)
    ]


def talk(name: str, *turns: tuple[str, Any]) -> dict[str, Any]:
    """A ShareGPT row of (from, value) turns."""
    return {"id": name, "conversations": [{"from": who, "value": what} for who, what in turns]}
