"""How much requests err together: the share ``rho`` of the uncertainty of their lengths that they have in common.

A predictor has bad days, and the responses to one prompt (n > 1) are alike. With F the distribution used, the place
F(length) of a response is turned into a normal score; of two responses that arrived one after the other the product of
scores is, on average, rho. The estimate is an exponentially weighted mean, drawn towards ``prior`` with the weight of
``weight`` pairs, and kept within 0 and ``most``.
"""

from __future__ import annotations

from statistics import NormalDist

_NORMAL = NormalDist()


class CommonError:
    """The running estimate of rho.

    Args:
        prior: estimate before any pair. weight: of the prior, in pairs.
        window: of the mean, in pairs. most: upper bound.
    """

    def __init__(self, prior: float = 0.02, weight: float = 100.0, window: int = 1000, most: float = 0.5) -> None:
        self._prior = prior
        self._prior_weight = weight
        self._window = window
        self._most = most
        self._product = 0.0
        self._square = 1.0
        self.pairs = 0
        self._last: tuple[int, float] | None = None

    @property
    def rho(self) -> float:
        """The share that is common, 0 to ``most``."""
        seen = min(self.pairs, self._window)
        measured = self._product / max(self._square, 0.25)
        blend = (seen * measured + self._prior_weight * self._prior) / (seen + self._prior_weight)
        return min(self._most, max(0.0, blend))

    def learn(self, number: int, place: float) -> None:
        """A response's place in its distribution (0 to 1); ``number``: its order of arrival."""
        score = _NORMAL.inv_cdf(min(0.999, max(0.001, place)))
        last, self._last = self._last, (number, score)
        if last is None or abs(number - last[0]) > 8:
            return
        self.pairs += 1
        weight = max(1.0 / self._window, 1.0 / self.pairs)
        self._product += weight * (score * last[1] - self._product)
        self._square += weight * (score * score - self._square)
