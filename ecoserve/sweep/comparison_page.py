"""A comparison of two result folders in words: sentences, tables, and the page made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from ecoserve.files import write_atomically
from ecoserve.pages import Cell, Column, Page, Section, Statement, Table, Tone, render_page, write, write_change
from ecoserve.sweep.comparing import MARGIN, Comparison, Difference
from ecoserve.sweep.plan import KNOB
from ecoserve.sweep.results import ResultFolder

_CLOSING: Final = (
    "Intervals are at 95 %. “Lower” and “higher” are only said where the interval excludes zero and the difference is "
    f"at least 1 %; “no difference” where all of the interval is within ±{100 * MARGIN:g} %; otherwise the result is "
    "open, and more seeds or requests would help."
)
_COLUMNS: Final = (
    "Metric", "A", "B", "B against A", "95 % interval", "Verdict", Column("From", "How the interval was made."),
)  # fmt: skip


def sentences(comparison: Comparison) -> list[str]:
    if comparison.same_tables:
        return ["The tables are identical: every run and every request came to the same."]
    if not comparison.settings:
        return ["The folders have no setting in common: nothing can be compared."]
    out = []
    groups = [
        ("Better", [d for d in comparison.overall if d.better]),
        ("Worse", [d for d in comparison.overall if d.better is False]),
    ]
    for word, found in groups:
        if found:
            out.append(f"{word}: {'; '.join(f'{_title(d)} {change(d)}' for d in found)}.")
    for verdict, word in (("no difference", "No difference"), ("cannot tell", "Cannot tell")):
        found = [d for d in comparison.overall if d.verdict == verdict]
        if found:
            out.append(f"{word}: {', '.join(_title(d) for d in found)}.")
    alone = [(len(names), folder) for names, folder in ((comparison.only_a, "A"), (comparison.only_b, "B")) if names]
    out += [f"{count} {'setting is' if count == 1 else 'settings are'} only in {name}." for count, name in alone]
    return out


def change(difference: Difference) -> str:
    """``+5.0 % (+4.8 % to +5.2 %)``."""
    interval = _interval(difference)
    return write_change(difference.relative) + (f" ({interval})" if interval else "")


def overall_table(comparison: Comparison) -> Table:
    count = len(comparison.settings)
    caption = f"B against A over {count} setting{'' if count == 1 else 's'}."
    return Table("overall", caption, _COLUMNS, [_row(d) for d in comparison.overall])


def settings_table(comparison: Comparison) -> Table:
    table = Table("settings", "B against A, setting by setting.", _COLUMNS, group_title="Setting")
    for setting in comparison.settings:
        for difference in setting.differences:
            table.add(_row(difference), name_of(setting.name))
    return table


def name_of(name: Mapping[str, Any]) -> str:
    """A setting's labels for people: ``pressure, ecoserve, true, 20 req/s, epsilon 0.1``."""
    parts = []
    for key, value in name.items():
        if key == "rate_rps":
            parts.append(f"{value:g} req/s")
        elif key in ("condition", "policy", "lengths", "trace", "gpu", "model"):
            parts.append(str(value))
        else:
            parts.append(f"{key.removeprefix(KNOB).replace('_', ' ')} {value}")
    return ", ".join(parts)


def plain(comparison: Comparison) -> dict[str, Any]:
    keys = [f.name for f in fields(Difference) if f.name != "samples"]

    def rows(differences: list[Difference]) -> list[dict[str, Any]]:
        return [{key: getattr(d, key) for key in keys} for d in differences]

    return {
        "same_tables": comparison.same_tables,
        "overall": rows(comparison.overall),
        "settings": [{**s.name, "metrics": rows(s.differences)} for s in comparison.settings],
        "only_a": [dict(name) for name in comparison.only_a],
        "only_b": [dict(name) for name in comparison.only_b],
    }


_SECTIONS: Final[tuple[Section[Comparison], ...]] = (
    Section(
        "overall",
        "Metric by metric",
        "Means over settings and seeds; differences are means of relative differences.",
        [overall_table],
    ),
    Section("settings", "Setting by setting", "Matched by setting and seed.", [settings_table]),
)


def write_page(comparison: Comparison, a: ResultFolder, b: ResultFolder, path: Path) -> Path:
    first, *rest = sentences(comparison)
    page = Page(
        kind="ecoserve comparison",
        title=f"{b.meta.title}: B against A" if a.meta.title == b.meta.title else f"{b.meta.title} / {a.meta.title}",
        subtitle=[f"A: {a.path.name}", f"B: {b.path.name}"],
        headline=first,
        statements=[
            Statement(head, text) if text else Statement("Not compared", head)
            for head, _, text in (sentence.partition(": ") for sentence in rest)
        ],
        sections=[section.build(comparison) for section in _SECTIONS],
        missing_title="Not in these folders",
        facts=[fact for name, folder in (("A", a), ("B", b)) for fact in _facts(name, folder)],
        facts_title="What was compared",
        commands=[*a.meta.commands, *b.meta.commands],
        closing=_CLOSING,
        version=b.meta.versions.get("ecoserve", ""),
    )
    return write_atomically(path, render_page(page).encode())


def _row(d: Difference) -> list[Cell | str]:
    tone: Tone = "quiet" if d.better is None else "good" if d.better else "bad"
    unit = _unit(d.metric)
    return [
        _title(d),
        Cell(d.a, write(d.a, unit)),
        Cell(d.b, write(d.b, unit)),
        Cell(d.relative, write_change(d.relative)),
        _interval(d),
        Cell(d.verdict, tone=tone),
        f"{d.method}, {d.seeds} seeds" if d.seeds > 1 else d.method,
    ]


def _interval(d: Difference) -> str:
    return "" if d.low is None or d.high is None else f"{write_change(d.low)} to {write_change(d.high)}"


def _title(d: Difference) -> str:
    words = d.metric.removesuffix("_ms").removesuffix("_rps").removesuffix("_per_s").replace("_", " ")
    return words.replace("ttft", "TTFT").replace("tpot", "TPOT").replace("e2el", "JCT").replace("slo", "SLO")


def _unit(metric: str) -> str:
    if metric.startswith("normalized_latency"):
        return "ms/token"
    endings = {"_ms": "ms", "_tokens_per_s": "tokens/s", "_rps": "requests/s", "_attainment": "share"}
    return next((unit for ending, unit in endings.items() if metric.endswith(ending)), "")


def _facts(name: str, folder: ResultFolder) -> list[tuple[str, str]]:
    summary = folder.summary()
    versions = ", ".join(f"{key} {value}" for key, value in summary.meta.versions.items())
    return [
        (name, str(folder.path)),
        (f"{name}: runs", f"{len(summary.runs)} finished, {len(summary.failures)} failed"),
        (f"{name}: versions", versions),
        (f"{name}: tables sha256", str(summary.meta.tables_sha256)),
    ]
