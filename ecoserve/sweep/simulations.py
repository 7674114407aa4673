"""A handful of simulated runs, one after another in this process: the work of ``ecoserve simulate``.

What can be refused is refused before the first run begins; rows of the trace that are left out or cut are reported.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

import yaml

from ecoserve.data import Trace
from ecoserve.data.records import LOCAL_TIMES
from ecoserve.errors import ConfigError, TraceError
from ecoserve.options import checked
from ecoserve.serving.core.policies import LENGTH_BLIND, STOCK_POLICIES
from ecoserve.serving.simulate.perfetto import TraceFile
from ecoserve.serving.simulate.run import SimulateSettings, check, simulate
from ecoserve.serving.simulate.settings import SIMULATION, machine_of
from ecoserve.serving.workload import chosen_split, prompt_length
from ecoserve.sweep.identity import PlannedRun, describe_run, short_lengths, trace_info
from ecoserve.sweep.plan import SYNTHETIC, located
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.summary import NO_PRESSURE_TO, Meta, RunRow, Summary
from ecoserve.sweep.tables import hashes, run_row

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

_AXES: Final = ("policy", "lengths", "rate_rps", "seed")
#: Called with (run, requests of it that have ended, its virtual seconds).
OnEnded = Callable[[SimulateSettings, int, float], None]


@dataclass(frozen=True, slots=True)
class Simulations:
    """Runs that are ready to begin, in order, and what they have in common; its notes are about the load."""

    runs: list[SimulateSettings]
    meta: Meta


def simulate_trace(
    trace: str | Path,
    *,
    rate: float | None = None,
    policies: Sequence[str] = ("vllm", "ecoserve"),
    lengths: Sequence[str] = ("true",),
    seeds: Sequence[int] = (0,),
    split: str | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    **settings: Any,
) -> Summary:
    """Run a trace through scheduling policies on modelled GPUs, in virtual time; as ``ecoserve simulate``.

    Args:
        trace: a file, a hub data set, a workload file, or ``synthetic:N``.
        rate: requests per second (Poisson; ``math.inf``: all at once); None: recorded arrivals.
        policies: names of scheduling policies.
        lengths: sources of lengths: ``true``, ``none``, ``noise:SIGMA``, ``predicted:CKPT``, ...
        seeds: one run of each setting for each.
        split: ``train``, ``dev`` or ``all``. Default: ``dev``, with recorded arrivals ``all``.
        output: folder for ``summary.json`` and every request.
        resume: continue in that folder.
        settings: fields of :class:`~ecoserve.serving.simulate.settings.SimulateSettings`, as ``gpu``, ``model``.

    Returns:
        The summary; its ``runs`` have times in milliseconds, rates per second and shares from 0 to 1.

    Raises InputError for what cannot be run, before anything is; RunError if a run fails.
    """
    common = {**SIMULATION, **settings, "trace": str(trace), "split": chosen_split(split, recorded=rate is None)}
    simulations = prepare(
        common,
        policies=policies,
        lengths=lengths,
        rates=[rate],
        seeds=seeds,
        command=f"ecoserve.simulate({str(trace)!r}, ...)",
    )
    folder = None if output is None else ResultFolder.create(Path(output), simulations.meta, resume=resume)
    return perform(simulations, folder=folder)


def prepare(
    common: dict[str, Any],
    *,
    policies: Sequence[str],
    lengths: Sequence[str],
    rates: Sequence[float | None],
    seeds: Sequence[int],
    command: str,
) -> Simulations:
    """Expand the axes, and refuse what cannot be run (InputError).

    Args:
        common: further fields of :class:`SimulateSettings`. Where ``max_model_len`` is None it is what the longest
            prompt of the trace and ``max_tokens`` need, but no more than the KV holds.
        policies, lengths, rates, seeds: the axes; a policy that decides without lengths runs once, with ``none``.
        command: what was typed.
    """
    here = Path.cwd()
    paths = {k: located(v, here) for k in ("trace", "model", "tokenizer") if (v := common.get(k))}
    common = {**common, **paths}
    if common.get("scheduler") and set(policies) <= set(STOCK_POLICIES):
        fix = "leave it out, or add a policy of ours"
        raise ConfigError(f"{', '.join(policies)} have no knobs", where="--scheduler", fix=fix)
    limit = common.pop("max_model_len")
    first = checked(SimulateSettings, {**common, "policy": policies[0]}, "settings")
    machine = machine_of(first)
    trace = first.read_trace()
    if limit is None:
        longest = max((prompt_length(r) for r in trace.records if r.response_tokens), default=0)
        limit = min(longest + first.max_tokens, machine.blocks * first.block_size, machine.max_model_len or 2**31)
    runs = []
    for rate, policy in itertools.product(rates, policies):
        for text in ["none"] if policy in LENGTH_BLIND else lengths:
            kind, colon, path = text.partition(":")
            kind = f"predicted:{located(path, here)}" if colon and kind == "predicted" else text
            axes = {"policy": policy, "lengths": kind, "rate_rps": rate, "max_model_len": limit}
            runs += [checked(SimulateSettings, {**common, **axes, "seed": seed}, "settings") for seed in seeds]
    for settings in {(s.policy, s.lengths): s for s in runs}.values():
        check(settings)
    recorded = None in rates
    if recorded and not any(r.arrival_s is not None for r in trace.records):
        raise TraceError("the trace has no recorded arrivals", where=first.trace, fix="give --rate")
    return Simulations(runs, simulated(runs[0], "Simulation", command))


def simulated(settings: SimulateSettings, title: str, command: str) -> Meta:
    """What simulations of one load have in common; their notes are about it."""
    trace = settings.read_trace()
    return describe_run(title, [command]).model_copy(
        update={
            "synthetic": settings.trace.partition(":")[0] == SYNTHETIC,
            "trace": trace_info(settings.trace, trace),
            "scheduler_mode": f"virtual time, pipeline depth {settings.depth}",
            "model_runner": "none",
            "settings": {k: v for k, v in _plain(settings).items() if k not in _AXES},
            "notes": list(_notes(settings, trace, settings.rate_rps is None)),
        }
    )


def perform(
    simulations: Simulations,
    *,
    folder: ResultFolder | None = None,
    trace_file: AbstractContextManager[TraceFile] | None = None,
    progress: OnEnded | None = None,
) -> Summary:
    """Run them, one after another; with a ``folder``, runs that are finished there are not run again.

    ``trace_file`` takes the picture of each run; ``progress`` is called as requests end. Raises RunError if a run
    fails; those before it are in the folder.
    """
    planned = [(s, PlannedRun.of(_plain(s), {"engine": "virtual", "condition": None})) for s in simulations.runs]
    if folder is not None:
        folder.expect(run for _, run in planned)
    done = folder.finished() if folder is not None else set()
    rows = []
    with trace_file or nullcontext() as file:
        for settings, run in planned:
            if run.key in done:
                continue
            begun = time.perf_counter()
            result = simulate(
                settings,
                progress=None if progress is None else partial(progress, settings),
                recorder=None if file is None else file.run(name_of(settings)),
            )
            wall_s = time.perf_counter() - begun
            rows.append(run_row(run, result, wall_s) if folder is None else folder.add(run, result, wall_s=wall_s))
            if folder is not None:
                folder.write_summary()
    if folder is not None:
        folder.write_summary()
        return folder.summary()
    meta = simulations.meta.model_copy(update=hashes(rows))
    return Summary(runs=[RunRow.model_validate(row) for row in rows], meta=meta)


def name_of(settings: SimulateSettings) -> str:
    rate = "recorded arrivals" if settings.rate_rps is None else f"{settings.rate_rps:g} req/s"
    return f"{settings.policy}, {short_lengths(settings.lengths)}, {rate}, seed {settings.seed}"


def _plain(settings: SimulateSettings) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(settings.model_dump_json())
    return plain


def _notes(settings: SimulateSettings, trace: Trace, recorded: bool) -> Iterator[str]:
    # Estimated tokens have a note of their own.
    yield from (w for w in trace.report.warnings if not w.startswith("tokens of"))
    yield from (text for text in trace.report.stated if text == LOCAL_TIMES)
    fits = settings.max_model_len - settings.max_tokens
    yield from fit_notes(trace, fits, settings.max_tokens)
    usable = sum(prompt_length(r) <= fits for r in trace.records if r.response_tokens)
    if recorded and usable > settings.requests:
        yield f"the first {settings.requests} of {usable} requests are run"
    if not recorded and usable < settings.requests:
        yield f"{usable} rows make {settings.requests} requests: some are drawn more than once"
    if trace.length_source.startswith("characters"):
        yield "response lengths are estimated from characters; a tokenizer would count them"
    if settings.charge_scheduler == "measured":
        yield "scheduling is charged as measured on this machine: runs do not repeat exactly"


def fit_notes(trace: Trace, longest: int, max_tokens: int) -> Iterator[str]:
    """How many rows have too long prompts, more than ``longest`` tokens, and how many responses are cut."""
    rows = [r for r in trace.records if r.response_tokens]
    usable = [r for r in rows if prompt_length(r) <= longest]
    if len(usable) < len(rows):
        yield f"{len(rows) - len(usable)} of {len(rows)} rows are skipped: their prompts exceed {longest} tokens"
    cut = sum((r.response_tokens or 0) > max_tokens for r in usable)
    if cut:
        yield f"{cut} of {len(usable)} answers are cut at max_tokens {max_tokens}"


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
    if high <= NO_PRESSURE_TO:
        fix = "raise --rate or lower --kv-blocks"
        console.print(f"note: there is no KV pressure, so lengths can gain a policy little; {fix}")
