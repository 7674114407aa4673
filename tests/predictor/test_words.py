"""The word model's own way to a score is scikit-learn's, to the last bit."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from ecoserve.predictor.boosting import features as request_features
from ecoserve.predictor.boosting.words import WordModel, _vectorizer
from ecoserve.predictor.text import read_request

TERMS = ["a", "b", "a b", "?", "b ?", "数", "long", "long long"]
DRAW = np.random.default_rng(0)
MODEL = WordModel(TERMS, DRAW.uniform(1, 5, len(TERMS)), DRAW.normal(size=(len(TERMS), 3)), DRAW.normal(size=3))
REFERENCE = _vectorizer(vocabulary={t: i for i, t in enumerate(TERMS)})
REFERENCE.idf_ = MODEL.idf
TEXTS = st.lists(st.sampled_from(["a", "b", "?", "数", "long", "other", "\n"]), max_size=30).map(" ".join)


@given(st.lists(TEXTS | st.text(max_size=30), min_size=1, max_size=4))
@settings(deadline=None, max_examples=60)
def test_scores_are_those_of_the_vectorizer_and_the_product(texts: list[str]) -> None:
    views = [read_request(t) for t in texts]
    expected = REFERENCE.transform([v.text for v in views]) @ MODEL.weights + MODEL.intercepts
    assert np.array_equal(MODEL.scores(views), expected)


def test_no_requests_have_no_scores() -> None:
    assert MODEL.scores([]).shape == (0, 3)


@given(st.text(max_size=60))
@settings(deadline=None)
def test_characters_are_counted_alike_in_and_beyond_ascii(text: str) -> None:
    assert request_features._count(str.isdigit, request_features.digits, text) == sum(map(str.isdigit, text))
    assert request_features._count(str.isupper, request_features.ascii_uppercase, text) == sum(map(str.isupper, text))
