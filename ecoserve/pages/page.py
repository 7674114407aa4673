"""One HTML file that opens offline, for people who have never seen the project.

The page is a Jinja2 template with everything inline: style, script, Plotly, data. A content security policy inside the
page forbids every request, so that none can creep in. Text is escaped by the template engine, data by
:func:`script_json`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ecoserve.pages.parts import Answer, Section

TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(slots=True)
class Page:
    """What a page says, from top to bottom.

    Attributes:
        kind: what sort of page it is: ``"ecoserve report"``.
        title: its title.
        subtitle: pieces of the line beneath: where the data is from, when, on what.
        answer: the first screen.
        sections: what follows, in order; empty ones are only named on the first screen.
        source_missing: how the list of what is missing begins: ``"Not in this folder"``.
        glossary: words that a newcomer meets on the page, with their meaning.
        facts: name and value of what ran where, for the last section.
        facts_title: title of that section.
        commands: command lines that made the page.
        attachments: (title, text) of what can be unfolded in the last section.
        closing: the last paragraph.
        banner: (first words, text) of what must be known before anything is read.
        notes: further notes of that kind.
        version: ecoserve's version.
    """

    kind: str
    title: str
    subtitle: list[str]
    answer: Answer
    sections: list[Section]
    source_missing: str
    glossary: tuple[tuple[str, str], ...]
    facts: list[tuple[str, str]]
    facts_title: str
    commands: list[str] = field(default_factory=list)
    attachments: list[tuple[str, str]] = field(default_factory=list)
    closing: str = ""
    banner: tuple[str, str] | None = None
    notes: list[str] = field(default_factory=list)
    version: str = ""


def render_page(page: Page, *, template: str = "page.html.j2", folder: Path | None = None, **more: Any) -> str:
    """The whole page as text.

    Args:
        page: what it says.
        template: a template that extends ``page.html.j2``, where a report has something of its own.
        folder: where that template lives.
        more: what that template needs besides.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([*([folder] if folder else []), TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["glued"] = glued
    figures = [figure for section in page.sections for figure in section.figures]
    return environment.get_template(template).render(
        page=page,
        sections=[section for section in page.sections if not section.empty],
        missing=[section.missing for section in page.sections if section.empty and section.missing],
        style=(TEMPLATES / "page.css").read_text(encoding="utf-8"),
        script=(TEMPLATES / "page.js").read_text(encoding="utf-8"),
        plotly=_plotly() if figures else "",
        data=script_json({panel.id: panel.spec for figure in figures for panel in figure.panels}),
        **more,
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


def _plotly() -> str:
    """Plotly's own script, to be put inline."""
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script.replace("</script", "<\\/script")
