"""Pages that open offline: what every HTML report of ours is made of.

A report describes itself as plain parts (:mod:`parts`, :mod:`tables`, :mod:`figures`); :func:`render_page` makes one
file of them: style, script, Plotly and data inside, both themes, every plot's data one click away, no network request.
"""

from ecoserve.pages.figures import SLOTS, Figure, LegendEntry, Panel, plain, spec
from ecoserve.pages.numbers import NOTHING, signed, write, write_change
from ecoserve.pages.page import TEMPLATES, Page, glued, render_page, script_json
from ecoserve.pages.parts import Answer, Section, Statement, Tile, Tone
from ecoserve.pages.tables import Cell, Column, Table

__all__ = [
    "NOTHING",
    "SLOTS",
    "TEMPLATES",
    "Answer",
    "Cell",
    "Column",
    "Figure",
    "LegendEntry",
    "Page",
    "Panel",
    "Section",
    "Statement",
    "Table",
    "Tile",
    "Tone",
    "glued",
    "plain",
    "render_page",
    "script_json",
    "signed",
    "spec",
    "write",
    "write_change",
]
