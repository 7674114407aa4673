"""One run (one policy, one rate, one seed) and its metrics: the only place where they are defined.

Times are seconds on the clock of the run (virtual or wall), lengths are tokens. The keys of a summary are those of
docs/reference/results-schema.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Final, Literal

import numpy as np

from ecoserve.serving.core.counters import Counters

#: The most intervals that are kept of a run.
MOST: Final = 200
#: Width of the first intervals, in seconds.
FIRST_WIDTH_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class KVPoint:
    """Averages over an interval of ``seconds`` from ``at_s`` on, of one replica, as shares of its usable KV.

    ``held``: blocks taken; ``reserved``: beyond what is written; ``lent``: of these, to guests; ``wasted``: see
    :func:`wasted_blocks`.
    """

    replica: int
    at_s: float
    seconds: float
    held: float
    reserved: float
    lent: float
    wasted: float | None


class KVSeries:
    """Averages of one replica's KV over equal intervals, thinned while a run goes on: at most :data:`MOST` of them.

    Whenever the run outgrows them, neighbours are merged and the width doubles. States are given in order of time; time
    for which none is given counts as an empty cache. ``start_s``: when the run begins, on its clock.
    """

    def __init__(self, usable_blocks: int, replica: int = 0, start_s: float = 0.0) -> None:
        self.usable_blocks = max(1, usable_blocks)
        self.replica = replica
        self.width_s = FIRST_WIDTH_S
        #: over the whole run: block-seconds held, reserved and lent, and the seconds
        self.block_seconds = [0.0, 0.0, 0.0]
        self.seconds = 0.0
        self._start_s = self._end_s = start_s
        #: block-seconds of each interval: held, reserved, lent, wasted
        self._area: list[list[float]] = []
        self._waste_known = True

    @property
    def interval(self) -> int:
        return len(self._area)

    def add(self, at_s: float, seconds: float, held: float, reserved: float, lent: float, wasted: float | None) -> None:
        if wasted is None:
            self._waste_known = False
        state = (held, reserved, lent, wasted or 0.0)
        self.seconds += seconds
        for k in range(3):
            self.block_seconds[k] += state[k] * seconds
        begin = max(0.0, at_s - self._start_s)
        end = begin + seconds
        while end > MOST * self.width_s:
            self._merge()
        first, last = int(begin / self.width_s), int(end / self.width_s)
        while len(self._area) <= last:
            self._area.append([0.0, 0.0, 0.0, 0.0])
        for i in range(first, last + 1):
            share = min(end, (i + 1) * self.width_s) - max(begin, i * self.width_s)
            if share > 0:
                area = self._area[i]
                for k, blocks in enumerate(state):
                    area[k] += blocks * share
        self._end_s = max(self._end_s, at_s + seconds)

    def points(self) -> list[KVPoint]:
        """The averages so far; the last interval ends where the last state did."""
        found = []
        for i, area in enumerate(self._area):
            at = i * self.width_s
            seconds = min(self.width_s, self._end_s - self._start_s - at)
            if seconds <= 0:
                break
            held, reserved, lent, wasted = (a / seconds / self.usable_blocks for a in area)
            known = wasted if self._waste_known else None
            found.append(KVPoint(self.replica, self._start_s + at, seconds, held, reserved, lent, known))
        return found

    def _merge(self) -> None:
        self.width_s *= 2
        area = self._area
        if len(area) % 2:
            area.append([0.0, 0.0, 0.0, 0.0])
        self._area = [[a + b for a, b in zip(*pair, strict=True)] for pair in zip(area[::2], area[1::2], strict=True)]


def wasted_blocks(scheduler: Any, response_tokens: Mapping[str, int]) -> float:
    """Blocks reserved beyond what the response will need and not lent, and those held by paused requests.

    Args:
        scheduler: a ``CountingScheduler`` or a subclass; 0 for one that neither reserves nor pauses.
        response_tokens: true lengths by request id; a request that is not named is taken to need all it reserved.
    """
    planner = getattr(scheduler, "planner", None)
    if planner is None:
        return 0.0
    ledger, over, paused = planner.ledger, 0, 0
    for task in ledger.holders():
        written = ledger.blocks(task.written)
        true = response_tokens.get(task.request_id)
        if true is not None:
            needed = max(written, ledger.blocks(task.prompt_tokens + true))
            over += max(0, ledger.promised_blocks(task) - needed)
        if task.state.value == "paused":
            paused += written
    return float(max(0, over - planner.kv_policy.lent_blocks()) + paused)


Status = Literal["completed", "rejected", "failed"]

#: Counters of wrong predictions: how many, then the actions taken after an under-prediction, cheapest first.
MISPREDICTIONS: Final = tuple(f.name for f in fields(Counters) if f.name.startswith(("under", "over")))


@dataclass(slots=True)
class RequestRow:
    request_id: str
    arrival_s: float
    prompt_tokens: int
    status: Status = "completed"
    output_tokens: int = 0
    first_token_s: float | None = None
    finish_s: float | None = None
    predicted_tokens: float | None = None
    preemptions: int = 0
    pauses: int = 0
    #: how many of the output tokens were thinking, as a server counts them, else by their share of the characters
    thinking_tokens: int | None = None
    #: probability integral transform of the response length under its prediction (``LoadRequest.pit``)
    pit: float | None = None
    #: the deadline for the last token on the run's clock, if the request has one
    deadline_s: float | None = None
    error: str | None = None

    @property
    def e2el_s(self) -> float | None:
        """End-to-end latency (JCT): arrival to last token."""
        return None if self.finish_s is None else self.finish_s - self.arrival_s

    @property
    def ttft_s(self) -> float | None:
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None for responses of one token."""
        if self.first_token_s is None or self.finish_s is None or self.output_tokens < 2:
            return None
        return (self.finish_s - self.first_token_s) / (self.output_tokens - 1)

    @property
    def normalized_latency_s(self) -> float | None:
        """E2EL divided by the generated tokens."""
        e2el = self.e2el_s
        return None if e2el is None or self.output_tokens < 1 else e2el / self.output_tokens

    @property
    def met_deadline(self) -> bool | None:
        """Whether the last token came by the deadline; None where there is no deadline."""
        if self.deadline_s is None:
            return None
        return self.finish_s is not None and self.finish_s <= self.deadline_s


@dataclass(slots=True)
class EngineTotals:
    """What the engine counted over the run (see :class:`ecoserve.serving.core.counters.Counters`)."""

    preemptions: int = 0
    recomputed_tokens: int = 0
    pauses: int = 0
    re_reservations: int = 0
    steps: int = 0
    #: shares of the usable KV, averaged over the run's time
    #: prompt tokens that were in the prefix cache when their requests began; None: not known
    cached_tokens: int | None = None
    kv_used_mean: float | None = None
    kv_reserved_mean: float | None = None
    kv_lent_mean: float | None = None
    #: :data:`MISPREDICTIONS` by name; empty where the engine does not count them
    mispredictions: Mapping[str, int] = field(default_factory=dict)
    schedule_s: Sequence[float] = ()
    update_s: Sequence[float] = ()

    @classmethod
    def of(cls, counters: Sequence[Counters], kv: Sequence[KVSeries] = (), **more: Any) -> EngineTotals:
        """Sums over schedulers; KV shares are means over their busy time."""
        seconds = sum(series.seconds for series in kv)
        if seconds > 0:
            usable = kv[0].usable_blocks
            shares = (sum(series.block_seconds[i] for series in kv) / seconds / usable for i in range(3))
            more |= dict(zip(("kv_used_mean", "kv_reserved_mean", "kv_lent_mean"), shares, strict=True))
        counted = ("preemptions", "recomputed_tokens", "pauses", "re_reservations", "steps")
        return cls(
            **{name: sum(getattr(c, name) for c in counters) for name in counted},
            mispredictions={name: sum(getattr(c, name) for c in counters) for name in MISPREDICTIONS},
            **more,
        )


@dataclass(frozen=True, slots=True)
class Slo:
    """Bounds for every request of a run, in seconds; None: no bound."""

    ttft_s: float | None = None
    tpot_s: float | None = None

    def met_by(self, row: RequestRow) -> bool | None:
        """Whether a request met its bounds and its own deadline; None if it has none of them."""
        verdicts = [row.met_deadline]
        if self.ttft_s is not None:
            verdicts.append(row.finish_s is not None and row.ttft_s is not None and row.ttft_s <= self.ttft_s)
        if self.tpot_s is not None:
            # A response of one token has no time per token after the first, and cannot miss it.
            verdicts.append(row.finish_s is not None and (row.tpot_s or 0.0) <= self.tpot_s)
        known = [v for v in verdicts if v is not None]
        return all(known) if known else None


@dataclass(slots=True)
class RunResult:
    """One run: what was asked, what happened to each request, and the engine's totals."""

    policy: str
    lengths: str
    rate_rps: float | None
    seed: int
    rows: list[RequestRow]
    totals: EngineTotals
    #: anything else that identifies the run: depth, slo_scale, blocks, trace, ...
    labels: dict[str, Any] = field(default_factory=dict)
    slo: Slo = Slo()
    #: KV over time, thinned
    kv: list[KVPoint] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The run's flat summary; a figure that cannot be given is None, never NaN."""
        done = [r for r in self.rows if r.status == "completed"]
        start = min((r.arrival_s for r in self.rows), default=0.0)
        duration = max((r.finish_s for r in done if r.finish_s is not None), default=start) - start
        met = [self.slo.met_by(r) for r in self.rows if r.status != "rejected"]
        verdicts = [m for m in met if m is not None]
        out: dict[str, Any] = {
            "policy": self.policy,
            "lengths": self.lengths,
            "rate_rps": self.rate_rps,
            "seed": self.seed,
            **self.labels,
            "requests": len(self.rows),
            "completed": len(done),
            "rejected": sum(r.status == "rejected" for r in self.rows),
            "failed": sum(r.status == "failed" for r in self.rows),
            "duration_s": duration,
            "throughput_rps": _ratio(len(done), duration),
            "output_tokens_per_s": _ratio(sum(r.output_tokens for r in done), duration),
            "goodput_rps": _ratio(sum(v is True for v in verdicts), duration) if verdicts else None,
            "slo_attainment": _ratio(sum(v is True for v in verdicts), len(verdicts)),
        }
        for name in ("ttft", "tpot", "e2el", "normalized_latency"):
            known = [v for r in done if (v := getattr(r, f"{name}_s")) is not None]
            out[f"{name}_mean_ms"] = float(np.mean(known)) * 1e3 if known else None
            for q in (50, 90, 99):
                out[f"{name}_p{q}_ms"] = _percentile_ms(known, q)
        t = self.totals
        return out | {
            "preemptions": t.preemptions,
            "recomputed_tokens": t.recomputed_tokens,
            "pauses": t.pauses,
            "re_reservations": t.re_reservations,
            **{name: t.mispredictions.get(name) for name in MISPREDICTIONS},
            "prefix_hits": None
            if t.cached_tokens is None
            else _ratio(t.cached_tokens, sum(r.prompt_tokens for r in self.rows)),
            "kv_used_mean": t.kv_used_mean,
            "kv_reserved_mean": t.kv_reserved_mean,
            "kv_lent_mean": t.kv_lent_mean,
            "schedule_p50_ms": _percentile_ms(t.schedule_s, 50),
            "schedule_p99_ms": _percentile_ms(t.schedule_s, 99),
            "update_p50_ms": _percentile_ms(t.update_s, 50),
            "steps": t.steps,
        }


def _ratio(a: float, b: float) -> float | None:
    return a / b if b > 0 else None


def _percentile_ms(seconds: Sequence[float], q: float) -> float | None:
    return float(np.percentile(seconds, q)) * 1e3 if len(seconds) else None
