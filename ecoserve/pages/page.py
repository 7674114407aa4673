"""A report as one HTML file that opens offline: style, script, Plotly and data are inline, requests are forbidden."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

from ecoserve.pages.plots import Figure
from ecoserve.pages.tables import Table, Tone

TEMPLATES: Final = Path(__file__).parent / "templates"
Data = TypeVar("Data")


class Statement(NamedTuple):
    heading: str
    text: str
    tone: Tone = ""


class Tile(NamedTuple):
    value: str
    label: str
    beneath: str = ""
    tone: Tone = ""


@dataclass(frozen=True, slots=True)
class BuiltSection:
    id: str
    title: str
    text: str
    tables: list[Table]
    figures: list[Figure]
    missing: str = ""


@dataclass(frozen=True, slots=True)
class Section(Generic[Data]):
    """A section of a report; ``missing`` names it on the first screen where no part has anything to show."""

    id: str
    title: str
    text: str
    parts: Sequence[Callable[[Data], Table | Figure | None]]
    missing: str = ""

    def build(self, data: Data) -> BuiltSection:
        """Run the parts; those that return None are left out."""
        parts = [part(data) for part in self.parts]
        tables = [part for part in parts if isinstance(part, Table)]
        figures = [part for part in parts if isinstance(part, Figure)]
        return BuiltSection(self.id, self.title, self.text, tables, figures, self.missing)


@dataclass(slots=True, kw_only=True)
class Page:
    """What a page says, from top to bottom; the template is ``page.html.j2``."""

    kind: str
    title: str
    #: pieces of the line below the title
    subtitle: Sequence[str]
    #: what must be known before anything is read: first words, text
    banner: tuple[str, str] | None = None
    notes: Sequence[str] = ()
    headline: str
    tiles: Sequence[Tile] = ()
    statements: Sequence[Statement] = ()
    #: empty ones are only named on the first screen, after these words
    sections: Sequence[BuiltSection]
    missing_title: str
    #: term and meaning
    glossary: Sequence[tuple[str, str]] = ()
    #: name and value of what ran where
    facts: Sequence[tuple[str, str]]
    facts_title: str
    commands: Sequence[str] = ()
    #: title and text of what can be unfolded in the last section
    attachments: Sequence[tuple[str, str]] = ()
    closing: str = ""
    version: str = field(default="")


def render_page(page: Page) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["glued"] = glued
    figures = [figure for section in page.sections for figure in section.figures]
    specs = {f"{figure.id}-{i}": panel.spec for figure in figures for i, panel in enumerate(figure.panels)}
    return environment.get_template("page.html.j2").render(
        page=page,
        sections=[section for section in page.sections if section.tables or section.figures],
        missing=[s.missing for s in page.sections if s.missing and not s.tables and not s.figures],
        # Plotly's own script, put inline.
        plotly=get_plotlyjs().replace("</script", "<\\/script") if figures else "",
        data=script_json(specs),
    )


def script_json(value: Any) -> str:
    """JSON that is safe inside a script element: nothing in it can end the element or start markup."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def glued(text: str) -> str:
    """A number and its unit stay on one line."""
    return re.sub(r"(?<=\d) (?=(?:%|ms|s|tokens|times|req|requests)\b|%)", "\u00a0", text)
