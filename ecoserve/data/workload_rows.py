"""A workload file as the rows of the trace that it makes, so that whatever reads traces reads workloads.

Rule: the rows are those of our own format, and say where their lengths come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from ecoserve.data.formats.records import header
from ecoserve.data.records import LoadReport, Record, Trace

_SUFFIXES: Final = (".yaml", ".yml")
#: From so many requests on, it shows how far it is.
_MANY: Final = 20_000


def is_workload(source: str | Path) -> bool:
    """Whether ``source`` is a workload file, by its suffix."""
    return str(source).lower().endswith(_SUFFIXES)


def workload_rows(path: str | Path, limit: int | None = None, *, shown: bool = False) -> Iterator[dict[str, Any]]:
    """The rows of the workload file ``path``, made as they are asked for.

    Args:
        path: the file.
        limit: make only so many of its requests, the first ones.
        shown: show a bar on stderr, if that is a terminal and there are many.

    Raises:
        TraceError: naming the key that is wrong, or what cannot be made.
    """
    # Traces may be named in it: what makes workloads reads traces.
    from ecoserve.data.workloads.making import FORMAT, making
    from ecoserve.data.workloads.reading import read_workload

    made = making(read_workload(path), base=Path(path).resolve().parent, where=str(path), limit=limit)
    # The first line of such a trace; what the records hash to is known only behind the last one.
    nothing = Trace((), str(path), FORMAT, "", made.length_source, LoadReport(), made.prompt_length_source)
    yield header(nothing)
    for record in _shown(made.records, made.n) if shown and made.n >= _MANY else made.records:
        yield record.as_row()


def _shown(records: Iterator[Record], n: int) -> Iterable[Record]:
    """``records``, with a bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(records, "making requests", total=n, console=console, transient=True, disable=not console.is_terminal)
