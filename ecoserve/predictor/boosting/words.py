"""A linear model on the words of a request, whose scores the trees build on.

TF-IDF over words, punctuation and pairs of them; ridge regression from there to the mean log length and to the
probability of outliving each of some lengths. The rows it was fitted on get scores from models that have not seen them
(cross-fitting, as in Wolpert, "Stacked generalization", Neural Networks 1992), or the trees would trust them too much.
Saved as JSON (the terms) and safetensors (numbers).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ecoserve.predictor.text import RequestView

Array = npt.NDArray[np.float64]
TERMS, NUMBERS = "terms.json", "words.safetensors"
#: A word, or one mark of punctuation: "?" and ":" say what kind of answer is wanted.
_TOKEN: Final = r"(?u)\b\w+\b|[^\w\s]"
_FOLDS: Final = 5
#: Of the linear solver; a smaller one takes longer and changes the scores by less than their noise.
_TOLERANCE: Final = 1e-2


class WordModel:
    """TF-IDF and ridge regressions: requests to ``S`` scores each."""

    def __init__(self, terms: Sequence[str], idf: Array, weights: Array, intercepts: Array) -> None:
        """``V`` terms, ``idf`` of shape ``[V]``, ``weights`` of shape ``[V, S]``, ``intercepts`` of shape ``[S]``."""
        if not (idf.shape == (len(terms),) and weights.shape == (len(terms), len(intercepts))):
            raise ValueError(f"{len(terms)} terms do not fit weights of shape {weights.shape}")
        self.terms = list(terms)
        self.weights = np.ascontiguousarray(weights, dtype=np.float64)
        self.intercepts = np.asarray(intercepts, dtype=np.float64)
        self.idf = np.asarray(idf, dtype=np.float64)
        self._places = {t: i for i, t in enumerate(self.terms)}
        self._analyze = _vectorizer().build_analyzer()

    @classmethod
    def fit(
        cls, views: Sequence[RequestView], targets: Array, *, terms: int, ridge: float, seed: int
    ) -> tuple[WordModel, Array]:
        """Fit on ``n`` requests and targets of shape ``[n, S]``; also gives their cross-fitted scores, same shape."""
        from sklearn.linear_model import Ridge
        from sklearn.model_selection import KFold

        texts = [v.text for v in views]
        vectorizer = _vectorizer(min_df=2 if len(texts) >= 200 else 1, max_features=terms)
        x = vectorizer.fit_transform(texts)
        regression = Ridge(alpha=ridge, solver="sparse_cg", tol=_TOLERANCE)
        scores = np.zeros_like(targets)
        for fit, held in KFold(_FOLDS, shuffle=True, random_state=seed).split(texts):
            scores[held] = regression.fit(x[fit], targets[fit]).predict(x[held]).reshape(len(held), -1)
        final = regression.fit(x, targets)
        names = [str(t) for t in vectorizer.get_feature_names_out()]
        weights = np.atleast_2d(final.coef_).T
        return cls(names, vectorizer.idf_, weights, np.atleast_1d(final.intercept_)), scores

    def scores(self, views: Sequence[RequestView]) -> Array:
        return np.asarray([self._score(v.text) for v in views], dtype=np.float64).reshape(
            len(views), len(self.intercepts)
        )

    def _score(self, text: str) -> Array:
        """The vectorizer's ``transform`` times the weights, without the half millisecond that scikit-learn takes to
        check its arguments. Sums run in the same order."""
        counts: dict[int, int] = {}
        for term in self._analyze(text):
            place = self._places.get(term)
            if place is not None:
                counts[place] = counts.get(place, 0) + 1
        if not counts:
            return self.intercepts
        places = sorted(counts)
        x = (np.log(np.asarray([counts[p] for p in places], dtype=np.float64)) + 1.0) * self.idf[places]
        x /= np.sqrt(np.cumsum(x * x)[-1])
        return np.asarray((x[:, None] * self.weights[places]).sum(axis=0) + self.intercepts)

    def save(self, folder: Path) -> None:
        from safetensors.numpy import save_file

        (folder / TERMS).write_text(json.dumps(self.terms, ensure_ascii=False) + "\n", encoding="utf-8")
        numbers = {"idf": self.idf, "weights": self.weights, "intercepts": self.intercepts}
        save_file(numbers, folder / NUMBERS)

    @classmethod
    def load(cls, folder: Path) -> WordModel:
        from safetensors.numpy import load_file

        terms = json.loads((folder / TERMS).read_text(encoding="utf-8"))
        numbers = load_file(folder / NUMBERS)
        return cls(terms, numbers["idf"], numbers["weights"], numbers["intercepts"])


def _vectorizer(**options: Any) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=_TOKEN, **options)
