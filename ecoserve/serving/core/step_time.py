"""How long a step takes, learned from the scheduler's own steps; and the prompt tokens that fit into a given time.

    seconds = a + b * prompt tokens + c * decodes + d * KV tokens read + e * prompt tokens * their context

The coefficients are least squares over recent steps (exponential forgetting), not negative, and drawn towards a first
guess while there is little to learn from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import nnls

from ecoserve.serving.core.kv_use import Floats

#: Units of the features, so that coefficients are of one size: 1, prompt tokens, decodes, KV tokens, token pairs.
_UNITS: Final = np.array([1.0, 1e3, 1e2, 1e5, 1e7])
#: First guess, seconds a unit, and how many steps it weighs as much as.
_GUESS: Final = np.array([0.010, 0.020, 0.001, 0.004, 0.002])
_GUESS_STEPS: Final = 2.0
#: Weight of a step 1,000 steps later is e^-1. Coefficients are computed anew after this many steps.
_FORGET: Final = 1.0 - 1e-3
_REFIT: Final = 8
#: Steps, and steps with a prompt, before predictions are used.
WARM_UP: Final = 24
#: A step that took this many times its prediction (a pause of the machine) counts no more than that.
_OUTLIER: Final = 4.0


@dataclass(frozen=True, slots=True)
class StepLoad:
    """What a step computes: tokens of prompts, of decodes with drafts, KV that these read, prompt tokens x context."""

    prompt_tokens: int
    decodes: int
    kv_tokens: int
    prompt_pairs: float = 0.0

    def features(self) -> Floats:
        values: Floats = np.array([1.0, self.prompt_tokens, self.decodes, self.kv_tokens, self.prompt_pairs])
        values /= _UNITS
        return values


class StepTime:
    """The learned model; times in seconds."""

    def __init__(self) -> None:
        self._a = np.diag(_GUESS_STEPS / np.maximum(_GUESS / _GUESS.max(), 0.05) ** 2)
        self._b = self._a @ _GUESS
        self._floor = self._a.copy()
        self.coefficients = _GUESS.copy()
        self.steps = 0
        self.prompt_steps = 0
        self._since = 0

    @property
    def ready(self) -> bool:
        return self.steps >= WARM_UP and self.prompt_steps >= WARM_UP // 3

    def learn(self, load: StepLoad, seconds: float) -> None:
        if not 0.0 < seconds < 60.0:
            return
        x = load.features()
        if self.ready:
            seconds = min(seconds, _OUTLIER * max(float(x @ self.coefficients), 1e-4))
        self.steps += 1
        self.prompt_steps += load.prompt_tokens > 0
        # Relative errors count: a long step is no more worth than a short one.
        weight = 1.0 / max(seconds, 1e-3) ** 2 * 1e-4
        self._a = _FORGET * self._a + weight * np.outer(x, x)
        self._b = _FORGET * self._b + weight * seconds * x
        self._since += 1
        if self._since >= _REFIT or self.steps < 4 * _REFIT:
            self._since = 0
            self._fit()

    def _fit(self) -> None:
        # The first guess does not fade altogether: a direction that is never seen keeps it.
        a = self._a + 1e-3 * self._floor
        b = self._b + 1e-3 * (self._floor @ _GUESS)
        factor = np.linalg.cholesky(a)
        self.coefficients, _ = nnls(factor.T, np.linalg.solve(factor, b))

    def seconds(self, load: StepLoad) -> float:
        return float(load.features() @ self.coefficients)

    def prompt_tokens(self, seconds: float, decodes: int, kv_tokens: int, context: int) -> int:
        """Most prompt tokens, at ``context`` tokens of context, of a step that takes at most ``seconds``."""
        room = seconds - self.seconds(StepLoad(0, decodes, kv_tokens))
        per_token = self.coefficients[1] / _UNITS[1] + self.coefficients[4] / _UNITS[4] * context
        return 0 if room <= 0.0 else int(room / max(per_token, 1e-9))
