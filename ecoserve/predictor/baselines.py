"""What a trained predictor is compared with: predictions that need no model.

Rule: a baseline learns from the same rows, over the same bins, and answers with distributions too, so that every
column of the comparison means the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ecoserve.errors import TraceError
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor.bins import Bins
from ecoserve.predictor.config import PredictorConfig
from ecoserve.predictor.examples import Examples
from ecoserve.predictor.text import Request, read_request


class ConstantMedian:
    """Says the same of every request: how the training answers' lengths are spread, whose median it scores with."""

    def __init__(self, distribution: LengthDistribution) -> None:
        self.distribution = distribution

    @classmethod
    def of(cls, config: PredictorConfig) -> ConstantMedian:
        """The one that belongs to a trained predictor: from the lengths that it has seen."""
        return cls(LengthDistribution.from_weights(config.edges, config.prior, config.closed_by))

    @classmethod
    def fit(cls, examples: Examples) -> ConstantMedian:
        """Learn from training rows."""
        bins = Bins.fit(examples.all_lengths())
        return cls(LengthDistribution.from_weights(bins.edges, bins.shares(examples.all_lengths()), bins.closed_by))

    def predict(self, requests: Sequence[Request], /) -> list[LengthDistribution]:
        """The same distribution ``n`` times."""
        return [self.distribution] * len(requests)


class PromptLength:
    """From the prompt's length in characters alone: the answers to training prompts of about that length."""

    def __init__(self, cuts: Sequence[float], distributions: Sequence[LengthDistribution]) -> None:
        self.cuts = np.asarray(cuts, dtype=np.float64)
        self.distributions = tuple(distributions)

    @classmethod
    def fit(cls, examples: Examples, groups: int = 20) -> PromptLength:
        """Learn from training rows: ``groups`` groups of prompts of like length, or fewer where lengths tie.

        Raises:
            TraceError: if there are no rows.
        """
        if not len(examples):
            raise TraceError("no rows to learn from")
        bins = Bins.fit(examples.all_lengths())
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
        return cls(cuts.tolist(), distributions)

    def predict(self, requests: Sequence[Request], /) -> list[LengthDistribution]:
        """One distribution per request."""
        characters = [len(read_request(r).text) for r in requests]
        return [self.distributions[g] for g in np.searchsorted(self.cuts, characters, side="left")]
