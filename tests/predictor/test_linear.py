"""The linear model that a server learns: what its features hold, what it finds, changes of level, cut-off responses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ecoserve.errors import CheckpointError
from ecoserve.predictor import load_predictor
from ecoserve.predictor.calibration import Calibration
from ecoserve.predictor.config import PredictorConfig
from ecoserve.predictor.linear import BUCKETS, FILE, TERMS, LinearPredictor, Numbers, Row, rows_of
from ecoserve.predictor.linear_fitting import Fitted, Rows, fit_linear, level_changes
from ecoserve.predictor.text import read_request

TOPICS = ("name", "list", "explain", "essay")
#: The first buckets of "Name a word, name it", in order.
FIRST_PLACES = [878, 9183, 15939]


def prompts(count: int, seed: int = 0) -> tuple[list[str], np.ndarray]:
    """Prompts whose topic sets the median length, 20 to 540 tokens, and lengths around it."""
    rng = np.random.default_rng(seed)
    topic = rng.integers(0, len(TOPICS), count)
    texts = [f"{TOPICS[t]} something about thing{i % 50} please" for i, t in enumerate(topic)]
    return texts, np.maximum(1, np.rint(20.0 * 3.0**topic * np.exp(0.4 * rng.standard_normal(count)))).astype(int)


def rows_for(texts: list[str], lengths: np.ndarray, ended: np.ndarray | None = None) -> Rows:
    rows = rows_of([read_request(t) for t in texts])
    return Rows(
        np.stack([r.dense for r in rows]),
        np.concatenate([[0], np.cumsum([len(r.places) for r in rows])]),
        np.concatenate([r.places for r in rows]),
        np.concatenate([r.times for r in rows]),
        lengths.astype(np.int64),
        np.ones(len(texts), dtype=bool) if ended is None else ended,
    )


def predictor(found: Fitted) -> LinearPredictor:
    config = PredictorConfig(
        backend="linear",
        edges=found.bins.edges,
        prior=tuple(found.prior.tolist()),
        trace_name="t",
        trace_format="t",
        trace_sha256="0" * 64,
        length_source="t",
        rows_trained=1,
        rows_held_out=0,
        seed=0,
    )
    assert isinstance(found.learned, Numbers)
    return LinearPredictor(config, Calibration(), found.learned)


def fitted(rows: Rows) -> Fitted:
    found = fit_linear(rows)
    assert found is not None
    return found


def test_a_row_is_numbers_of_bounded_size_and_the_same_in_every_process() -> None:
    (short, long) = rows_of([read_request("Name a word, name it"), read_request("word " * 200_000 + "x" * 100_000)])
    assert len(long.places) <= TERMS
    assert short.times.max() == 2
    # Fixed numbers: what was kept by one process means the same to the next.
    assert sorted(short.places.tolist())[:3] == FIRST_PLACES
    assert max(short.places.max(), long.places.max()) < BUCKETS
    assert {x.dtype.kind for row in (short, long) for x in (row.dense, row.places, row.times)} == {"f", "u"}


def test_it_learns_topics_covers_what_it_says_and_survives_its_checkpoint(tmp_path: Path) -> None:
    found = fitted(rows_for(*prompts(600)))
    model = predictor(found)
    texts, lengths = prompts(800, seed=1)
    predicted = model.predict(texts)
    for level in (0.1, 0.5, 0.9):
        assert np.mean(lengths <= [d.quantile(level) for d in predicted]) == pytest.approx(level, abs=0.05)
    medians = np.array([d.quantile(0.5) for d in predicted])
    for number, topic in enumerate(TOPICS):
        own = medians[[t.startswith(topic) for t in texts]]
        assert np.median(own) == pytest.approx(20 * 3.0**number, rel=0.15)
    assert found.gains.mean() > 2 * found.gains.std() / np.sqrt(len(found.gains))
    assert (found.since, found.factor) == (600, 1.0)

    loaded = load_predictor(model.save_pretrained(tmp_path / "c"))
    for a, b in zip(predicted, loaded.predict(texts), strict=True):
        assert a.probs == pytest.approx(b.probs, abs=1e-5)


def test_a_checkpoint_of_other_shapes_is_refused(tmp_path: Path) -> None:
    model = predictor(fitted(rows_for(*prompts(100))))
    object.__setattr__(model.numbers, "idf", np.zeros(7))
    with pytest.raises(CheckpointError, match=FILE):
        load_predictor(model.save_pretrained(tmp_path / "c"))


def test_requests_unlike_all_that_were_seen_stay_within_what_was_seen() -> None:
    model = predictor(fitted(rows_for(*prompts(200))))
    strange = Row(np.full_like(rows_of([read_request("")])[0].dense, 1e6), *[np.zeros(0, dtype=int)] * 2)  # type: ignore[arg-type]
    assert 5 < np.exp(model.numbers.log_lengths([strange])[0]) < 3000


@pytest.mark.parametrize(("factor", "after"), [(3.0, 60), (0.4, 60), (1.0, 60)])
def test_after_a_change_of_level_older_rows_still_say_which_is_longer(factor: float, after: int) -> None:
    texts, lengths = prompts(1000)
    lengths[-after:] = np.maximum(1, lengths[-after:] * factor)
    found = fitted(rows_for(texts, lengths))
    if factor == 1.0:
        assert (found.since, found.factor) == (1000, 1.0)
    else:
        assert found.since == pytest.approx(after, abs=12)
        assert found.factor == pytest.approx(factor, rel=0.2)
    texts, lengths = prompts(400, seed=2)
    medians = [d.quantile(0.5) for d in predictor(found).predict(texts)]
    assert np.median(lengths * factor / medians) == pytest.approx(1.0, abs=0.2)
    assert np.corrcoef(np.log(medians), np.log(lengths))[0, 1] > 0.85


def test_noise_is_no_change_of_level() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        moved, start = level_changes(rng.standard_t(4, 1000))
        assert start == 0
        assert not moved.any()


def test_responses_that_were_cut_off_count_as_longer() -> None:
    """Every other request has a limit that cuts half of the topics off; lengths are learned as if it had not."""
    texts, lengths = prompts(1500)
    limit = np.where(np.arange(1500) % 2, 100, 10**6)
    found = fitted(rows_for(texts, np.minimum(lengths, limit), lengths <= limit))
    ask = [f"{t} something about thing1 please" for t in TOPICS]
    for number, d in enumerate(predictor(found).predict(ask)):
        assert d.quantile(0.5) == pytest.approx(20 * 3.0**number, rel=0.3)


@pytest.mark.parametrize("count", [40, 200])
def test_nothing_is_learned_of_too_few_or_equal_lengths(count: int) -> None:
    texts, lengths = prompts(count)
    assert fit_linear(rows_for(texts, lengths if count < 50 else np.full(count, 7))) is None
