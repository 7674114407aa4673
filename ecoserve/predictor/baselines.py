"""What a trained predictor is compared with: predictions that need no model of the text.

Rule: a baseline learns from the same rows, over the same bins, and answers with distributions too, so that every
column of the comparison means the same. Those that do read the text are in :mod:`ecoserve.predictor.baselines_nearest`,
the upper bound in :mod:`ecoserve.predictor.baselines_oracle`, all of them side by side in
:mod:`ecoserve.predictor.baselines_table`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import numpy as np

from ecoserve.errors import TraceError
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor.bins import Bins
from ecoserve.predictor.config import PredictorConfig
from ecoserve.predictor.examples import Examples
from ecoserve.predictor.text import Request, read_request

#: Finished lengths that the history window holds, as the scheduler's own does.
WINDOW: Final = 1000


class ConstantMedian:
    """Says the same of every request: how the training answers' lengths are spread, whose median it scores with."""

    def __init__(self, distribution: LengthDistribution) -> None:
        self.distribution = distribution

    @classmethod
    def of(cls, config: PredictorConfig) -> ConstantMedian:
        """The one that belongs to a trained predictor: from the lengths that it has seen."""
        return cls(LengthDistribution.from_weights(config.edges, config.prior, config.closed_by))

    @classmethod
    def fit(cls, examples: Examples, bins: Bins | None = None) -> ConstantMedian:
        """Learn from training rows; ``bins`` are laid over their lengths unless given."""
        bins = bins or Bins.fit(examples.all_lengths())
        return cls(LengthDistribution.from_weights(bins.edges, bins.shares(examples.all_lengths()), bins.closed_by))

    def predict(self, requests: Sequence[Request], /) -> list[LengthDistribution]:
        """The same distribution ``n`` times."""
        return [self.distribution] * len(requests)


class PromptLength:
    """From the prompt's length in characters alone: the answers to training prompts of about that length."""

    def __init__(
        self, cuts: Sequence[float], distributions: Sequence[LengthDistribution], parameters: Collection[str] = ()
    ) -> None:
        """``parameters``: names of the request's parameters that count as part of its text, as in training."""
        self.parameters = tuple(parameters)
        self.cuts = np.asarray(cuts, dtype=np.float64)
        self.distributions = tuple(distributions)

    @classmethod
    def fit(cls, examples: Examples, groups: int = 20, bins: Bins | None = None) -> PromptLength:
        """Learn from training rows: ``groups`` groups of prompts of like length, or fewer where lengths tie.

        Raises:
            TraceError: if there are no rows.
        """
        if not len(examples):
            raise TraceError("no rows to learn from")
        bins = bins or Bins.fit(examples.all_lengths())
        characters = np.asarray([len(v.text) for v in examples.views], dtype=np.float64)
        cuts = np.unique(np.quantile(characters, np.linspace(0, 1, groups + 1)[1:-1]))
        group = np.searchsorted(cuts, characters, side="left")
        overall = bins.shares(examples.all_lengths())
        distributions = []
        for g in range(len(cuts) + 1):
            rows = np.flatnonzero(group == g)
            counts = 10.0 * overall
            for i in rows:
                np.add.at(counts, bins.index([examples.lengths[i], *examples.samples[i]]), 1.0)
            distributions.append(LengthDistribution.from_weights(bins.edges, counts, bins.closed_by))
        return cls(cuts.tolist(), distributions, examples.parameters)

    def predict(self, requests: Sequence[Request], /) -> list[LengthDistribution]:
        """One distribution per request."""
        characters = [len(read_request(r, self.parameters).text) for r in requests]
        return [self.distributions[g] for g in np.searchsorted(self.cuts, characters, side="left")]


class HistoryWindow:
    """The lengths of the last :data:`WINDOW` answers that finished, whatever is asked now.

    What schedulers use that have no predictor (the history window of Past-Future scheduling). It begins with the last
    training answers. Alone among the baselines it goes on learning where it is tested, from requests that have
    finished by then: never from the one that it is asked about, nor from a later one.
    """

    def __init__(self, bins: Bins, lengths: Iterable[int] = (), window: int = WINDOW) -> None:
        """Begin with the last ``window`` of ``lengths`` (tokens)."""
        self.bins = bins
        self._counts = np.zeros(len(bins))
        self._window: deque[int] = deque()
        self._size = window
        for length in lengths:
            self.finished(length)

    def finished(self, length: int) -> None:
        """Remember an answer of ``length`` tokens; the oldest is forgotten if there are too many."""
        at = int(self.bins.index([length])[0])
        self._window.append(at)
        self._counts[at] += 1
        if len(self._window) > self._size:
            self._counts[self._window.popleft()] -= 1

    def predict(self, requests: Sequence[Request], /) -> list[LengthDistribution]:
        """What the window holds now, ``n`` times; each bin has half a count more, so that nothing is impossible."""
        now = LengthDistribution.from_weights(self.bins.edges, self._counts + 0.5, self.bins.closed_by)
        return [now] * len(requests)

    def follow(self, lengths: Iterable[int]) -> list[LengthDistribution]:
        """What was predicted for each of ``lengths`` (tokens) before it finished, one after the other."""
        predicted = []
        for length in lengths:
            predicted += self.predict([""])
            self.finished(length)
        return predicted
