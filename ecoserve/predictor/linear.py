"""The linear backend, which a server learns from its own traffic: ridge regression on counts and hashed words.

The expected log length ``mu`` of a response is linear in the counts of :mod:`ecoserve.predictor.boosting.features` and
in the TF-IDF of words and pairs of words. These are hashed into buckets, so that what is kept to learn from holds no
text. The distribution is ``mu`` plus the errors of models that had not learned from the row, at about the same ``mu``.

Saved as ``linear.safetensors``. Fitting is in :mod:`ecoserve.predictor.linear_fitting`.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from ecoserve.predictor.base import LengthPredictor
from ecoserve.predictor.boosting.features import NAMES, request_features
from ecoserve.predictor.calibration import Calibration
from ecoserve.predictor.config import PredictorConfig
from ecoserve.predictor.text import RequestView, clip

Array = npt.NDArray[np.float64]
FILE: Final = "linear.safetensors"
#: Buckets of words and pairs of words; distinct ones that are read of a request; characters that they are read from.
BUCKETS: Final = 2**15
TERMS: Final = 256
CHARACTERS: Final = 4096
#: Parameters of requests that are read. ``max_tokens`` closes the distribution instead.
PARAMETERS: Final = ("stop", "tools", "thinking", "response_format")
#: Levels of the quantiles of the errors.
LEVELS: Final = np.linspace(0.0, 1.0, 41)
#: Share of all lengths as such in every prediction; standard deviations at which counts are clipped.
MIX: Final = 0.02
MOST: Final = 4.0
_TOKEN: Final = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """What is kept of a request: numbers, and how often it has the words of each bucket."""

    #: float32, shape ``[F]``
    dense: npt.NDArray[np.float32]
    #: uint16 and uint8, shape ``[t]``, ``t <= TERMS``
    places: npt.NDArray[np.uint16]
    times: npt.NDArray[np.uint8]


def rows_of(views: Sequence[RequestView]) -> list[Row]:
    counts = request_features(views)
    dense = (np.sign(counts) * np.log1p(np.abs(counts))).astype(np.float32)
    return [Row(numbers, *_hashed(view.text)) for numbers, view in zip(dense, views, strict=True)]


def _hashed(text: str) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
    words = [w.encode("utf-8", "replace") for w in _TOKEN.findall(clip(text, CHARACTERS).lower())]
    pairs = map(b" ".join, pairwise(words))
    found = Counter(zlib.crc32(term) % BUCKETS for term in (*words, *pairs)).most_common(TERMS)
    return (
        np.array([place for place, _ in found], dtype=np.uint16),
        np.array([min(times, 255) for _, times in found], dtype=np.uint8),
    )


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """What is learned, of J places along ``mu``."""

    #: of the standardised counts, shape ``[F]`` each
    means: Array
    scales: Array
    dense: Array
    #: of the buckets, shape ``[BUCKETS]`` each
    idf: Array
    words: Array
    #: shape ``[1]``
    intercept: Array
    #: shapes ``[J]``, ascending, and ``[J, len(LEVELS)]``: quantiles of log length minus ``mu``
    places: Array
    errors: Array

    def __post_init__(self) -> None:
        f, j = len(self.means), len(self.places)
        shapes = [(f,), (f,), (f,), (BUCKETS,), (BUCKETS,), (1,), (j,), (j, len(LEVELS))]
        if [getattr(self, x.name).shape for x in fields(self)] != shapes or f != len(NAMES) or not j:
            raise ValueError(f"{FILE} has arrays of other shapes than this ecoserve makes")

    def log_lengths(self, rows: Sequence[Row]) -> Array:
        """``mu`` of ``n`` requests, shape ``[n]``, within what was seen: of others nothing is known."""
        dense = np.clip((np.stack([r.dense for r in rows]) - self.means) / self.scales, -MOST, MOST) @ self.dense
        mu = dense + [self._of_words(r) for r in rows] + self.intercept[0]
        return np.asarray(np.clip(mu, self.places[0], self.places[-1]))

    def _of_words(self, row: Row) -> float:
        x = (1.0 + np.log(row.times)) * self.idf[row.places]
        size = float(np.sqrt(x @ x))
        return float(x @ self.words[row.places]) / size if size else 0.0

    def cdf(self, mu: Array, edges: npt.ArrayLike) -> Array:
        """P(length <= edge) at ``K + 1`` edges (tokens) for ``n`` requests, shape ``[n, K + 1]``."""
        logs = np.log(np.asarray(edges, dtype=np.float64) + 0.5)
        at = np.interp(mu, self.places, np.arange(len(self.places), dtype=np.float64))
        low = at.astype(np.intp)
        share = (at - low)[:, None]
        errors = (1.0 - share) * self.errors[low] + share * self.errors[np.minimum(low + 1, len(self.places) - 1)]
        cdf = np.stack([np.interp(logs - m, e, LEVELS) for m, e in zip(mu, errors, strict=True)])
        cdf[:, 0], cdf[:, -1] = 0.0, 1.0
        return cdf

    @classmethod
    def of(cls, arrays: dict[str, npt.NDArray[np.float32]]) -> Self:
        return cls(**{x.name: arrays[x.name].astype(np.float64) for x in fields(cls)})

    def arrays(self) -> dict[str, npt.NDArray[np.float32]]:
        return {x.name: getattr(self, x.name).astype(np.float32) for x in fields(self)}


def logits_of(cdf: Array, prior: npt.ArrayLike) -> Array:
    """Logits over the bins from CDFs at their edges, shape ``[n, K + 1]``; every length stays possible."""
    p = (1.0 - MIX) * np.diff(cdf, axis=1) + MIX * np.asarray(prior)
    return np.asarray(np.log(np.maximum(p, 1e-12)), dtype=np.float64)


class LinearPredictor(LengthPredictor):
    """A trained linear model."""

    packages = ("scikit-learn",)

    def __init__(self, config: PredictorConfig, calibration: Calibration, numbers: Numbers) -> None:
        super().__init__(config, calibration)
        self.numbers = numbers

    def _logits(self, views: Sequence[RequestView]) -> Array:
        return self.logits_of(rows_of(views))

    def logits_of(self, rows: Sequence[Row]) -> Array:
        """Uncalibrated logits of ``n >= 1`` requests, shape ``[n, K]``."""
        cdf = self.numbers.cdf(self.numbers.log_lengths(rows), self.config.edges)
        return logits_of(cdf, self.config.prior)

    def _write(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        save_file(self.numbers.arrays(), folder / FILE)

    @classmethod
    def _load(cls, folder: Path, config: PredictorConfig, calibration: Calibration) -> LinearPredictor:
        from safetensors.numpy import load_file

        return cls(config, calibration, Numbers.of(load_file(folder / FILE)))
