"""HTML reports that open offline: plain tables, plots and sections, rendered by one Jinja2 template."""

from ecoserve.pages.page import TEMPLATES, BuiltSection, Page, Section, Statement, Tile, render_page
from ecoserve.pages.plots import Figure, Panel, plain
from ecoserve.pages.tables import NOTHING, Cell, Column, Table, Tone, signed, write, write_change, write_range

__all__ = [
    "NOTHING", "TEMPLATES", "BuiltSection", "Cell", "Column", "Figure", "Page", "Panel", "Section", "Statement",
    "Table", "Tile", "Tone", "plain", "render_page", "signed", "write", "write_change", "write_range",
]  # fmt: skip
