"""A load: which requests come when, how long their answers are, and what the scheduler is told about that.

The same for the virtual loop, the in-process engine and a URL, so that their runs can be compared. What is told is
never the recorded length unless ``true`` is asked for (the oracle); :mod:`ecoserve.serving.length_source` has the
kinds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ecoserve.data import Record, Trace, load_trace, poisson_arrivals, split_trace, synthetic_trace
from ecoserve.errors import InputError, TraceError
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.length_source import LengthSource

#: Characters a token, where a trace gives text but no token counts and no tokenizer is named.
CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """One request of a load.

    Attributes:
        name: unique within the load.
        arrival_s: seconds from the start.
        record: the trace's row (prompt text, messages).
        prompt_tokens, response_tokens: recorded or estimated lengths, tokens; the response's is cut at ``max_tokens``.
        lengths: what the scheduler is told, or None.
    """

    name: str
    arrival_s: float
    record: Record
    prompt_tokens: int
    response_tokens: int
    lengths: LengthDistribution | None

    @property
    def pit(self) -> float | None:
        """Where the true length lies in what was told: the probability of shorter answers and half that of its own.

        Uniform over 0..1 where what was told is calibrated (the mid-distribution probability integral transform).
        """
        if self.lengths is None:
            return None
        n = self.response_tokens
        return 1.0 - (self.lengths.survival(n) + self.lengths.survival(n - 1)) / 2.0


@lru_cache(maxsize=8)
def trace_for(
    source: str, length_field: str | None, tokenizer: str | None, split: str | None, synthetic_seed: int = 0
) -> Trace:
    """The trace a load is drawn from; ``synthetic`` or ``synthetic:N`` makes one. Kept for the next run of a sweep.

    With ``split`` (``train`` or ``dev``) only rows of that part are taken, by the trace's own split or by the one that
    training makes: a predictor must not be judged on the rows it was trained on. Traces without prompts are taken
    whole.
    """
    if source.partition(":")[0] == "synthetic":
        count = source.partition(":")[2] or "4000"
        if not count.isdecimal() or not 1 <= int(count) <= 1_000_000:
            raise InputError(f"synthetic:{count} is not a number of rows", where="trace")
        trace = synthetic_trace(int(count), seed=synthetic_seed)
    else:
        trace = load_trace(source, length_field=length_field, tokenizer=tokenizer)
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
    """Draw a load from a trace.

    Args:
        requests: how many; drawn without replacement, or with it if the trace has fewer.
        rate_rps: Poisson arrivals at this rate; ``inf``: all at once; None: the first ``requests`` rows with their
            recorded arrivals.
        seed: of the draw, the arrivals and the noise.
        max_tokens: the same for all requests; longer recorded answers are cut there, as the engine would.
        max_prompt_tokens: rows with longer prompts are passed over: the server would refuse them.

    Raises:
        TraceError: if no row can be used.
    """
    rows = [r for r in trace.records if r.response_tokens and prompt_length(r) <= max_prompt_tokens]
    if not rows:
        raise TraceError(
            f"no row has a response length and at most {max_prompt_tokens} prompt tokens",
            where=trace.source,
            fix="name a length field or a tokenizer",
        )
    if rate_rps is None:
        timed = sorted((r for r in rows if r.arrival_s is not None), key=lambda r: r.arrival_s or 0.0)[:requests]
        if not timed:
            raise TraceError("the trace has no recorded arrivals", where=trace.source, fix="give --rate")
        start = timed[0].arrival_s or 0.0
        drawn, times = timed, [(r.arrival_s or 0.0) - start for r in timed]
    else:
        rng = np.random.default_rng(seed)
        picks = rng.choice(len(rows), size=requests, replace=len(rows) < requests)
        drawn = [rows[i] for i in picks]
        times = [0.0] * requests if math.isinf(rate_rps) else poisson_arrivals(requests, rate_rps, seed).tolist()
    true = [min(max_tokens, int(r.response_tokens or 1)) for r in drawn]
    known = lengths.distributions(drawn, true, max_tokens, seed)
    return [
        LoadRequest(f"r{i:05d}", at, record, prompt_length(record), n, prediction)
        for i, (at, record, n, prediction) in enumerate(zip(times, drawn, true, known, strict=True))
    ]
