"""A workload file as the rows of the trace that it makes, so that whatever reads traces reads workloads.

Rule: the rows are those of our own format, and say where their lengths come from.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from ecoserve.data.formats.records import header

_SUFFIXES: Final = (".yaml", ".yml")


def is_workload(source: str | Path) -> bool:
    """Whether ``source`` is a workload file, by its suffix."""
    return str(source).lower().endswith(_SUFFIXES)


def workload_rows(path: str | Path, limit: int | None = None) -> Iterator[dict[str, Any]]:
    """The rows of the workload file ``path``; ``limit``: only its first requests are made.

    Raises:
        TraceError: naming the key that is wrong, or what cannot be made.
    """
    # Traces may be named in it: what makes workloads reads traces.
    from ecoserve.data.workloads import load_workload

    trace = load_workload(path, limit=limit)
    yield header(trace)
    for record in trace.records:
        yield record.as_row()
