"""The parts of a page other than tables and figures: the first screen, and sections."""

from __future__ import annotations

from dataclasses import dataclass, field

from ecoserve.pages.figures import Figure
from ecoserve.pages.tables import Table, Tone

__all__ = ["Answer", "Section", "Statement", "Tile", "Tone"]


@dataclass(frozen=True, slots=True)
class Statement:
    """One thing to know: what it is about, and the sentences."""

    heading: str
    text: str
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure that can be read at a glance."""

    value: str
    label: str
    beneath: str = ""
    tone: Tone = ""


@dataclass(slots=True)
class Answer:
    """What the first screen says."""

    headline: str
    tiles: list[Tile] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: its anchor, title, and one sentence on what it shows; then tables, figures, or both."""

    id: str
    title: str
    text: str
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    #: what is said on the first screen if there is neither
    missing: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return not self.tables and not self.figures
