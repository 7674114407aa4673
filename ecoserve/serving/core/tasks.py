"""One request as the serving core sees it: plain values, no vLLM object.

A request is first a prefill (prompt task), then a decode (generation task). ``written`` tokens have their KV,
``generated``
tokens are out, ``promised`` is the response length its reservation covers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core.correction import Prediction


class TaskState(Enum):
    """Where a request is. Only the last two are decodes."""

    WAITING = "waiting"  # a prefill that holds no KV (new, or its KV was dropped)
    PREFILL = "prefill"  # a prefill that is running
    DECODE = "decode"  # a decode that is running
    PAUSED = "paused"  # a decode that waits with its KV kept


@dataclass(slots=True, eq=False)
class Task:
    """What the core knows of a request.

    Attributes:
        request_id: vLLM's id.
        prompt_tokens: prompt length, tokens.
        lengths: distribution of response length, closed at ``limit``; replaced when a response outlives it.
        limit: the most tokens this response may have.
        predicted: False if the lengths are history's, for want of a prediction.
        arrival_s: arrival on the scheduler's clock.
        number: the position in the order in which the scheduler has been given; decides between requests that are
        otherwise equal.
        written: tokens with KV. generated: tokens out. promised: response length covered by the reservation, 0 before
        there is one.
        predicted_median: median response length at arrival, for the books.
        overdrawn: the reservation was outlived at least once.
        passed_by: this decode has waited for its promise so long that its claim goes first.
        spared: this decode draws on the global reserve.
        row: index in the forecast's tables, -1 when it is not in them.
        ttft_slo_s: the first token is due so long after arrival. tpot_slo_s: each further one so long after it.
        deadline_s: the last token is due at this time, where it was given as such.
        told: what was predicted, for the correction; None if nothing was.
    """

    request_id: str
    prompt_tokens: int
    lengths: LengthDistribution
    limit: int
    predicted: bool
    arrival_s: float
    priority: int = 0
    number: int = 0
    state: TaskState = TaskState.WAITING
    written: int = 0
    generated: int = 0
    promised: int = 0
    overdrawn: bool = False
    passed_by: bool = False
    spared: bool = False
    predicted_median: int = field(default=0)
    row: int = -1
    ttft_slo_s: float | None = None
    tpot_slo_s: float | None = None
    deadline_s: float | None = None
    prediction: Prediction | None = None
    _rest: tuple[LengthDistribution, int, float | None, float] | None = None

    def __post_init__(self) -> None:
        if not self.predicted_median:
            self.predicted_median = self.lengths.quantile(0.5)

    def arrives(self, at_s: float) -> None:
        """Put the arrival, and the deadline with it, on the scheduler's clock."""
        if self.deadline_s is not None:
            self.deadline_s += at_s - self.arrival_s
        self.arrival_s = at_s

    def expected_rest(self, quantile: float | None = None) -> float:
        """Tokens still to come, given those that are out: the mean, or a quantile."""
        known = self._rest
        if known is not None and known[0] is self.lengths and known[1] == self.generated and known[2] == quantile:
            return known[3]
        posterior = self.lengths.given_longer_than(self.generated)
        whole = posterior.mean() if quantile is None else posterior.quantile(quantile)
        rest = max(1.0, whole - self.generated)
        self._rest = (self.lengths, self.generated, quantile, rest)
        return rest

    def has_slo(self) -> bool:
        """Whether anything is due at a certain time."""
        return self.ttft_slo_s is not None or self.tpot_slo_s is not None or self.deadline_s is not None

    def first_token_due_s(self) -> float:
        """When the first token is due; infinite if that was not said."""
        return math.inf if self.ttft_slo_s is None else self.arrival_s + self.ttft_slo_s

    def due_s(self) -> float:
        """When the last token is due: as given, else the SLO's time for as many tokens as are expected."""
        if self.deadline_s is not None:
            return self.deadline_s
        if self.tpot_slo_s is None:
            return math.inf
        whole = self.generated + self.expected_rest()
        return self.arrival_s + (self.ttft_slo_s or 0.0) + self.tpot_slo_s * whole

    def span_tokens(self) -> int:
        """Tokens of KV that the request needs now: all written, and at least its prompt."""
        return max(self.written, self.prompt_tokens + self.generated)

    def promised_span_tokens(self) -> int:
        """Tokens of KV that are promised to it: prompt and promised response, or what it needs now if that is more."""
        return max(self.span_tokens(), self.prompt_tokens + self.promised)
