"""A handful of simulated runs, one after another in this process: the work of ``ecoserve simulate``.

It has the run function, rows and result folder of a sweep, so ``ecoserve report`` reads a folder of either. What can be
refused is refused before the first run begins; rows of the trace that are left out or cut are counted and reported.
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
from typing import Any, Final

from ecoserve.data import Trace
from ecoserve.errors import ConfigError, TraceError
from ecoserve.options import checked
from ecoserve.serving.core.policies import STOCK_POLICIES
from ecoserve.serving.simulate.perfetto import TraceFile
from ecoserve.serving.simulate.run import SimulateSettings, check, simulate
from ecoserve.serving.simulate.settings import machine_of
from ecoserve.serving.workload import prompt_length, trace_for
from ecoserve.sweep.axes import LENGTH_BLIND, SYNTHETIC
from ecoserve.sweep.environment import describe_run
from ecoserve.sweep.identity import PlannedRun, fingerprint, short_lengths
from ecoserve.sweep.plan import located
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.rows import hashes, run_row
from ecoserve.sweep.summary import Meta, RunRow, Summary, TraceInfo

#: Settings that differ between runs.
_AXES: Final = ("policy", "lengths", "rate_rps", "seed")
#: Called with (run, requests of it that have ended, its virtual seconds).
Progress = Callable[[SimulateSettings, int, float], None]


@dataclass(frozen=True, slots=True)
class Simulations:
    """Runs that are ready to begin.

    Attributes:
        runs: what to run, in order.
        meta: what they have in common; its notes are about the load.
    """

    runs: list[SimulateSettings]
    meta: Meta


def prepare(
    common: dict[str, Any],
    *,
    policies: Sequence[str],
    lengths: Sequence[str],
    rates: Sequence[float | None],
    seeds: Sequence[int],
    command: str,
) -> Simulations:
    """Expand the axes, and refuse what cannot be run.

    Args:
        common: further fields of :class:`SimulateSettings`. Where ``max_model_len`` is None it is what the longest
            prompt of the trace and ``max_tokens`` need, but no more than the KV holds.
        policies, lengths, rates, seeds: the axes; a policy that decides without lengths runs once, with ``none``.
        command: what was typed.

    Raises:
        InputError: naming what cannot be used.
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
    trace = trace_for(first.trace, first.length_field, first.tokenizer, first.split)
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
    meta = describe_run("Simulation", [command]).model_copy(
        update={
            "synthetic": first.trace.partition(":")[0] == SYNTHETIC,
            "trace": _trace_info(first, trace),
            "scheduler_mode": f"virtual time, pipeline depth {first.depth}",
            "model_runner": "none",
            "settings": {k: v for k, v in _plain(runs[0]).items() if k not in _AXES},
            "notes": list(_notes(runs[0], trace, recorded)),
        }
    )
    return Simulations(runs, meta)


def perform(
    simulations: Simulations,
    *,
    folder: ResultFolder | None = None,
    trace_file: AbstractContextManager[TraceFile] | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Run them, one after another.

    Args:
        simulations: what :func:`prepare` made.
        folder: where results go, run by run; runs that are finished there are not run again.
        trace_file: where the picture of each run goes.
        progress: called as requests end.

    Raises:
        RunError: if a run fails; those before it are in the folder.
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
    """A few words for a run."""
    rate = "recorded arrivals" if settings.rate_rps is None else f"{settings.rate_rps:g} req/s"
    return f"{settings.policy}, {short_lengths(settings.lengths)}, {rate}, seed {settings.seed}"


def _plain(settings: SimulateSettings) -> dict[str, Any]:
    """The settings as JSON has them: a rate of infinity is a word."""
    plain: dict[str, Any] = json.loads(settings.model_dump_json())
    return plain


def _trace_info(settings: SimulateSettings, trace: Trace) -> TraceInfo:
    source = Path(settings.trace)
    return TraceInfo(
        source=settings.trace,
        format=trace.format,
        sha256=fingerprint(source) if source.is_file() else trace.sha256,
        length_source=trace.length_source,
        records=len(trace),
    )


def _notes(settings: SimulateSettings, trace: Trace, recorded: bool) -> Iterator[str]:
    rows = [r for r in trace.records if r.response_tokens]
    fits = settings.max_model_len - settings.max_tokens
    usable = [r for r in rows if prompt_length(r) <= fits]
    if len(usable) < len(rows):
        yield f"{len(rows) - len(usable)} of {len(rows)} rows are skipped: their prompts exceed {fits} tokens"
    cut = sum((r.response_tokens or 0) > settings.max_tokens for r in usable)
    if cut:
        yield f"{cut} of {len(usable)} answers are cut at max_tokens {settings.max_tokens}"
    if recorded and len(usable) > settings.requests:
        yield f"the first {settings.requests} of {len(usable)} requests are run"
    if not recorded and len(usable) < settings.requests:
        yield f"{len(usable)} rows make {settings.requests} requests: some are drawn more than once"
    if trace.length_source.startswith("characters"):
        yield "response lengths are estimated from characters; a tokenizer would count them"
    if settings.charge_scheduler == "measured":
        yield "scheduling is charged as measured on this machine: runs do not repeat exactly"
