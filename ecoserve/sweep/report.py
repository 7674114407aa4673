"""``report.html``: one file that opens offline, for people who have never seen the project.

The page is a Jinja2 template with everything inline: style, script, Plotly, data. A content security policy inside the
page forbids every request, so that none can creep in. Text is escaped by the template engine, data by
:func:`script_json`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from ecoserve.files import write_atomically
from ecoserve.sweep.reporting.accuracy_figure import MEASURES, accuracy_figures
from ecoserve.sweep.reporting.answer import answer
from ecoserve.sweep.reporting.figures import Figure, Style
from ecoserve.sweep.reporting.metrics import write
from ecoserve.sweep.reporting.pressure_figure import pressure_figure
from ecoserve.sweep.reporting.settings import Settings
from ecoserve.sweep.reporting.tables import Table, predictor_table, settings_table
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import Meta, Summary

TEMPLATES: Final = Path(__file__).parent / "templates"
FILE_NAME: Final = "report.html"

#: Words a newcomer meets on the page.
GLOSSARY: Final = (
    ("KV cache", "Memory in which the engine keeps what it has computed for each running request. When it is short, "
     "requests must wait or be thrown out and computed again."),
    ("Pressure", "The load would need at least 1.3 times the KV cache if nobody waited. Without pressure (at most 0.7 "
     "times) a scheduler has little to decide."),
    ("Normalized latency", "Time from arrival to the last token, divided by the number of tokens in the answer."),
    ("JCT", "Job completion time: from arrival to the last token."),
    ("Preemption", "A running request loses its KV cache and has to be computed again later: lost work."),
    ("Pause", "A running request stops for a while and keeps its KV cache: nothing is lost."),
    ("Oracle", "A scheduler that is told the true lengths: the most that a predictor could bring."),
    ("No prediction", "The scheduler estimates lengths from those of finished requests only."),
    ("Length error σ", "True lengths disturbed on purpose: the standard deviation of the log of the length told."),
    ("Kendall’s τ", "How well lengths are ranked: 1 is the right order, 0 is chance."),
    ("Seed", "Decides arrivals, sampled requests and noise. Every setting is run with the same seeds and compared seed "
     "by seed."),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: its anchor, title, and one sentence on what it shows; then a table, figures, or both."""

    id: str
    title: str
    text: str
    table: Table | None = None
    figures: tuple[Figure, ...] = ()
    #: what is said on the first screen if there is neither
    missing: str = ""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to show."""
        return self.table is None and not self.figures


def write_report(folder: ResultFolder) -> Path:
    """Write the folder's ``summary.json`` and ``report.html`` from its runs; returns the report's path."""
    folder.write_summary()
    return write_atomically(folder.path / FILE_NAME, render(folder.summary()).encode())


def render(summary: Summary) -> str:
    """The whole page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    settings = Settings(summary.runs, summary.meta.baseline_policy)
    parts = sections(summary, settings)
    figures = [figure for section in parts for figure in section.figures]
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["glued"] = glued
    return environment.get_template("report.html.j2").render(
        meta=summary.meta,
        answer=answer(summary, settings),
        sections=[part for part in parts if not part.empty],
        missing=[part.missing for part in parts if part.empty and part.missing],
        failures=summary.failures,
        glossary=GLOSSARY,
        facts=_facts(summary.meta, summary),
        plan=_plan_text(summary.meta),
        measures=MEASURES,
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=(TEMPLATES / "report.js").read_text(encoding="utf-8"),
        plotly=_plotly() if figures else "",
        data=script_json({panel.id: panel.spec for figure in figures for panel in figure.panels}),
    )


def sections(summary: Summary, settings: Settings) -> list[Section]:
    """What the page shows between the first screen and the settings, in order."""
    real = [load for load in settings.loads if load.engine != "virtual"]
    virtual = [load for load in settings.loads if load.engine == "virtual"]
    style = Style.of(settings)
    pressure = pressure_figure(settings, style)
    return [
        Section(
            "predictor",
            "How good the predictor is",
            "Tested on requests it has not seen. The last line to beat is a guess that is always the same: the median.",
            predictor_table(summary.predictor),
            missing="the quality of a predictor",
        ),
        Section(
            "engine",
            "On a real vLLM engine",
            "The same requests against the same engine; only the scheduler and what it is told differ. Means over "
            "seeds; the smaller line runs from the lowest to the highest seed.",
            settings_table("engine", "Scheduling on a real vLLM engine.", settings, real),
            missing="runs on a real vLLM engine",
        ),
        Section(
            "accuracy",
            "What accuracy is worth",
            "vLLM’s scheduler classes driven in virtual time: the class that serves, on a clock that does not wait.",
            figures=tuple(accuracy_figures(settings, style)),
            missing="a sweep over accuracies",
        ),
        Section(
            "pressure",
            "Where it helps and where it does not",
            "Knowing lengths pays where the KV cache is short. Where it is plentiful, no gain is expected.",
            figures=(pressure,) if pressure else (),
            missing="loads with and without KV cache pressure",
        ),
        Section(
            "levels",
            "All settings of the virtual sweep",
            "Means over seeds; the smaller line runs from the lowest to the highest seed.",
            settings_table("virtual", "Every setting of the virtual sweep.", settings, virtual),
        ),
    ]


def script_json(value: Any) -> str:
    """JSON that is safe inside a script element: nothing in it can end the element or start markup."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def glued(text: str) -> str:
    """A number and its unit stay on one line."""
    return re.sub(r"(?<=\d) (?=(?:%|ms|s|tokens|times|req|requests)\b|%)", "\u00a0", text)


def _facts(meta: Meta, summary: Summary) -> list[tuple[str, str]]:
    """Name and value of what ran where, for the last section."""
    facts = [("Runs", f"{write(len(summary.runs))} finished, {write(len(summary.failures))} failed")]
    if meta.created:
        facts.append(("Run on", meta.created))
    if meta.trace:
        trace = meta.trace
        details = [trace.format, f"{write(trace.records)} records" if trace.records is not None else None]
        details += [f"lengths from {trace.length_source}" if trace.length_source else None]
        details += [f"sha256 {trace.sha256[:16]}…" if trace.sha256 else None]
        facts.append(("Trace", ", ".join([trace.source, *(d for d in details if d)])))
    if meta.served_predictor:
        facts.append(("Predictor that served", meta.served_predictor))
    if meta.scheduler_mode:
        facts.append(("Scheduler", meta.scheduler_mode))
    if meta.model_runner:
        facts.append(("Model runner", meta.model_runner))
    facts += [(_titled(name), f"{value}") for name, value in meta.hardware.items()]
    if meta.versions:
        facts.append(("Versions", ", ".join(f"{name} {version}" for name, version in meta.versions.items())))
    if meta.runs_sha256:
        facts.append(("Hash of all runs", meta.runs_sha256))
    return facts


def _plan_text(meta: Meta) -> str:
    return yaml.safe_dump(meta.settings, sort_keys=False, allow_unicode=True) if meta.settings else ""


def _titled(name: str) -> str:
    return {"cpu": "CPU", "gpu": "GPU", "memory_gib": "Memory (GiB)"}.get(name, name[:1].upper() + name[1:])


def _plotly() -> str:
    """Plotly's own script, to be put inline."""
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script.replace("</script", "<\\/script")
