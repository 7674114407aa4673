"""One request as the serving core sees it: plain values, no vLLM object.

A request is first prefilled, then decoded. ``written`` tokens have their KV, ``generated`` tokens are out, ``promised``
is the response length that its reservation covers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.kv_use import Table


class TaskState(Enum):
    WAITING = "waiting"  # for its prefill, without KV (new or preempted)
    PREFILL = "prefill"  # running
    DECODE = "decode"  # running
    PAUSED = "paused"  # a decode that waits with its KV


@dataclass(slots=True, eq=False)
class Prediction:
    """One request's prediction and the history of lengths at its arrival; later, its length.

    Attributes:
        used: its distribution when it started; number: its place among the starts.
        length: tokens when it was over, or when it was passed over; censored: it would have been longer.
        gone: it is over. version: of the correction by which its lengths were computed.
    """

    predicted: LengthDistribution
    history: LengthDistribution
    used: LengthDistribution | None = None
    number: int = 0
    length: int | None = None
    censored: bool = False
    gone: bool = False
    version: int = 0


@dataclass(slots=True, eq=False)
class Task:
    """What the core knows of a request.

    Attributes:
        prompt_tokens: prompt length, tokens.
        lengths: distribution of the response length, closed at ``limit``; replaced by the posterior when outlived.
        limit: most tokens that the response may have. most_tokens: most tokens of prompt and response with KV.
        predicted: False if ``lengths`` is the history of finished responses.
        arrival_s: on the scheduler's clock. number: order of arrival at the scheduler, which decides between equals.
        preemptions: times its KV was dropped.
        written, generated, promised: see the module. settled: written tokens whose output has arrived; of a request
            that waits, tokens of its prompt that the prefix cache has.
        blocks: KV blocks held at the start of the step. tables: its block tables, one for each group of layers.
        shared_blocks: of its blocks that it keeps to the end, those that others hold too; of a request that waits,
            blocks of its prompt that others hold, which cost it nothing.
        passing_shared: of the blocks that it will give back, those that others hold too.
        idle: it is a session that waits for its client: its KV stays as it is.
        known_tokens: of a prefill, tokens that are out or under way.
        asks: of a decode, tokens that the next step computes: one and its drafts; 0 while its token is under way.
        predicted_median: median response length at arrival, for the reports.
        overdrawn: its promise was outlived at least once.
        passed_by: it has waited for its promise so long that its claim goes first.
        waits_since_s: when it entered the queue that it waits in, or came from.
        row: index in the forecast's tables, -1 when it is not in them.
        ttft_slo_s, tpot_slo_s: SLO of the first token (after arrival) and of each further one, seconds.
        deadline_s: when the last token is due, if stated.
        prediction: what was predicted, for the correction; None if nothing was.
    """

    request_id: str
    prompt_tokens: int
    lengths: LengthDistribution
    limit: int
    most_tokens: int
    predicted: bool
    arrival_s: float
    priority: int = 0
    number: int = 0
    state: TaskState = TaskState.WAITING
    preemptions: int = 0
    written: int = 0
    settled: int = 0
    generated: int = 0
    blocks: int = 0
    tables: tuple[Table, ...] = ()
    shared_blocks: int = 0
    passing_shared: int = 0
    idle: bool = False
    known_tokens: int = 0
    asks: int = 1
    promised: int = 0
    overdrawn: bool = False
    passed_by: bool = False
    predicted_median: int = field(default=0)
    row: int = -1
    waits_since_s: float = 0.0
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    deadline_s: float | None = None
    prediction: Prediction | None = None
    _rest: tuple[LengthDistribution, int, float | None, float] | None = None

    def __post_init__(self) -> None:
        if not self.predicted_median:
            self.predicted_median = self.lengths.quantile(0.5)

    def set_arrival(self, at_s: float) -> None:
        """Put the arrival, and the deadline with it, on the scheduler's clock."""
        if self.deadline_s is not None:
            self.deadline_s += at_s - self.arrival_s
        self.arrival_s = self.waits_since_s = at_s

    def expected_rest(self, quantile: float | None = None) -> float:
        """Expected remaining tokens, given those that are out: the mean, or a quantile."""
        known = self._rest
        if known is not None and known[0] is self.lengths and known[1] == self.generated and known[2] == quantile:
            return known[3]
        posterior = self.lengths.given_longer_than(self.generated)
        whole = posterior.mean() if quantile is None else posterior.quantile(quantile)
        rest = max(1.0, whole - self.generated)
        self._rest = (self.lengths, self.generated, quantile, rest)
        return rest

    def has_slo(self) -> bool:
        return self.ttft_slo_s is not None or self.tpot_slo_s is not None or self.deadline_s is not None

    def first_token_due_s(self) -> float:
        return math.inf if self.ttft_slo_s is None else self.arrival_s + self.ttft_slo_s

    def due_s(self) -> float:
        """When the last token is due: as stated, else by the SLO for the expected length; infinite without either."""
        if self.deadline_s is not None or self.tpot_slo_s is None:
            return self.due_after(0.0)
        return self.due_after(self.expected_rest())

    def due_after(self, rest: float) -> float:
        """:meth:`due_s` if ``rest`` tokens are expected to remain."""
        if self.deadline_s is not None:
            return self.deadline_s
        if self.tpot_slo_s is None:
            return math.inf
        return self.arrival_s + (self.ttft_slo_s or 0.0) + self.tpot_slo_s * (self.generated + rest)

    def span_tokens(self) -> int:
        """Tokens of KV that the request needs now: all written, and at least its prompt."""
        return max(self.written, self.prompt_tokens + self.generated)

    def promised_span_tokens(self) -> int:
        """Tokens of KV promised to it: prompt and promised response, or what it needs now if that is more."""
        return max(self.span_tokens(), self.prompt_tokens + self.promised)
