"""What a trained predictor is compared with.

A baseline learns from the same rows, over the same bins, and predicts distributions too. :func:`side_by_side` evaluates
all of them: the constant median, the prompt's length, a history window, nearest prompts, and where a trace has several
responses to each prompt, an upper bound.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ecoserve.data import Record
from ecoserve.errors import TraceError
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor.base import Predicts
from ecoserve.predictor.bins import Bins
from ecoserve.predictor.calibration import cross_entropy
from ecoserve.predictor.config import PredictorConfig
from ecoserve.predictor.evaluation import (
    measure_latency,
    predict_all,
    score,
    scored_records,
    true_lengths,
)
from ecoserve.predictor.examples import Examples, Parts
from ecoserve.predictor.runtime import Progress, silent
from ecoserve.predictor.text import Request, RequestView, asked_of, read_request

Array: TypeAlias = npt.NDArray[np.float64]
Vectors: TypeAlias = npt.NDArray[np.float32]
#: Requests to vectors of length one, shape ``[n, hidden]``.
Embed: TypeAlias = "Callable[[Sequence[RequestView]], Vectors]"
#: Finished lengths that the history window holds, as the scheduler's own does.
WINDOW: Final = 1000
#: Numbers of neighbours that are tried.
NEIGHBOURS: Final = (5, 10, 20, 40, 80, 160)
#: Standard deviations, in bins, that are tried for the kernel of the upper bound.
WIDTHS: Final = (0.5, 1.0, 1.5, 2.0, 3.0, 5.0)
#: The prior's weight in nearest prompts and the upper bound, in rows.
_PRIOR: Final = 1.0
#: Spread of each neighbour's length over neighbouring bins, in bins, as in training the encoder.
_SMOOTHING: Final = 1.0
#: Keys that mean something of a single number instead of a distribution.
POINT_KEYS: Final = ("rows", "mae_tokens", "within_50", "within_100", "kendall_tau")
#: Rows of the table that are not predictors: they know another response to the very same prompt.
UPPER_BOUNDS: Final = ("one_other_sample", "other_samples_mean")


class ConstantMedian:
    """The distribution of the training lengths for every request; its median is scored."""

    def __init__(self, distribution: LengthDistribution) -> None:
        self.distribution = distribution

    @classmethod
    def of(cls, config: PredictorConfig) -> ConstantMedian:
        return cls(config.bins.distribution(config.prior))

    @classmethod
    def fit(cls, examples: Examples, bins: Bins | None = None) -> ConstantMedian:
        """Learn from training rows; ``bins`` are laid over their lengths unless given."""
        bins = bins or Bins.fit(examples.all_lengths())
        return cls(bins.distribution(bins.shares(examples.all_lengths())))

    def predict(self, requests: Sequence[Request], /) -> list[LengthDistribution]:
        return [self.distribution] * len(requests)


class PromptLength:
    """The lengths of the responses to training prompts of about the same length in characters."""

    def __init__(
        self, cuts: Sequence[float], distributions: Sequence[LengthDistribution], parameters: Collection[str] = ()
    ) -> None:
        self.parameters = tuple(parameters)
        self.cuts = np.asarray(cuts, dtype=np.float64)
        self.distributions = tuple(distributions)

    @classmethod
    def fit(cls, examples: Examples, groups: int = 20, bins: Bins | None = None) -> PromptLength:
        """Learn from ``groups`` groups of prompts of like length, or fewer where lengths tie."""
        if not len(examples):
            raise TraceError("no rows to learn from")
        bins = bins or Bins.fit(examples.all_lengths())
        characters = np.asarray([len(v.text) for v in examples.views], dtype=np.float64)
        cuts = np.unique(np.quantile(characters, np.linspace(0, 1, groups + 1)[1:-1]))
        group = np.searchsorted(cuts, characters, side="left")
        overall = bins.shares(examples.all_lengths())
        distributions = []
        for g in range(len(cuts) + 1):
            counts = 10.0 * overall
            for i in np.flatnonzero(group == g):
                np.add.at(counts, bins.index([examples.lengths[i], *examples.samples[i]]), 1.0)
            distributions.append(bins.distribution(counts))
        return cls(cuts.tolist(), distributions, examples.parameters)

    def predict(self, requests: Sequence[Request], /) -> list[LengthDistribution]:
        characters = [len(read_request(r, self.parameters).text) for r in requests]
        return [self.distributions[g] for g in np.searchsorted(self.cuts, characters, side="left")]


class HistoryWindow:
    """The lengths of the last :data:`WINDOW` responses that finished, for every request.

    What schedulers without a predictor use (Past-Future scheduling). Alone among the baselines it goes on learning
    where it is tested.
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
        """Add a response of ``length`` tokens; the oldest leaves a full window."""
        at = int(self.bins.index([length])[0])
        self._window.append(at)
        self._counts[at] += 1
        if len(self._window) > self._size:
            self._counts[self._window.popleft()] -= 1

    def predict(self, requests: Sequence[Request], /) -> list[LengthDistribution]:
        """The window's distribution, ``n`` times; half a count more in each bin keeps every length possible."""
        return [self.bins.distribution(self._counts + 0.5)] * len(requests)

    def follow(self, lengths: Iterable[int]) -> list[LengthDistribution]:
        """The prediction for each of ``lengths`` (tokens) before it finished, one after the other."""
        predicted = []
        for length in lengths:
            predicted += self.predict([""])
            self.finished(length)
        return predicted


class NearestPrompts:
    """The lengths of the responses to the k nearest training prompts, by a pretrained encoder's embeddings."""

    def __init__(self, bins: Bins, embed: Embed, vectors: Vectors, answers: Array, k: int) -> None:
        """``answers``: the distribution over the bins of each of ``n`` training prompts, shape ``[n, K]``."""
        from sklearn.neighbors import NearestNeighbors

        self.bins = bins
        self.k = k
        self._embed = embed
        self._answers = answers
        self._prior = answers.mean(axis=0)
        # On the unit sphere the nearest by angle are the nearest by distance.
        self._index: Any = NearestNeighbors(algorithm="brute").fit(vectors)
        self._parameters: tuple[str, ...] = ()

    @classmethod
    def fit(cls, fit: Examples, held: Examples, bins: Bins, embed: Embed) -> NearestPrompts:
        """Keep the rows of ``fit``; k is the one with the smallest loss on ``held``."""
        found = cls(bins, embed, embed(fit.views), fit.targets(bins, _SMOOTHING).astype(np.float64), 1)
        found._parameters = fit.parameters
        most = min(max(NEIGHBOURS), len(fit))
        near = found._nearest(held.views, most)
        targets = held.targets(bins).astype(np.float64)
        tried = [k for k in NEIGHBOURS if k <= most] or [most]
        losses = [cross_entropy(np.log(found._spread(near[:, :k])), targets) for k in tried]
        found.k = tried[int(np.argmin(losses))]
        return found

    def predict(self, requests: Sequence[Request], /) -> list[LengthDistribution]:
        if not requests:
            return []
        shares = self._spread(self._nearest([read_request(r, self._parameters) for r in requests], self.k))
        return [self.bins.distribution(row) for row in shares]

    def _nearest(self, views: Sequence[RequestView], k: int) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = self._index.kneighbors(self._embed(views), n_neighbors=k, return_distance=False)
        return found

    def _spread(self, near: npt.NDArray[np.int64]) -> Array:
        weights = self._answers[near].sum(axis=1) + _PRIOR * self._prior
        return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)


class OtherSample:
    """A response's length given that of another response to the same prompt: an upper bound, not a predictor.

    The rest is the sampler's randomness. Learned from training rows, with a Gaussian kernel over bins.
    """

    def __init__(self, bins: Bins, table: Array, width: float) -> None:
        """``table``: shape ``[K, K]``, row j is the distribution given that the other response lies in bin j."""
        self.bins = bins
        self.table = table
        self.width = width

    @classmethod
    def fit(cls, fit: Examples, held: Examples, bins: Bins) -> OtherSample:
        """Learn from ``fit``; ``held`` chooses the kernel's width. A row without another sample is a TraceError."""
        _require_samples([*fit.samples, *held.samples] if len(fit) and len(held) else [()])
        k = len(bins)
        counts = np.zeros((k, k))
        np.add.at(counts, (bins.index([s[-1] for s in fit.samples]), bins.index(fit.lengths)), 1.0)
        prior = bins.shares(fit.lengths)
        other, own = bins.index([s[-1] for s in held.samples]), np.eye(k)[bins.index(held.lengths)]
        tables = [_smoothed(counts, prior, width) for width in WIDTHS]
        best = int(np.argmin([cross_entropy(np.log(table[other]), own) for table in tables]))
        return cls(bins, tables[best], WIDTHS[best])

    def given(self, records: Sequence[Record]) -> list[LengthDistribution]:
        """One distribution per record, from its last other sample; a record without one is a TraceError."""
        _require_samples([r.sample_tokens for r in records])
        rows = self.bins.index([r.sample_tokens[-1] for r in records])
        return [self.bins.distribution(self.table[j]) for j in rows]


def _require_samples(samples: Sequence[Sequence[int]]) -> None:
    if not all(samples):
        raise TraceError("not every row has another answer to the same prompt", fix="name them with --sample-field")


def _smoothed(counts: Array, prior: Array, width: float) -> Array:
    """Distributions given each bin of the other response: a kernel over that bin, and half as wide over the own one."""
    at = np.arange(len(counts))
    away = np.subtract.outer(at, at)
    given, own = np.exp(-0.5 * (away / width) ** 2), np.exp(-0.5 * (away / (0.5 * width)) ** 2)
    own /= own.sum(axis=1, keepdims=True)
    table = given @ counts @ own + _PRIOR * prior
    return np.asarray(table / table.sum(axis=1, keepdims=True), dtype=np.float64)


def side_by_side(
    parts: Parts,
    records: Sequence[Record],
    bins: Bins,
    *,
    trained: Mapping[str, Predicts],
    embed: Embed | None = None,
    latency: bool = True,
    progress: Progress = silent,
) -> dict[str, dict[str, float]]:
    """Evaluate baselines, learned from ``parts``, and ``trained`` predictors on ``records``, which neither has seen.

    Returns:
        Name -> the keys of :func:`~ecoserve.predictor.evaluation.evaluate_predictor`: ``constant_median``,
        ``prompt_length``, ``history_window``, ``nearest_prompts`` (given ``embed``), the names of ``trained``, and
        where every row has other responses :data:`UPPER_BOUNDS` (the second is a point, so it has :data:`POINT_KEYS`).
    """
    rows = scored_records(records)
    requests = [asked_of(r) or "" for r in rows]
    y = true_lengths(rows)
    predictors: dict[str, Predicts] = {
        "constant_median": ConstantMedian.fit(parts.fit, bins),
        "prompt_length": PromptLength.fit(parts.fit, bins=bins),
        "history_window": HistoryWindow(bins, parts.fit.lengths[-WINDOW:]),
    }
    if embed is not None:
        progress("embedding prompts", 0, 1)
        predictors["nearest_prompts"] = NearestPrompts.fit(parts.fit, parts.held, bins, embed)
    predictors |= trained
    found: dict[str, dict[str, float]] = {}
    for i, (name, predictor) in enumerate(predictors.items()):
        progress(f"evaluating {name}", i, len(predictors))
        # The history window moves on from row to row, as it would in serving them.
        if isinstance(predictor, HistoryWindow):
            predicted = predictor.follow(y.astype(int).tolist())
        else:
            predicted = predict_all(predictor, requests)
        found[name] = score(predicted, y)
        if latency:
            found[name] |= measure_latency(predictor, requests)
    return found | upper_bounds(parts, rows, bins)


def upper_bounds(parts: Parts, rows: Sequence[Record], bins: Bins) -> dict[str, dict[str, float]]:
    """:data:`UPPER_BOUNDS` on ``rows``; nothing where not every row, here and in training, has another response."""
    if not all(r.sample_tokens for r in rows) or not (all(parts.fit.samples) and all(parts.held.samples)):
        return {}
    y = true_lengths(rows)
    one = OtherSample.fit(parts.fit, parts.held, bins).given(rows)
    mean = score([LengthDistribution.point(max(1, round(float(np.mean(r.sample_tokens))))) for r in rows], y)
    return {"one_other_sample": score(one, y), "other_samples_mean": {k: mean[k] for k in POINT_KEYS}}
