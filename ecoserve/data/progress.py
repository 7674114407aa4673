"""How far reading a file is, shown on stderr.

Rule: shown to a person only: nothing is written where stderr is no terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

#: Called with the bytes of a file read so far, and with its size in bytes.
Progress = Callable[[int, int], None]
#: A file of fewer bytes is read before anybody wonders.
_WORTH_A_BAR: Final = 1 << 24


@contextmanager
def reading_bar(what: str) -> Iterator[Progress]:
    """A bar with the time left for as long as a file is read; it disappears when that is done.

    Args:
        what: what is done, e.g. ``"reading trace.jsonl"``.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None, visible=False)

        def show(read: int, size: int) -> None:
            bar.update(task, completed=read, total=size, visible=size >= _WORTH_A_BAR)

        yield show
