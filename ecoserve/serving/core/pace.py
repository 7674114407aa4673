"""The engine's recent pace: seconds a step, measured on the scheduler's own steps.

One step gives each running decode one token, so a step's period is the time of a token. The estimate is an
exponentially weighted mean over the last ``window`` busy steps. Deadlines (:mod:`~ecoserve.serving.core.orderings`) are
judged by it; a wrong pace costs order, never correctness.
"""

from __future__ import annotations

#: The pace before a step was seen.
FIRST_GUESS_S = 0.02


class Pace:
    """Seconds a token, and seconds a prompt.

    Args:
        step_tokens: the most tokens one step computes.
        window: steps over which the mean is taken.
        longest_s: a longer gap between two steps is not counted (idle, suspended).
    """

    def __init__(self, step_tokens: int, window: int = 64, longest_s: float = 5.0) -> None:
        self.token_s = FIRST_GUESS_S
        self._step_tokens = max(1, step_tokens)
        self._weight = 1.0 / window
        self._longest_s = longest_s
        self._last: float | None = None
        self._seen = 0

    def step(self, now: float, busy: bool) -> None:
        """A step begins at ``now``; ``busy``: the one before had work, so the time since then was its."""
        if busy and self._last is not None and 0.0 < now - self._last <= self._longest_s:
            self._seen += 1
            weight = max(self._weight, 1.0 / self._seen)
            self.token_s += weight * (now - self._last - self.token_s)
        self._last = now

    def prompt_s(self, tokens: int) -> float:
        """Seconds until a prompt with ``tokens`` still to compute has given its first token, if it starts now."""
        return -(-max(1, tokens) // self._step_tokens) * self.token_s
