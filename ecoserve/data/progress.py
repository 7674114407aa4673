"""A progress bar on stderr for work that may take long.

Rule: shown to a person only: nothing is written where stderr is no terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Iterate over ``items``, showing how far it is; the bar disappears when it is done."""
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(stderr=True)
    return iter(rich_track(items, what, total=total, console=console, transient=True, disable=not console.is_terminal))
