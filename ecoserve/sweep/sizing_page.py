"""The answers of ``ecoserve plan`` in words, tables and a page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from ecoserve.files import write_atomically
from ecoserve.pages import Cell, Column, Figure, Page, Section, Statement, Table, Tile, render_page, write, write_range
from ecoserve.pages.plots import from_zero, line, panel, plain
from ecoserve.serving.simulate.settings import SimulateSettings
from ecoserve.sweep.identity import short_lengths
from ecoserve.sweep.sizing import PARTS, SizingRow, Trial
from ecoserve.sweep.summary import Meta

_CLOSING: Final = (
    "“At full batches” is what the load would need if every engine always ran full forwards and batches: no fleet "
    "needs less. Intervals are at 95 %, by blocks of neighbouring requests of the first seed."
)


def answers_table(rows: Sequence[SizingRow]) -> Table:
    columns = [
        "Policy", "Router", Column("Share", unit="share"), "GPUs", "Of them", Column("In SLO", unit="share"),
        Column("Interval", "At 95 %, by blocks of neighbouring requests."),
        Column("Worst tenth", "The worst of ten equal parts of the window.", "share"),
        Column("Steps longer", "The share in SLO if every step takes longer than modelled.", "share"),
        Column("With fewer", "The best share in SLO of all that was simulated with fewer GPUs.", "share"),
        "At full batches",
    ]  # fmt: skip
    table = Table("answers", "The fewest GPUs that hold the SLO.", columns, group_title="GPU")
    for row in rows:
        a, fewer = row.answer, max(row.fewer, key=lambda t: t.attainment, default=None)
        name = row.policy if row.lengths == "none" else f"{row.policy}, {short_lengths(row.lengths)}"
        cells: list[Any] = [name, row.router, row.share, Cell(None, row.state), "", *[None] * 5, row.at_full_batches]
        if a is not None:
            cells[3:6] = [a.gpus, shape_of(a), a.attainment]
            cells[6:9] = [write_range(row.low, row.high, "share"), row.worst_part, row.slower]
            cells[9] = (
                None if fewer is None else Cell(fewer.attainment, f"{write(fewer.attainment, 'share')} ({fewer.gpus})")
            )
        table.add(cells, row.gpu)
    return table


def trials_table(rows: Sequence[SizingRow]) -> Table:
    columns = ["Policy", "Router", "GPUs", "Of them", Column("In SLO", unit="share"), "Seeds"]
    table = Table("trials", "All that was simulated.", columns, group_title="GPU")
    for row in _by_load(rows):
        for t in row.trials:
            table.add([row.policy, row.router, t.gpus, shape_of(t), t.attainment, len(t.seeds)], row.gpu)
    return table


def shares_figure(rows: Sequence[SizingRow]) -> Figure | None:
    known = [row for row in _by_load(rows) if len(row.trials) > 1]
    traces = []
    for slot, row in enumerate(known[:7]):
        best = {t.gpus: max(o.attainment for o in row.trials if o.gpus == t.gpus) for t in row.trials}
        name = plain(f"{row.gpu}, {row.policy}, {row.router}")
        traces.append(line(list(best), list(best.values()), slot, name, symbol="circle", hover=f"{name}: %{{x}} GPUs"))
    if not traces:
        return None
    x, y = from_zero("GPUs"), {"title": {"text": "Share of requests in SLO"}, "tickformat": ".0%"}
    drawn = panel(traces, "Share of requests in SLO by GPUs, for each policy and router.", x=x, y=y)
    return Figure(
        "shares", "Share in SLO by GPUs", "The best way to serve at each number.", [drawn], trials_table(rows)
    )


_SECTIONS: Final[tuple[Section[Sequence[SizingRow]], ...]] = (
    Section("answers", "The fewest GPUs", "By policy and router, with the check by fewer GPUs.", [answers_table]),
    Section("shares", "What was simulated", "A search tries few numbers; each was run whole.", [shares_figure]),
)


def shape_of(trial: Trial) -> str:
    """``3 × tp 2, 1,024 tokens a forward``."""
    forms = {"max_num_batched_tokens": "{:,} tokens a forward", "prefill_share": "{:.0%} of them for prompts"}
    more = [forms[key].format(value) for key, value in trial.tuning.items() if key in forms]
    return ", ".join([f"{trial.replicas} × tp {trial.tp}", *more])


def headline(rows: Sequence[SizingRow]) -> str:
    parts = []
    for wanted in dict.fromkeys(row.share for row in rows):
        found = [f"{r.policy} ({r.gpu}, {r.router}) {r.answer.gpus}" for r in rows if r.answer and r.share == wanted]
        parts.append(f"{write(wanted, 'share')} in SLO need GPUs: {', '.join(found) or 'more than were allowed'}")
    return ". ".join(parts) + "."


def unsure(rows: Sequence[SizingRow], load: SimulateSettings, window_s: float) -> Iterator[Statement]:
    """What the answers do not say; ``window_s``: seconds of the load that was simulated."""
    slower = [r.slower >= r.share for r in rows if r.slower is not None]
    yield Statement(
        "The model of the GPU",
        "Steps may take longer than modelled (docs/results/fidelity.md). With all of them "
        f"{write(rows[0].slower_by, 'share')} longer, {sum(slower)} of {len(slower)} answers still hold.",
    )
    seeds = max((len(r.answer.seeds) for r in rows if r.answer), default=1)
    what = "the predictions alone" if load.rate_rps is None else "arrivals, requests and predictions"
    spread = max((max(s) - min(s) for r in rows if r.answer for s in [r.answer.seeds.values()]), default=0.0)
    over = f", over which a share varies by up to {write(spread, 'share')}" if seeds > 1 else ""
    yield Statement("Seeds", f"{seeds} {'seed' if seeds == 1 else 'seeds'}{over}. A seed changes {what}.")
    known = [r for r in rows if r.answer]
    below = sum((r.low or 0.0) < r.share for r in known)
    worst = min((r.worst_part for r in known if r.worst_part is not None), default=None)
    yield Statement(
        "Arrivals that were not seen",
        f"{load.requests:,} requests in {window_s / 60:,.1f} minutes were simulated, and nothing else: other "
        f"hours and larger bursts may need more. For {below} of {len(known)} answers the interval reaches below the "
        f"share; in the worst of {PARTS} parts of the window the lowest share is {write(worst, 'share')}.",
    )
    yield Statement(
        "The search", "More GPUs are taken to hold at least as much. What was tried with fewer is in the table."
    )
    if refused := list(dict.fromkeys(text for row in rows for text in row.refused)):
        yield Statement("Not tried", "; ".join(refused) + ".")


def write_page(rows: Sequence[SizingRow], meta: Meta, said: Sequence[Statement], path: Path) -> Path:
    best = [row for row in rows if row.answer]
    page = Page(
        kind="ecoserve plan",
        title=meta.title,
        subtitle=[str(meta.trace.source if meta.trace else ""), str(meta.settings.get("model") or "")],
        banner=("Made-up load.", "The requests are synthetic.") if meta.synthetic else None,
        notes=meta.notes,
        headline=headline(rows),
        tiles=[
            Tile(str(r.answer.gpus), f"{r.policy}, {write(r.share, 'share')}", shape_of(r.answer))
            for r in best[:6]
            if r.answer
        ],
        statements=said,
        sections=[section.build(rows) for section in _SECTIONS],
        missing_title="Not in this plan",
        facts=[(name, str(value)) for name, value in meta.settings.items() if value not in (None, {}, False)],
        facts_title="What was simulated",
        commands=meta.commands,
        closing=_CLOSING,
        version=meta.versions.get("ecoserve", ""),
    )
    return write_atomically(path, render_page(page).encode())


def _by_load(rows: Sequence[SizingRow]) -> list[SizingRow]:
    """The rows of the first share: others hold the same kinds of trials."""
    return [row for row in rows if row.share == rows[0].share]
