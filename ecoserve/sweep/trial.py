"""``ecoserve try``: vLLM's default, vLLM by priority and ours, alternating on one real engine.

A calibration finds what vLLM's default can serve; the rates are half of it, it, and 1.5 times it. A repeat runs every
row at every rate with one seed: the same requests at the same times. Rows follow each other directly, in an order that
is drawn, so that a machine that slows down does so for all of them. There are as many repeats as time allows.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from ecoserve.data import Trace
from ecoserve.errors import ConfigError
from ecoserve.predictor import load_predictor
from ecoserve.serving.core.policies import POLICIES
from ecoserve.serving.engine_run import EngineRunSettings, prepare, run_on, set_policy, stop_engine
from ecoserve.serving.length_source import LengthSource
from ecoserve.serving.trial_engine import Capacity, Planned, calibrate, facts, plan_engine, start
from ecoserve.serving.workload import LoadRequest
from ecoserve.sweep.identity import PlannedRun, describe_run, trace_info
from ecoserve.sweep.plan import SYNTHETIC
from ecoserve.sweep.report import write_report
from ecoserve.sweep.reporting.report_data import ReportData
from ecoserve.sweep.reporting.trial_parts import sentence
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.simulations import fit_notes
from ecoserve.sweep.summary import Meta, TrialRow
from ecoserve.sweep.trial_beside import (
    modelled_figures,
    modelled_machine,
    modelled_steps,
    predictor_times,
    training_time,
)

#: Load conditions: name, and arrivals over what vLLM's default can serve.
RATES: Final = {"half capacity": 0.5, "at capacity": 1.0, "1.5 times capacity": 1.5}
#: Repeats at least, and those that runs are cut to where they are long enough for it.
LEAST_REPEATS: Final = 3
_REPEATS: Final = 5
_MOST_REPEATS: Final = 20
#: A run is long if it takes so many times as long as a request stays in a full engine.
_LONG: Final = 2.0
_FEWEST_REQUESTS: Final = 10
#: Shares of the time: the calibration at most, and what is kept for the model of the GPU and the report.
_CALIBRATION: Final = 0.12
_KEPT: Final = 0.06
#: Share of the time that is planned with: other work on the machine takes some.
_PLANNED: Final = 0.85
#: Called with what is done, how much of it, and of how much.
Progress = Callable[[str, int, int | None], None]


def rows_of(policy: str, lengths: str) -> list[tuple[str, str]]:
    """(policy, source of lengths) of each row; priorities need lengths."""
    rows = [("vllm", "none"), ("vllm-priority", lengths), (policy, lengths)]
    return [row for row in rows if row != ("vllm-priority", "none")]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a trial is asked for. ``settings``: of every run, as far as known; ``begun``: on the monotonic clock;
    ``driver``: of the GPU, None where the model runs on the CPU.
    """

    model: str
    flags: Sequence[str]
    settings: EngineRunSettings
    predictor: str | None
    begun: float
    minutes: float
    output: Path
    driver: str | None
    command: str


def try_it(asked: Asked, progress: Progress) -> tuple[ResultFolder, Path]:
    """Check everything, start the engine, run, and write the report; returns the folder and the report's path.

    Raises InputError for what cannot be used, before the engine starts; RunError if it fails.
    """
    settings = asked.settings
    LengthSource.parse(settings.lengths)
    trace = settings.read_trace()
    if asked.predictor is not None:
        load_predictor(asked.predictor)
    prepare(settings.threads)
    progress("vLLM reads its settings", 0, None)
    with TemporaryDirectory(prefix="ecoserve-try-") as work:
        planned = plan_engine(asked.model, asked.flags, Path(work))
        limit = int(planned.config.model_config.max_model_len)
        if "max_tokens" not in settings.model_fields_set:
            longest = max((r.response_tokens or 1 for r in trace.records), default=1)
            settings = settings.model_copy(update={"max_tokens": min(limit // 2, longest)})
        at_once = settings.model_copy(update={"rate_rps": math.inf})
        at_once.load(limit - settings.max_tokens, LengthSource("none"))  # some rows must fit
        folder = ResultFolder.create(asked.output, _meta(asked, trace))
        progress("the engine starts", 0, None)
        engine, planned = start(planned)
        try:
            return folder, _try_on(engine, planned, folder, settings, asked, trace, progress)
        finally:
            stop_engine(engine)


def _try_on(
    engine: Any,
    planned: Planned,
    folder: ResultFolder,
    settings: EngineRunSettings,
    asked: Asked,
    trace: Trace,
    progress: Progress,
) -> Path:
    found = facts(engine)
    settings = settings.model_copy(update={k: v for k, v in found.items() if k in EngineRunSettings.model_fields})
    longest = (settings.max_model_len or 0) - settings.max_tokens
    folder.describe(
        model_runner=found["model_runner"],
        scheduler_mode=found["scheduler_mode"],
        hardware=folder.meta.hardware | ({"gpu": found["gpu"], "driver": asked.driver or "?"} if found["gpu"] else {}),
        settings={**settings.model_dump(mode="json", exclude_none=True), "vllm_flags": list(asked.flags)},
        notes=[*folder.meta.notes, *fit_notes(trace, longest, settings.max_tokens)],
    )
    row = TrialRow(level=planned.level, level_reason=planned.why, order_seed=settings.seed)
    row.engine_start_s = time.monotonic() - asked.begun
    end = asked.begun + 60 * asked.minutes
    rows = rows_of(planned.policy, settings.lengths)
    deadline = end - _KEPT * (end - time.monotonic())
    trial = Trial(engine, folder, settings, rows, planned.scheduler, row, asked.begun, deadline, progress)
    try:
        trial.run()
        if row.ended != "interrupted":
            trial.deadline = end
            progress("beside the runs", 0, None)
            notes = list(_beside(trial, asked, planned, found, trace))
            folder.describe(notes=[*folder.meta.notes, *notes])
    except KeyboardInterrupt:
        row.ended = "interrupted"
    finally:
        trial.write()
        report = write_report(folder)
    return report


def _beside(trial: Trial, asked: Asked, planned: Planned, found: Mapping[str, Any], trace: Trace) -> Iterator[str]:
    """What is measured beside the runs; gives a note on what is not."""
    row, common = trial.row, trial.common
    if found["gpu"] is None:
        yield "There is no GPU here: none is modelled beside it, and the predictor is timed on the CPU."
    else:
        machine = {"gpu": found["gpu"], "tp": found["gpus"], "depth": 2 if found["asynchronous"] else 1}
        try:
            machine["model"] = planned.config.model_config.model
            settings = modelled_machine(common, trial.scheduler, machine)
            row.steps += modelled_steps(trial.engine, settings)
            by_key = {run.key: run for run in trial.folder.expected}
            for run in trial.folder.summary().runs:
                if (run.condition, run.seed) == ("at capacity", common.seed) and trial.left_s() > 0:
                    row.modelled += modelled_figures(run, by_key[run.run], settings)
        except ConfigError as error:
            yield f"No model of this GPU is beside it: {error}"
    prompts = [r.chat() for r in trace.records if r.prompt]
    if asked.predictor is None or not prompts:
        return
    row.predictor_times += predictor_times(asked.predictor, prompts, ["cpu", *(["cuda"] if found["gpu"] else [])])
    if found["gpu"] and trial.left_s() > 0:
        row.predictor_times.append(training_time(trace))


def _meta(asked: Asked, trace: Trace) -> Meta:
    settings = asked.settings
    clock = "CPU time of one thread" if settings.clock == "cpu" else "wall-clock time"
    predictor = Path(asked.predictor).name if asked.predictor else None
    return describe_run(f"ecoserve try {Path(asked.model).name}", [asked.command]).model_copy(
        update={
            "synthetic": settings.trace.partition(":")[0] == SYNTHETIC,
            "trace": trace_info(settings.trace, trace),
            "served_predictor": predictor,
            "notes": [
                *trace.report.warnings,
                f"One vLLM engine in this process, without its HTTP server; times are {clock}. Schedulers alternate on "
                "it. Responses have their recorded lengths; predictions are made before a run.",
            ],
        }
    )


def run_seconds(left_s: float, rows: int, capacity: Capacity) -> float:
    """How long requests arrive in a run: five repeats fit into ``left_s``, or fewer, but three, if runs get longer than
    a few stays of a request.
    """
    # Under overload what came in is served at capacity.
    of_a_repeat = rows * capacity.wall * sum(max(1.0, factor) for factor in RATES.values())
    most, least = (_PLANNED * left_s / of_a_repeat / n for n in (LEAST_REPEATS, _REPEATS))
    return max(least, min(most, _LONG * capacity.stay_s))


def drawn(runs: Sequence[PlannedRun], rows: int, order: random.Random) -> Iterator[PlannedRun]:
    """``runs`` of a repeat, ``rows`` of each rate next to each other, in an order drawn for rates and rows."""
    rates = [list(runs[i : i + rows]) for i in range(0, len(runs), rows)]
    order.shuffle(rates)
    for same_rate in rates:
        order.shuffle(same_rate)
        yield from same_rate


@dataclass(slots=True)
class Trial:
    """A trial on an engine that runs; what it finds is in ``folder`` and ``row``.

    ``common``: settings of every run. ``rows``: (policy, lengths). ``scheduler``: settings of ours. ``begun``,
    ``deadline``: on the monotonic clock.
    """

    engine: Any
    folder: ResultFolder
    common: EngineRunSettings
    rows: Sequence[tuple[str, str]]
    scheduler: Mapping[str, Any]
    row: TrialRow
    begun: float
    deadline: float
    progress: Progress
    _loads: dict[tuple[int, float | None, bool], list[LoadRequest]] = field(default_factory=dict)

    def run(self) -> None:
        """Calibrate, then repeat until time is up. After Ctrl-C, or a failure, what was run is written."""
        try:
            self.progress("calibration", 0, None)
            capacity = calibrate(self.engine, self.common, self.longest_prompt, _CALIBRATION * self.left_s())
            self.row.capacity_rps = capacity.rps
            self._repeat(capacity)
        except KeyboardInterrupt:
            self.row.ended = "interrupted"
        finally:
            self.write()

    def write(self) -> None:
        self.row.wall_s = time.monotonic() - self.begun
        self.row.sentence = sentence(ReportData(self.folder.summary()))
        self.folder.set_trial(self.row)
        self.folder.write_summary()

    def left_s(self) -> float:
        return self.deadline - time.monotonic()

    @property
    def longest_prompt(self) -> int:
        return (self.common.max_model_len or 0) - self.common.max_tokens

    def _repeat(self, capacity: Capacity) -> None:
        seconds = run_seconds(self.left_s(), len(self.rows), capacity)
        order = random.Random(self.row.order_seed)
        longest_s = 0.0
        for repeat in range(_MOST_REPEATS):
            begun = time.monotonic()
            if repeat >= LEAST_REPEATS and longest_s > self.left_s():
                return
            if not self.repeat(repeat, seconds, capacity.rps, order):
                self.row.ended = "time"
                return
            longest_s = max(longest_s, time.monotonic() - begun)

    def repeat(self, number: int, seconds: float, capacity_rps: float, order: random.Random) -> bool:
        """Every row at every rate once, each with ``seconds`` of arrivals; False if time was up before the end."""
        seed = self.common.seed + number
        runs = [self._planned(name, row, seconds, capacity_rps, seed) for name in RATES for row in self.rows]
        self.folder.expect(runs)
        for done, run in enumerate(drawn(runs, len(self.rows), order)):
            if self.left_s() < 0:
                return False
            self.progress(f"repeat {number + 1}: {run}", done, len(runs))
            self._one(run)
        self.row.repeats += 1
        return True

    def _planned(self, name: str, row: tuple[str, str], seconds: float, capacity_rps: float, seed: int) -> PlannedRun:
        rate = float(f"{RATES[name] * capacity_rps:.3g}")
        changes = {
            **dict(zip(("policy", "lengths"), row, strict=True)),
            "rate_rps": rate,
            "seed": seed,
            "requests": max(_FEWEST_REQUESTS, round(rate * seconds)),
        }
        settings = self.common.model_copy(update=changes).model_dump(mode="json")
        return PlannedRun.of(settings, {"engine": "in-process", "condition": name})

    def _one(self, run: PlannedRun) -> None:
        settings = EngineRunSettings.model_validate(run.settings)
        load = self._load(settings)
        begun = time.monotonic()
        set_policy(self.engine, str(settings.policy), self.scheduler if settings.policy in POLICIES else {})
        result = run_on(self.engine, settings, load)
        self.folder.add(run, result, wall_s=time.monotonic() - begun)

    def _load(self, settings: EngineRunSettings) -> list[LoadRequest]:
        """The requests of a run; rows of one repeat and rate share them, and their predictions."""
        blind = settings.lengths == "none"
        key = (settings.seed, settings.rate_rps, blind)
        if key not in self._loads:
            self._loads = {k: v for k, v in self._loads.items() if k[:2] == key[:2]}
            self._loads[key] = settings.load(self.longest_prompt, LengthSource("none") if blind else None)
        return self._loads[key]
