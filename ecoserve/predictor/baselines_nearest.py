"""Nearest neighbours: the answers to the training prompts that mean about the same.

Rule: a request is embedded by a pretrained encoder as it comes (mean over its tokens, length one); its distribution is
how the answers to its k nearest training prompts are spread over the bins. k is the one with the smallest loss on
held-out rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from ecoserve.lengths import LengthDistribution
from ecoserve.predictor.bins import Bins
from ecoserve.predictor.calibration import cross_entropy
from ecoserve.predictor.examples import Examples
from ecoserve.predictor.text import Request, RequestView, read_request

Vectors: TypeAlias = npt.NDArray[np.float32]
#: Requests to vectors of length one, shape ``[n, hidden]``.
Embed: TypeAlias = "Callable[[Sequence[RequestView]], Vectors]"
#: Numbers of neighbours that are tried.
NEIGHBOURS: Final = (5, 10, 20, 40, 80, 160)
#: Spread of each neighbour's length over neighbouring bins, in bins, as in training the encoder.
_SMOOTHING: Final = 1.0
#: The prior's weight, in neighbours.
_PRIOR: Final = 1.0
_BATCH_ROWS: Final = 64


class NearestPrompts:
    """k-NN over embeddings."""

    def __init__(self, bins: Bins, embed: Embed, vectors: Vectors, answers: npt.NDArray[np.float64], k: int) -> None:
        """``answers``: what each of ``n`` training prompts says about the bins, shape ``[n, K]``."""
        self.bins = bins
        self.k = k
        self._embed = embed
        self._answers = answers
        self._prior = answers.mean(axis=0)
        self._index = _index(vectors)
        self._parameters: tuple[str, ...] = ()

    @classmethod
    def fit(cls, fit: Examples, held: Examples, bins: Bins, embed: Embed) -> NearestPrompts:
        """Remember the rows of ``fit``; those of ``held`` choose k."""
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
        """One distribution per request."""
        if not requests:
            return []
        shares = self._spread(self._nearest([read_request(r, self._parameters) for r in requests], self.k))
        return [LengthDistribution.from_weights(self.bins.edges, row, self.bins.closed_by) for row in shares]

    def _nearest(self, views: Sequence[RequestView], k: int) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = self._index.kneighbors(self._embed(views), n_neighbors=k, return_distance=False)
        return found

    def _spread(self, near: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        weights = self._answers[near].sum(axis=1) + _PRIOR * self._prior
        return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)


def _index(vectors: Vectors) -> Any:
    from sklearn.neighbors import NearestNeighbors

    # On the unit sphere the nearest by angle are the nearest by distance.
    return NearestNeighbors(algorithm="brute").fit(vectors)


class FrozenEncoder:
    """A pretrained encoder as it comes, as an :data:`Embed`."""

    def __init__(self, folder: Path, max_length: int = 128) -> None:
        """Load the encoder in ``folder`` (:func:`~ecoserve.predictor.encoder.source.find_encoder`).

        ``max_length``: tokens read of a request at most, or as many as the encoder has positions for.
        """
        import torch

        from ecoserve.predictor.encoder.inference import for_cpu
        from ecoserve.predictor.encoder.model import pretrained
        from ecoserve.predictor.encoder.tokenizing import RequestTokenizer

        # The head is not used; what is wanted is the body as predictors run it.
        model, config = pretrained(folder, torch.ones(1))
        self._body: Any = for_cpu(model.eval().requires_grad_(False)).body
        self._hidden = int(config["hidden_size"])
        most = int(config.get("max_position_embeddings", max_length))
        self._tokenizer = RequestTokenizer.load(folder, min(max_length, most))

    def __call__(self, views: Sequence[RequestView]) -> Vectors:
        import torch

        from ecoserve.predictor.encoder.predictor import pad

        ids = self._tokenizer(views)
        out = np.zeros((len(ids), self._hidden), dtype=np.float32)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        with torch.inference_mode():
            for start in range(0, len(order), _BATCH_ROWS):
                rows = order[start : start + _BATCH_ROWS]
                inputs, mask = pad([ids[i] for i in rows])
                states = self._body(input_ids=inputs, attention_mask=mask).last_hidden_state
                weight = mask.unsqueeze(-1).to(states.dtype)
                pooled = (states * weight).sum(1) / weight.sum(1).clamp(min=1.0)
                out[rows] = torch.nn.functional.normalize(pooled, dim=1).numpy()
        return out
