"""Text of ``ecoserve simulate``: its list options parsed, its progress bar, and the table of its results."""

from __future__ import annotations

import time
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import yaml

from ecoserve.errors import ConfigError
from ecoserve.serving.simulate.run import SimulateSettings
from ecoserve.sweep.identity import short_lengths
from ecoserve.sweep.simulations import Simulations, name_of
from ecoserve.sweep.summary import RunRow

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

#: Key of the summary, title, factor and form of each column; values are means over the seeds.
_TABLE: Final = (
    ("completed", "done", 1, "{:.0f}"),
    ("throughput_rps", "req/s", 1, "{:.2f}"),
    ("output_tokens_per_s", "tok/s", 1, "{:.0f}"),
    ("ttft_p50_ms", "TTFT", 1, "{:.0f}"),
    ("ttft_p99_ms", "p99", 1, "{:.0f}"),
    ("tpot_mean_ms", "TPOT", 1, "{:.1f}"),
    ("e2el_mean_ms", "E2EL", 1, "{:.0f}"),
    ("normalized_latency_mean_ms", "/token", 1, "{:.1f}"),
    ("kv_used_mean", "KV", 100, "{:.0f}%"),
    ("preemptions", "drop", 1, "{:.0f}"),
    ("pauses", "pause", 1, "{:.0f}"),
    ("slo_attainment", "SLO", 100, "{:.0f}%"),
)
#: A load whose peak demand is at most this share of the KV causes no pressure.
_NO_PRESSURE: Final = 0.7


def listed(text: str, option: str) -> list[str]:
    """The parts of ``a,b,c``, each once."""
    parts = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not parts:
        raise ConfigError("names nothing", where=option)
    return parts


def parsed_knob(text: str) -> tuple[str, Any]:
    """``key=value``, the value as YAML reads it."""
    key, equals, value = text.partition("=")
    try:
        if equals and key:
            return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError:
        pass
    raise ConfigError(f"{text!r} is not KEY=VALUE", where="--scheduler", fix="write --scheduler reserve=0.05")


def parsed_window(text: str | None) -> tuple[float, float] | None:
    """``A:B`` in seconds; either may be left out."""
    if text is None:
        return None
    first, colon, last = text.partition(":")
    try:
        window = (float(first or 0), float(last or "inf"))
    except ValueError:
        window = (0.0, 0.0)
    if not (colon and 0 <= window[0] < window[1]):
        raise ConfigError(f"{text!r} is no window", where="--trace-window", fix="give two times in seconds, as 10:20")
    return window


class Watch:
    """One progress bar for all runs, with the pace of virtual time."""

    def __init__(self, bar: Progress, simulations: Simulations) -> None:
        self._bar = bar
        self._task = bar.add_task("simulating", total=sum(s.requests for s in simulations.runs))
        self._run: SimulateSettings | None = None
        self._before = self._ended = 0
        self._begun = 0.0

    def __call__(self, settings: SimulateSettings, ended: int, now: float) -> None:
        if settings is not self._run:
            self._run, self._begun = settings, time.perf_counter()
            self._before += self._ended
        self._ended = ended
        pace = now / max(1e-9, time.perf_counter() - self._begun)
        text = f"{name_of(settings)}: {now:,.0f} s simulated, {pace:.1f} times real time"
        self._bar.update(self._task, completed=self._before + ended, description=text)


def show(runs: list[RunRow], console: Console) -> None:
    """One line for each policy, lengths and rate, means over the seeds; and the KV pressure of the load."""
    from rich.table import Table

    groups: dict[tuple[str, str, str], list[RunRow]] = {}
    for run in runs:
        arrivals = getattr(run, "arrivals", None) or "recorded" if run.rate_rps is None else f"{run.rate_rps:g}"
        groups.setdefault((run.policy, short_lengths(run.lengths), arrivals), []).append(run)
    caption = "TTFT: median and p99; TPOT, E2EL and E2EL per token: mean; in ms. KV used; preemptions; pauses"
    table = Table(caption=caption, box=None, pad_edge=False)
    table.add_column("policy", no_wrap=True)
    table.add_column("lengths", no_wrap=True)
    table.add_column("rate", justify="right", no_wrap=True)
    shown = [column for column in _TABLE if any(getattr(run, column[0]) is not None for run in runs)]
    for _, title, _, _ in shown:
        table.add_column(title, justify="right", no_wrap=True)
    for names, group in groups.items():
        cells = []
        for key, _, factor, form in shown:
            known = [getattr(run, key) for run in group if getattr(run, key) is not None]
            cells.append(form.format(factor * fmean(known)) if known else "-")
        table.add_row(*names, *cells)
    if not console.is_terminal:
        console.width = 160  # a file has no edge to cut figures at
    console.print(table)
    pressures = [run.kv_demand_peak for run in runs if run.kv_demand_peak is not None]
    if not pressures:
        return
    low, high = min(pressures), max(pressures)
    span = f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"
    console.print(f"pressure: with no queueing, the load's peak KV demand is {span} times the KV")
    if high <= _NO_PRESSURE:
        fix = "raise --rate or lower --kv-blocks"
        console.print(f"note: there is no KV pressure, so lengths can gain a policy little; {fix}")
