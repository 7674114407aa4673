"""The load of a run: which requests arrive when, how long their responses are, and what is predicted of that.

The same for virtual time, the in-process engine and a URL, so that their runs can be compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import count, takewhile
from typing import Any, Final, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from ecoserve.data import Record, Trace, load_trace, poisson_arrivals, split_trace, synthetic_trace
from ecoserve.data.measuring import CHARACTERS_PER_TOKEN
from ecoserve.errors import InputError, TraceError
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core import keys
from ecoserve.serving.core.policies import LENGTH_BOUND, ORDER
from ecoserve.serving.core.request_priority import RequestPriority
from ecoserve.serving.length_source import LengthSource
from ecoserve.serving.runs import EngineTotals, RequestRow, RunResult

#: The policy of vLLM's own scheduler that goes by request priorities.
_BY_PRIORITY: Final = "vllm-priority"
_priority: Final = RequestPriority()
#: Token ids that every vocabulary has and that mean nothing special, for prompts of which only the length is known.
PLAIN_IDS: Final = (300, 1000)


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One request of a load; ``name`` is unique within it, ``arrival_s`` counts from its start.

    ``prompt_tokens``, ``response_tokens``: recorded or estimated lengths; the response's is cut at ``max_tokens``.
    ``lengths``: the predicted distribution of the response length, or None. In a closed loop a request comes
    ``think_s`` seconds after the end of the request named ``after``; ``arrival_s`` is then the earliest possible.
    """

    name: str
    arrival_s: float
    record: Record
    prompt_tokens: int
    response_tokens: int
    lengths: LengthDistribution | None
    after: str | None = None
    think_s: float = 0.0

    @property
    def predicted_tokens(self) -> int | None:
        return self.lengths.quantile(0.5) if self.lengths else None

    @property
    def pit(self) -> float | None:
        """Probability integral transform (PIT) of the response length under its prediction.

        The mid-distribution form: probability of a shorter response plus half that of an equal one. Uniform over 0..1
        where predictions are calibrated.
        """
        if self.lengths is None:
            return None
        n = self.response_tokens
        return 1.0 - (self.lengths.survival(n) + self.lengths.survival(n - 1)) / 2.0

    @property
    def messages(self) -> list[dict[str, str]]:
        """The request as chat messages; empty where the trace has lengths only."""
        return [{"role": m.role, "content": m.content} for m in self.record.chat()]

    def row(self, prompt_tokens: int | None = None) -> RequestRow:
        tokens = self.prompt_tokens if prompt_tokens is None else prompt_tokens
        return RequestRow(self.name, self.arrival_s, tokens, predicted_tokens=self.predicted_tokens, pit=self.pit)

    def extra_args(self, *, replay: bool) -> dict[str, Any]:
        """What goes into ``vllm_xargs``: the prediction, and with ``replay`` the length to force."""
        out: dict[str, Any] = {keys.REPLAY_TOKENS: self.response_tokens} if replay else {}
        if self.lengths is not None:
            out[keys.LENGTHS] = self.lengths.to_wire()
        return out

    def priority(self, policy: str, max_tokens: int) -> int:
        """vLLM's request priority: the predicted length under ``vllm-priority``, by rank under ``order``, else 0."""
        if policy == ORDER:
            lengths = [self.lengths] if self.lengths else []
            return _priority.of(lengths, self.prompt_tokens, self.arrival_s, limit=max_tokens)
        return (self.predicted_tokens or 0) if policy == _BY_PRIORITY else 0


class LoadSettings(BaseModel):
    """The load of a run and the policy that serves it, wherever it runs."""

    # JSON has no word for a rate of infinity.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")

    trace: str = Field(
        description="a file, a data set on the hub, or synthetic[:N]", json_schema_extra={"metavar": "FILE"}
    )
    length_field: str | None = Field(None, description="field with the response lengths in tokens, as lengths[3]")
    tokenizer: str | None = Field(None, description="tokenizer that counts tokens where the trace does not")
    format: str = Field("auto", description="the trace's format, where it is not recognized")
    time_unit: Literal["s", "ms", "us", "ns"] | None = Field(
        None, description="unit of arrivals, where the trace does not state it"
    )
    strict: bool = Field(False, description="a unit or length that would be guessed is an error")
    split: str | None = Field("dev", description="rows of this split only, where the trace has splits")
    policy: str | None = Field("ecoserve", description="scheduling policy")
    lengths: str = Field("true", description="source of lengths: true, none, noise:SIGMA, predicted:CKPT, ...")
    rate_rps: float | None = Field(
        None, gt=0, description="requests per second, Poisson; inf: all at once; None: as recorded"
    )
    seed: int = Field(0, ge=0, description="seed of everything random")
    requests: int = Field(200, ge=1, description="requests of a run")
    max_tokens: int = Field(512, ge=1, description="max_tokens of every request")

    @field_validator("lengths")
    @classmethod
    def _enough(cls, lengths: str, info: ValidationInfo) -> str:
        policy = info.data.get("policy")
        if lengths == "none" and policy in LENGTH_BOUND:
            raise ValueError(f"policy {policy} decides by predicted lengths; name a source of them, as noise:0.6")
        return lengths

    def read_trace(self) -> Trace:
        how = (self.length_field, self.tokenizer, self.split, self.time_unit, self.strict, self.format)
        return trace_for(self.trace, *how)

    def load(self, max_prompt_tokens: int, lengths: LengthSource | None = None) -> list[LoadRequest]:
        """The requests. ``lengths``: a source of predictions in place of the settings' own."""
        source = lengths or LengthSource.parse(self.lengths)  # refused before the trace is read
        return make_load(
            self.read_trace(),
            requests=self.requests,
            rate_rps=self.rate_rps,
            seed=self.seed,
            lengths=source,
            max_tokens=self.max_tokens,
            max_prompt_tokens=max_prompt_tokens,
        )

    @property
    def arrivals(self) -> str:
        """How requests arrive, as a label of the run."""
        return "recorded" if self.rate_rps is None else "at once" if math.isinf(self.rate_rps) else "poisson"

    def result(
        self,
        rows: list[RequestRow],
        totals: EngineTotals,
        labels: dict[str, Any],
        policy: str | None = None,
        **more: Any,
    ) -> RunResult:
        """The run's result, labelled with what was asked. ``policy``: where the settings name none."""
        return RunResult(
            policy=self.policy or policy or "",
            lengths=self.lengths,
            rate_rps=self.rate_rps if self.arrivals == "poisson" else None,
            seed=self.seed,
            rows=rows,
            totals=totals,
            labels={**labels, "length_source": self.read_trace().length_source},
            **more,
        )


@lru_cache(maxsize=8)
def trace_for(
    source: str,
    length_field: str | None,
    tokenizer: str | None,
    split: str | None,
    time_unit: str | None = None,
    strict: bool = False,
    format: str = "auto",
) -> Trace:
    """The trace a load is drawn from, kept for the next run; ``synthetic`` or ``synthetic:N`` makes one.

    With ``split`` (``train`` or ``dev``) only rows of that part are taken, by the trace's own split or by the one that
    training makes: a predictor must not be judged on the rows it was trained on. Traces without prompts are taken
    whole.
    """
    if source.partition(":")[0] == "synthetic":
        count = source.partition(":")[2] or "4000"
        if not count.isdecimal() or not 1 <= int(count) <= 1_000_000:
            raise InputError(f"synthetic:{count} is not a number of rows", where="trace")
        trace = synthetic_trace(int(count), seed=0)
    else:
        trace = load_trace(
            source, length_field=length_field, tokenizer=tokenizer, time_unit=time_unit, strict=strict, format=format
        )
    if split is not None and any(r.prompt for r in trace.records):
        parts = split_trace(trace)
        if split not in parts or not parts[split].records:
            raise TraceError(f"no rows of split {split!r}", where=source, fix="name train or dev, or none")
        trace = parts[split]
    return trace


def prompt_length(record: Record) -> int:
    """Prompt tokens as recorded, else estimated from the characters of all that is sent."""
    if record.prompt_tokens is not None:
        return max(1, record.prompt_tokens)
    text = "".join(m.content for m in record.messages) or record.prompt or ""
    return max(1, math.ceil(len(text) / CHARACTERS_PER_TOKEN))


def make_load(
    trace: Trace,
    *,
    requests: int,
    rate_rps: float | None,
    seed: int,
    lengths: LengthSource,
    max_tokens: int,
    max_prompt_tokens: int,
) -> list[LoadRequest]:
    """Draw a load of ``requests`` from a trace, without replacement unless it has fewer; TraceError if it has none.

    ``rate_rps``: Poisson arrivals; ``inf``: all at once; None: the first rows with their recorded arrivals. ``seed``:
    of the draw, the arrivals and the noise. ``max_tokens``: longer recorded responses are cut there, as the engine
    would. Rows with more than ``max_prompt_tokens`` are skipped: the server would refuse them.

    A trace that states waits between turns (``think_s``) is a closed loop: whole sessions are drawn, up to the first
    turn that is skipped, and arrivals are those of sessions. A rate then counts their requests.
    """
    if any(r.think_s is not None for r in trace.records):
        drawn, times, before = _sessions(trace, requests, rate_rps, seed, max_prompt_tokens)
    else:
        drawn, times = _requests(trace, requests, rate_rps, seed, max_prompt_tokens)
        before = [None] * len(drawn)
    true = [min(max_tokens, int(r.response_tokens or 1)) for r in drawn]
    predicted = lengths.distributions(drawn, true, max_tokens, seed)
    names = [f"r{i:05d}" for i in range(len(drawn))]
    return [
        LoadRequest(
            names[i], times[i], record, prompt_length(record), true[i], predicted[i],
            None if (last := before[i]) is None else names[last], record.think_s or 0.0,
        )
        for i, record in enumerate(drawn)
    ]  # fmt: skip


def _usable(record: Record, max_prompt_tokens: int) -> bool:
    return bool(record.response_tokens) and prompt_length(record) <= max_prompt_tokens


def _requests(
    trace: Trace, requests: int, rate_rps: float | None, seed: int, max_prompt_tokens: int
) -> tuple[list[Record], list[float]]:
    """Rows of a trace, each for itself, by arrival, and when they come."""
    rows = [r for r in trace.records if _usable(r, max_prompt_tokens)]
    if not rows:
        raise _nothing_fits(trace, max_prompt_tokens)
    if rate_rps is None:
        drawn = sorted((r for r in rows if r.arrival_s is not None), key=lambda r: r.arrival_s or 0.0)[:requests]
        if not drawn:
            raise TraceError("the trace has no recorded arrivals", where=trace.source, fix="give --rate")
        times = [(r.arrival_s or 0.0) - (drawn[0].arrival_s or 0.0) for r in drawn]
    else:
        picks = np.random.default_rng(seed).choice(len(rows), size=requests, replace=len(rows) < requests)
        drawn = [rows[i] for i in picks]
        times = [0.0] * requests if math.isinf(rate_rps) else poisson_arrivals(requests, rate_rps, seed).tolist()
    return drawn, times


def _sessions(
    trace: Trace, requests: int, rate_rps: float | None, seed: int, max_prompt_tokens: int
) -> tuple[list[Record], list[float], list[int | None]]:
    """Turns of whole sessions by their earliest arrival, when that is, and which of them each one follows."""
    whole: dict[str, list[Record]] = {}
    for record in trace.records:
        whole.setdefault(record.conversation, []).append(record)
    found = (sorted(turns, key=lambda r: r.turn) for turns in whole.values())
    sessions = [s for turns in found if (s := list(takewhile(lambda r: _usable(r, max_prompt_tokens), turns)))]
    if not sessions:
        raise _nothing_fits(trace, max_prompt_tokens)
    if rate_rps is None:
        sessions = sorted((s for s in sessions if s[0].arrival_s is not None), key=lambda s: s[0].arrival_s or 0.0)
        if not sessions:
            raise TraceError("the trace has no recorded arrivals", where=trace.source, fix="give --rate")
        order = iter(range(len(sessions)))
    else:
        rng = np.random.default_rng(seed)
        order = (i for again in count() for i in rng.permutation(len(sessions)).tolist())
    chosen: list[list[Record]] = []
    left = requests
    for i in order:
        if left <= 0:
            break
        chosen.append(sessions[i][:left])
        left -= len(chosen[-1])
    if rate_rps is None:
        starts = [(s[0].arrival_s or 0.0) - (chosen[0][0].arrival_s or 0.0) for s in chosen]
    elif math.isinf(rate_rps):
        starts = [0.0] * len(chosen)
    else:
        starts = poisson_arrivals(len(chosen), rate_rps * len(chosen) / requests, seed).tolist()
    turns: list[tuple[float, int, int, Record]] = []
    for k, (start, session) in enumerate(zip(starts, chosen, strict=True)):
        for turn, record in enumerate(session):
            start += record.think_s or 0.0 if turn else 0.0
            turns.append((start, k, turn, record))
    turns.sort(key=lambda t: t[:3])
    place = {(k, turn): i for i, (_, k, turn, _) in enumerate(turns)}
    return [t[3] for t in turns], [t[0] for t in turns], [place.get((k, turn - 1)) for _, k, turn, _ in turns]


def _nothing_fits(trace: Trace, max_prompt_tokens: int) -> TraceError:
    return TraceError(
        f"no row has a response length and at most {max_prompt_tokens} prompt tokens",
        where=trace.source,
        fix="name a length field or a tokenizer",
    )


def chosen_split(split: str | None, *, recorded: bool) -> str | None:
    """The split of a load: by default dev, with recorded arrivals all; None for all."""
    split = split or ("all" if recorded else "dev")
    return None if split == "all" else split
