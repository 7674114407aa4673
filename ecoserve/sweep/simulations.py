"""A handful of simulated runs, one after another in this process: what ``ecoserve simulate`` does.

A sweep reads a plan and runs processes; this takes settings and runs at once. Both have the same run function, the same
rows and the same result folder, so ``ecoserve report`` reads a folder of either.

Rule: what can be refused is refused before the first run begins; rows of the trace that are left out or cut are
counted and said.
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
from typing import Any

from ecoserve.data import Trace
from ecoserve.errors import ConfigError, TraceError
from ecoserve.serving.adapter.settings import STOCK_POLICIES
from ecoserve.serving.simulate.machine import machine_of
from ecoserve.serving.simulate.perfetto import TraceFile
from ecoserve.serving.simulate.run import SimulateSettings, check, simulate
from ecoserve.serving.workload import prompt_length, trace_for
from ecoserve.sweep.environment import describe_run
from ecoserve.sweep.identity import PlannedRun, fingerprint, short_lengths
from ecoserve.sweep.plan import LENGTH_BLIND, SYNTHETIC
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.rows import hashes, run_row
from ecoserve.sweep.summary import Meta, RunRow, Summary, TraceInfo
from ecoserve.sweep.worker import check_settings

#: What differs between runs.
_AXES = ("policy", "lengths", "rate_rps", "seed")
#: Told of the progress: (run, requests of it that have ended, its virtual seconds).
Progress = Callable[[SimulateSettings, int, float], None]


@dataclass(frozen=True, slots=True)
class Simulations:
    """Runs that are ready to begin.

    Attributes:
        runs: what to run, in order.
        meta: what they have in common; its notes say what a reader must know of the load.
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
    common = {k: _located(v) if k in ("trace", "model", "tokenizer") else v for k, v in common.items()}
    told = [f"predicted:{_located(kind[10:])}" if kind.startswith("predicted:") else kind for kind in lengths]
    if common.get("scheduler") and set(policies) <= set(STOCK_POLICIES):
        raise ConfigError(
            f"{', '.join(policies)} have no knobs", where="--scheduler", fix="leave it out, or add a policy of ours"
        )
    limit = common.pop("max_model_len")
    first = _settings({**common, "policy": policies[0]})
    machine = machine_of(first)
    trace = trace_for(first.trace, first.length_field, first.tokenizer, first.split)
    if limit is None:
        longest = max((prompt_length(r) for r in trace.records if r.response_tokens), default=0)
        limit = min(longest + first.max_tokens, machine.blocks * first.block_size, machine.max_model_len or 2**31)
    runs = []
    for rate, policy in itertools.product(rates, policies):
        for kind in ["none"] if policy in LENGTH_BLIND else told:
            axes = {"policy": policy, "lengths": kind, "rate_rps": rate, "max_model_len": limit}
            runs += [_settings({**common, **axes, "seed": seed}) for seed in seeds]
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
            "settings": {
                k: v for k, v in _plain(runs[0]).items() if k not in ("policy", "lengths", "rate_rps", "seed")
            },
            "notes": [*_notes(runs[0], trace, recorded)],
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
        progress: told of whatever ends.

    Raises:
        RunError: if a run fails; those before it are in the folder.
    """
    planned = [(s, _planned(s)) for s in simulations.runs]
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


def _settings(values: dict[str, Any]) -> SimulateSettings:
    settings = check_settings(SimulateSettings, values)
    assert isinstance(settings, SimulateSettings)
    return settings


def _planned(settings: SimulateSettings) -> PlannedRun:
    return PlannedRun.of(_plain(settings), {"engine": "virtual", "condition": None})


def _plain(settings: SimulateSettings) -> dict[str, Any]:
    """The settings as JSON has them: a rate of infinity is a word."""
    plain: dict[str, Any] = json.loads(settings.model_dump_json())
    return plain


def _located(text: Any) -> Any:
    """A path that exists made absolute, so that its content is what names a run; anything else as it is."""
    return str(Path(text).resolve()) if isinstance(text, str) and Path(text).exists() else text


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
        yield f"{len(rows) - len(usable)} of {len(rows)} rows are passed over: their prompts exceed {fits} tokens"
    cut = sum((r.response_tokens or 0) > settings.max_tokens for r in usable)
    if cut:
        yield f"{cut} of {len(usable)} answers are cut at max_tokens {settings.max_tokens}"
    if recorded and len(usable) > settings.requests:
        yield f"the first {settings.requests} of {len(usable)} requests are run"
    if not recorded and len(usable) < settings.requests:
        yield f"{len(usable)} rows stand for {settings.requests} requests: some are drawn more than once"
    if trace.length_source.startswith("characters"):
        yield "response lengths are estimated from characters; a tokenizer would count them"
    if settings.charge_scheduler == "measured":
        yield "scheduling is charged as measured on this machine: runs do not repeat exactly"
