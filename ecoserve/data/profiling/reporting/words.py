"""Names and numbers of a profile as people read them, on the page and in the terminal."""

from __future__ import annotations

from typing import Final

from ecoserve.data.profiling.model import Grouping
from ecoserve.data.profiling.tails import law_name
from ecoserve.pages import NOTHING, Cell, write

#: What a grouping is called.
GROUPING_TITLES: Final = {
    "turn": "Turn of the conversation",
    "prompt_band": "Prompt length (tokens)",
    "model": "Served model",
    "language": "Language of the prompt",
    "split": "Split",
}
_DASHES: Final = ("solid", "dash", "dot", "longdashdot", "longdash", "dashdot")


def grouping_title(grouping: Grouping) -> str:
    """A grouping's title, with how much it explains."""
    title = GROUPING_TITLES[grouping.by]
    if grouping.explains is None:
        return title
    return f"{title}: explains {write(grouping.explains, 'share')}"


def law_title(name: str, parameters: dict[str, float]) -> str:
    """A law with its parameters: ``Weibull (scale 341, shape 1.31)``."""
    return f"{law_name(name)} ({', '.join(f'{key} {value:.3g}' for key, value in parameters.items())})"


def dash(number: int) -> str:
    """The dash of the ``number``-th line of a plot."""
    return _DASHES[number % len(_DASHES)]


def number(value: float | None, unit: str = "") -> Cell:
    """A number as a cell; nothing where it is not known."""
    if value is None:
        return Cell(NOTHING)
    if isinstance(value, int):
        return Cell(f"{value:,}", raw=value)
    return Cell(write(value, unit), raw=value)


def decimal(value: float, places: int = 2) -> str:
    """A number that may be negative, with so many decimals."""
    return f"{value:.{places}f}".replace("-", "−")


def between(low: float | None, high: float | None, unit: str = "") -> str:
    """An interval: ``76.1 % to 78.9 %``; empty where it is not known."""
    if low is None or high is None:
        return ""
    return f"{number(low, unit).text} to {number(high, unit).text}"
