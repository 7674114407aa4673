"""The fewest GPUs with which a load holds its SLO: searched in simulations, checked with fewer, and how sure it is.

One :class:`Sizing` for every GPU kind, policy, router and share. Its candidates are the ways to serve (tensor parallel
size and tuning), in the order of an estimate. The first one is bracketed and halved over replicas; every other one is
tried with the most replicas that need fewer GPUs than the answer so far, and searched further only if that holds. So
the answer has been checked with fewer GPUs by every candidate. A sizing's next runs depend on its own runs only.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from ecoserve.errors import ConfigError
from ecoserve.options import checked
from ecoserve.schema import key, maybe, share
from ecoserve.serving.core.policies import LENGTH_BLIND, SPLIT
from ecoserve.serving.runs import RequestRow, Slo
from ecoserve.serving.simulate.cost import StepWork, alone_s
from ecoserve.serving.simulate.run import SimulateSettings, check
from ecoserve.serving.simulate.settings import Machine
from ecoserve.serving.workload import LoadRequest, prompt_length
from ecoserve.sweep.identity import PlannedRun
from ecoserve.sweep.results import ResultFolder
from ecoserve.sweep.search import Searches
from ecoserve.sweep.statistics import Floats, blocks, central, statistic_of

#: vLLM at its best: priority = the predicted length, and the best of several sizes of a forward.
BEST: Final = "vllm-best"
#: Of a tuning: the share of the replicas that only compute prompts.
_POOL: Final = "prefill_share"
#: Tunings of a policy among which the best counts; any other policy has one, its own name's.
TUNINGS: Final[Mapping[str, Sequence[Mapping[str, Any]]]] = {
    BEST: [{"policy": "vllm-priority", "max_num_batched_tokens": n} for n in (1024, 512, 2048)],
    SPLIT: [{"policy": SPLIT, _POOL: share} for share in (0.5, 0.3, 0.7)],
}
#: Replicas grow by this factor until they hold.
_FACTOR: Final = 1.4
#: Seconds over which a burst is averaged to estimate how many replicas it needs.
_BURST_S: Final = 10.0
#: Requests of which it is asked whether an idle engine holds their SLO.
_ASKED: Final = 2000
#: Parts of the window, by arrival, of which the worst is shown.
PARTS: Final = 10

State = Literal["found", "out of GPUs", "a run failed", "not ended"]


class Trial(BaseModel):
    """A number of replicas that was simulated."""

    model_config = ConfigDict(extra="forbid")

    tp: int = key("GPUs of a replica (tensor parallel).", "count")
    tuning: dict[str, Any] = key("Settings of the policy's tuning.")
    replicas: int = key("Engines behind the router.", "count")
    gpus: int = key("`tp` times `replicas`.", "count")
    attainment: float = share("Share of the requests that met the SLO, mean over the seeds that were run.")
    seeds: dict[int, float] = key("The same by seed.")


class SizingRow(BaseModel):
    """The fewest GPUs of one kind, by policy and router, that hold the SLO for a share of the requests."""

    model_config = ConfigDict(extra="forbid")

    gpu: str = key("Kind of GPU.")
    policy: str = key("Scheduling policy; `vllm-best`: the best of its tunings.")
    lengths: str = key("Source of the lengths.")
    router: str = key("How requests are given to replicas.")
    share: float = share("Share of the requests that is to meet the SLO.")
    state: State = key("How the search ended.")
    answer: Trial | None = maybe("The answer.")
    fewer: list[Trial] = key("The trials with the most GPUs below the answer, one for each way to serve.", default=[])
    trials: list[Trial] = key("All that was simulated, in the order of GPUs.", default=[])
    at_full_batches: int | None = maybe("GPUs if every engine ran full batches all the time: a bound.", "count")
    low: float | None = maybe("95 % interval of the answer's attainment, by blocks of neighbouring requests.", "share")
    high: float | None = maybe("Its upper end.", "share")
    worst_part: float | None = maybe(f"Attainment in the worst of {PARTS} equal parts of the window.", "share")
    slower: float | None = maybe("Attainment of the answer if every step takes `slower_by` longer.", "share")
    slower_by: float = key("Share by which steps are longer in that trial.")
    refused: list[str] = key("Ways to serve that could not be tried, and why.", default=[])


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to serve: a run's settings without replicas and seed; the number of replicas to begin with; and how many
    are busy on average if they always run full batches.
    """

    settings: Mapping[str, Any]
    tuning: Mapping[str, Any]
    tp: int
    start: int
    busy: float = 1.0

    @property
    def least(self) -> int:
        """Replicas that it takes: with pools one for prompts and one for decodes."""
        return 2 if _POOL in self.tuning else 1

    def run(self, replicas: int, seed: int, **more: Any) -> PlannedRun:
        settings = {**self.settings, "replicas": replicas, "seed": seed, **more}
        if _POOL in self.tuning:
            settings["prefill_replicas"] = min(replicas - 1, max(1, round(self.tuning[_POOL] * replicas)))
        return PlannedRun.of(settings, {"engine": "virtual", "condition": None})


#: Candidate, replicas, seed, and further settings of a run that is wanted.
_Ask = tuple[int, int, int, Mapping[str, Any]]


@dataclass(slots=True)
class Sizing:
    """One search: ``candidates`` in the order to be tried, ``most`` GPUs, the share that is to hold."""

    names: Mapping[str, Any]
    share: float
    candidates: Sequence[Candidate]
    seeds: Sequence[int]
    most: int
    slower_by: float
    refused: Sequence[str] = ()
    state: State = "not ended"
    answer: tuple[int, int] | None = None
    slower: float | None = None
    asked: dict[str, tuple[PlannedRun, Any, Any]] = field(default_factory=dict)
    _values: dict[tuple[int, int], dict[int, float]] = field(default_factory=dict)
    _open: set[str] = field(default_factory=set)
    _steps: Generator[list[_Ask], None, None] | None = None

    def begin(self) -> list[PlannedRun]:
        self._steps = self._search()
        return self._next()

    def ended(self, key: str, row: Mapping[str, Any] | None) -> list[PlannedRun]:
        self._open.discard(key)
        _, place, (seed, more) = self.asked[key]
        if row is None or row.get("slo_attainment") is None:
            self.state, self._steps = "a run failed", None
        elif more:
            self.slower = row["slo_attainment"]
        else:
            self._values.setdefault(place, {})[seed] = row["slo_attainment"]
        return [] if self._open else self._next()

    def _next(self) -> list[PlannedRun]:
        wanted = next(self._steps, None) if self._steps is not None else None
        if wanted is None:
            self._steps = None
            return []
        runs = []
        for candidate, replicas, seed, more in wanted:
            run = self.candidates[candidate].run(replicas, seed, **more)
            self.asked[run.key] = (run, (candidate, replicas), (seed, more))
            self._open.add(run.key)
            runs.append(run)
        return runs

    def at_most_left(self) -> int:
        """A guess: the first candidate's halvings, and one run for each of the others."""
        if self._steps is None:
            return 0
        return max(0, self.most.bit_length() + len(self.candidates) * len(self.seeds) - len(self.asked))

    def row(self) -> None:
        """Its result is a :class:`SizingRow`."""

    # -- the search ----------------------------------------------------------------------------------------------

    def _search(self) -> Generator[list[_Ask], None, None]:
        for i, candidate in enumerate(self.candidates):
            most = (self.gpus - 1 if self.answer else self.most) // candidate.tp
            if most >= candidate.least:
                found = yield from self._fewest(i, most, most if self.answer else min(candidate.start, most))
                self.answer = self.answer if found is None else (i, found)
        self.state = "found" if self.answer else "out of GPUs"
        if self.answer and self.slower_by:
            yield [(*self.answer, self.seeds[0], {"slower": self.slower_by})]

    @property
    def gpus(self) -> int:
        assert self.answer is not None
        return self.candidates[self.answer[0]].tp * self.answer[1]

    def _fewest(self, candidate: int, most: int, first: int) -> Generator[list[_Ask], None, int | None]:
        """The fewest replicas of a candidate, at most ``most``, ``first`` tried first; None if ``most`` do not hold."""
        least = self.candidates[candidate].least
        low, high, n, step = least - 1, most + 1, max(first, least), 1
        while high - low > 1:
            if (yield from self._holds(candidate, n, self.seeds[:1])):
                high = n
            else:
                low = n
            if high > most:
                n = min(most, max(n + 1, math.ceil(_FACTOR * n)))
            elif low < least:
                n, step = max(least, n - step), 2 * step
            else:
                n = (low + high) // 2
        # The first seed has found the place; the mean over all of them decides there.
        n = high
        while n <= most and not (yield from self._holds(candidate, n, self.seeds)):
            n += 1
        while least < n <= most and (yield from self._holds(candidate, n - 1, self.seeds)):
            n -= 1
        return n if n <= most else None

    def _holds(self, candidate: int, replicas: int, seeds: Sequence[int]) -> Generator[list[_Ask], None, bool]:
        known = self._values.get((candidate, replicas), {})
        missing: list[_Ask] = [(candidate, replicas, seed, {}) for seed in seeds if seed not in known]
        if missing:
            yield missing
        return fmean(self._values[candidate, replicas].values()) >= self.share

    # -- its result ----------------------------------------------------------------------------------------------

    def trials(self) -> list[Trial]:
        found = [
            Trial(
                tp=c.tp,
                tuning=dict(c.tuning),
                replicas=replicas,
                gpus=c.tp * replicas,
                attainment=fmean(values.values()),
                seeds=values,
            )
            for (i, replicas), values in self._values.items()
            for c in [self.candidates[i]]
        ]
        return sorted(found, key=lambda t: (t.gpus, t.tp))

    def result(self, folder: ResultFolder) -> SizingRow:
        trials = self.trials()
        row = SizingRow(
            **self.names,
            share=self.share,
            state=self.state,
            trials=trials,
            at_full_batches=min((c.tp * math.ceil(c.busy) for c in self.candidates), default=None),
            slower=self.slower,
            slower_by=self.slower_by,
            refused=list(self.refused),
        )
        if self.answer is None or self.state == "a run failed":
            return row
        chosen, replicas = self.candidates[self.answer[0]], self.answer[1]
        answer = next(t for t in trials if (t.tp, t.replicas, t.tuning) == (chosen.tp, replicas, dict(chosen.tuning)))
        below: dict[str, Trial] = {f"{t.tp} {t.tuning}": t for t in trials if t.gpus < answer.gpus}
        low, high, worst = _sureness(folder, chosen.run(replicas, self.seeds[0]))
        return row.model_copy(
            update={"answer": answer, "fewer": list(below.values()), "low": low, "high": high, "worst_part": worst}
        )


def _sureness(folder: ResultFolder, run: PlannedRun) -> tuple[float, float, float]:
    """Of a finished run: the interval of its attainment over blocks of neighbours, and the worst part's."""
    settings = SimulateSettings.model_validate(run.settings)
    slo = Slo(*(None if ms is None else ms / 1e3 for ms in (settings.slo_ttft_ms, settings.slo_tpot_ms)))
    names = [n for n in RequestRow.__dataclass_fields__ if n in folder.requests(run.key).column_names]
    rows = [RequestRow(**row) for row in folder.requests(run.key).select(names).to_pylist()]
    rows.sort(key=lambda r: r.arrival_s)
    met = np.asarray([bool(slo.met_by(r)) for r in rows], dtype=np.float64)
    samples = statistic_of("mean")(met[blocks(len(met), np.random.default_rng(0))])
    low, high = central(samples)
    end = rows[-1].arrival_s or 1.0
    part = np.asarray([min(PARTS - 1, int(PARTS * r.arrival_s / end)) for r in rows])
    return low, high, min(float(met[part == p].mean()) for p in range(PARTS) if (part == p).any())


class Sizings(Searches):
    """All searches of ``ecoserve plan``, ready to be run.

    ``load``: the settings that all their runs share; ``window_s``: seconds from its first arrival to its last.
    """

    def __init__(self, sizings: Sequence[Sizing], load: SimulateSettings, window_s: float) -> None:
        super().__init__(sizings)
        self._sizings = sizings
        self.load = load
        self.window_s = window_s

    def results(self, folder: ResultFolder) -> list[SizingRow]:
        return [sizing.result(folder) for sizing in self._sizings]


def prepare(
    common: Mapping[str, Any],
    *,
    gpus: Sequence[str],
    tps: Sequence[int],
    policies: Sequence[str],
    routers: Sequence[str],
    shares: Sequence[float],
    seeds: Sequence[int],
    most: int,
    slower_by: float,
) -> Sizings:
    """Make the searches; ConfigError for what cannot be tried, or if no number of GPUs can hold the SLO.

    Args:
        common: further fields of :class:`SimulateSettings`; where ``requests`` or ``max_model_len`` is None, the whole
            trace, and what its longest prompt and ``max_tokens`` need.
        tps: tensor parallel sizes; those that do not fit are left out, and said so.
        most: GPUs at most.
        slower_by: by this share longer steps are tried at the answer.
    """
    first = checked(SimulateSettings, {k: v for k, v in common.items() if v is not None})
    if first.slo_scale is first.slo_ttft_ms is first.slo_tpot_ms is None:
        raise ConfigError("there is no SLO to hold", where="plan", fix="state one, as --slo-ttft-ms 1000")
    records = [r for r in first.read_trace().records if r.response_tokens]
    recorded = sum(r.arrival_s is not None for r in records)
    whole = {
        "requests": recorded if first.rate_rps is None else len(records),
        "max_model_len": max((prompt_length(r) for r in records), default=1) + first.max_tokens,
    }
    settings = {**common, **{name: max(1, n) for name, n in whole.items() if common.get(name) is None}}
    load = checked(SimulateSettings, {**settings, "lengths": "none"}).load(settings["max_model_len"] - first.max_tokens)
    tried = partial(_candidates, settings, load, tps, most)
    sizings = []
    for gpu, policy, router in itertools.product(gpus, policies, routers):
        found, refused = tried(gpu, policy, router)
        lengths = "none" if policy in LENGTH_BLIND else settings["lengths"]
        names = {"gpu": gpu, "policy": policy, "lengths": lengths, "router": router}
        for wanted in shares:
            able, slow = [], []
            for candidate, works, idle in found:
                if idle >= wanted:
                    start = max(1, math.ceil(float(np.quantile(works, wanted))))
                    able.append(replace(candidate, start=start))
                else:
                    slow.append(f"{gpu} tp {candidate.tp}: even an idle engine holds the SLO for {idle:.1%} only")
            able.sort(key=lambda c: c.tp * c.start)
            sizings.append(Sizing(names, wanted, able, seeds, most, slower_by, list(dict.fromkeys(refused + slow))))
    if not any(sizing.candidates for sizing in sizings):
        raise ConfigError(
            f"no number of GPUs holds the SLO for {min(shares):.2%} of the requests: {sizings[0].refused[-1]}",
            where="plan",
            fix="allow more time, or take a faster GPU, a larger --tp or a smaller model",
        )
    return Sizings([s for s in sizings if s.candidates], SimulateSettings.model_validate(settings), load[-1].arrival_s)


def _candidates(
    settings: Mapping[str, Any], load: Sequence[LoadRequest], tps: Sequence[int], most: int, gpu: str, policy: str,
    router: str,
) -> tuple[list[tuple[Candidate, Floats, float]], list[str]]:  # fmt: skip
    """Ways to serve, each with the engines that are busy around every request and the share of requests whose SLO an
    idle engine holds; and those that are refused, with why.
    """
    found, refused = [], []
    for tp, tuning in itertools.product(tps, TUNINGS.get(policy, [{"policy": policy}])):
        own = {**settings, **tuning, "gpu": gpu, "tp": tp, "router": router}
        pools = {"replicas": 2} if own.pop(_POOL, None) else {}
        if tuning["policy"] in LENGTH_BLIND:
            own["lengths"] = "none"
        if tp > most:
            refused.append(f"{gpu} tp {tp}: more than {most} GPUs")
            continue
        try:
            run = checked(SimulateSettings, own | pools, "plan")
            machine = check(run)
        except ConfigError as error:
            refused.append(f"{gpu} tp {tp}: {error.what}")
            continue
        average, around = _busy(run, machine, load)
        found.append((Candidate(own, tuning, tp, 1, average), around, _held_idle(run, machine, load)))
    if not found:
        raise ConfigError("; ".join(dict.fromkeys(refused)), where="plan")
    return found, list(dict.fromkeys(refused))


def _busy(settings: SimulateSettings, machine: Machine, load: Sequence[LoadRequest]) -> tuple[float, Floats]:
    """Engines that the load keeps busy if all run full forwards of prompts and full batches of decodes: on average,
    and in the seconds before each request.
    """
    forward = settings.max_num_batched_tokens
    prompts = np.asarray([r.prompt_tokens for r in load], dtype=np.float64)
    responses = np.asarray([r.response_tokens for r in load], dtype=np.float64)
    arrivals = np.asarray([r.arrival_s for r in load])
    context = int(prompts.mean() + responses.mean() / 2) + 1
    batch = max(1, min(settings.max_num_seqs, machine.blocks * settings.block_size // context))
    prefill = machine.cost.seconds(StepWork(forward, 0, forward, [(forward, 0)])) / forward
    decode = machine.cost.seconds(StepWork(0, batch, batch * context, [], batch * context, context)) / batch
    work = np.concatenate(([0.0], np.cumsum(prompts * prefill + responses * decode)))
    before = np.searchsorted(arrivals, arrivals - _BURST_S)
    around = (work[1:] - work[before]) / _BURST_S
    return float(work[-1] / (arrivals[-1] or _BURST_S)), around


def _held_idle(settings: SimulateSettings, machine: Machine, load: Sequence[LoadRequest]) -> float:
    """The share of requests whose SLO is held by an engine that has nothing else to do."""
    some = load[:: max(1, len(load) // _ASKED)]
    alone = partial(_alone_s, settings, machine)
    return fmean(all(_idle_verdicts(settings, alone(r, 1), alone(r, r.response_tokens), r)) for r in some)


def _alone_s(settings: SimulateSettings, machine: Machine, request: LoadRequest, tokens: int) -> float:
    return alone_s(machine.cost, request.prompt_tokens, tokens, settings.depth, settings.max_num_batched_tokens)


def _idle_verdicts(settings: SimulateSettings, first_s: float, last_s: float, request: LoadRequest) -> Iterator[bool]:
    yield settings.slo_scale is None or settings.slo_scale >= 1
    yield settings.slo_ttft_ms is None or first_s * 1e3 <= settings.slo_ttft_ms
    each_s = (last_s - first_s) / max(1, request.response_tokens - 1)
    yield settings.slo_tpot_ms is None or each_s * 1e3 <= settings.slo_tpot_ms
