"""Temperature and map of levels: right where the predictor is wrong, and nothing where it is right."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.special import ndtr

from ecoserve.data import synthetic_trace
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor.bins import Bins
from ecoserve.predictor.boosting.predictor import BoostingSettings
from ecoserve.predictor.calibration import (
    Calibration,
    LevelMap,
    cdf_of,
    cross_entropy,
    likeliest_temperature,
    softmax,
)
from ecoserve.predictor.calibration_fitting import (
    LEVELS,
    Answers,
    Control,
    Spans,
    control_of,
    fit_calibration,
    fit_map,
    pinball,
    quantiles,
)
from ecoserve.predictor.config import PredictorConfig
from ecoserve.predictor.examples import training_parts
from ecoserve.predictor.text import RequestView

Array = npt.NDArray[np.float64]
WIDTH = 12
EDGES: Array = np.arange(0, 601, WIDTH).astype(np.float64)
BINS = len(EDGES) - 1


def views(n: int) -> list[RequestView]:
    return [RequestView("x")] * n


def right_predictor(rng: np.random.Generator, n: int, answers: int = 1) -> tuple[Array, npt.NDArray[np.int64]]:
    """Logits, and lengths drawn from what they say: shapes ``[n, K]`` and ``[n, answers]``."""
    centre = rng.uniform(100, 400, n)
    logits = -(((EDGES[1:] - WIDTH / 2 - centre[:, None]) / 90.0) ** 2)
    cdf = cdf_of(softmax(logits))
    u = rng.random((n, answers))
    k = np.minimum((cdf[:, 1:, None] < u[:, None, :]).sum(axis=1), BINS - 1)
    return logits, (k * WIDTH + rng.integers(1, WIDTH + 1, (n, answers))).astype(np.int64)


def skewed_predictor(
    rng: np.random.Generator, n: int, answers: int = 1, edges: Array = EDGES
) -> tuple[Array, npt.NDArray[np.int64]]:
    """Too sure of itself, and answers lie to the right of what it says: no sharpness is right."""
    centre = rng.uniform(100, 300, n)
    middles = (edges[1:] + edges[:-1]) / 2
    logits = -(((middles - centre[:, None]) / 60.0) ** 2)
    lengths = np.clip(np.rint(centre[:, None] + rng.gamma(3.0, 30.0, (n, answers))), 1, 600)
    return logits, lengths.astype(np.int64)


def coverage(cdf: Array, lengths: npt.NDArray[np.int64], levels: Array, edges: Array = EDGES) -> Array:
    return np.asarray((lengths[:, :1] <= quantiles(cdf, edges, levels)).mean(axis=0))


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_likeliest_temperature_undoes_over_and_under_confidence(factor: float) -> None:
    rng = np.random.default_rng(0)
    true_logits = rng.normal(0, 1.5, (4000, 8))
    drawn = np.array([rng.choice(8, p=p) for p in softmax(true_logits)])
    found, loss = likeliest_temperature(true_logits * factor, np.eye(8)[drawn])
    assert found == pytest.approx(factor, rel=0.08)
    assert loss <= cross_entropy(true_logits * factor, np.eye(8)[drawn])


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0])
def test_the_fitted_temperature_undoes_them_too(factor: float) -> None:
    logits, lengths = right_predictor(np.random.default_rng(1), 1500)
    found = fit_calibration(logits * factor, lengths.tolist(), EDGES, views(1500))
    assert found.temperature == pytest.approx(factor, rel=0.1)
    assert (found.rows, found.answers) == (1500, 1500)
    assert found.pinball_before is not None
    assert found.pinball_after is not None
    assert found.pinball_after <= found.pinball_before + 0.01


def test_probabilities_follow_the_temperature_and_the_map() -> None:
    logits = np.log([[0.7, 0.2, 0.1]])
    assert Calibration().probabilities(logits)[0] == pytest.approx([0.7, 0.2, 0.1])
    assert Calibration(temperature=4.0).probabilities(logits)[0, 0] < 0.5
    assert Calibration(temperature=0.25).probabilities(logits)[0, 0] > 0.95
    mapped = Calibration(map=LevelMap(levels=(0.5,), scores=(0.7,)))
    assert mapped.probabilities(logits)[0] == pytest.approx([0.5, 1 / 3, 1 / 6])


def test_cross_entropy_is_stable_and_least_at_the_truth() -> None:
    targets = np.array([[0.5, 0.25, 0.25]])
    entropy = -(targets * np.log(targets)).sum()
    assert cross_entropy(np.log(targets), targets) == pytest.approx(entropy)
    assert cross_entropy(np.array([[0.0, 0.0, 0.0]]), targets) > entropy
    assert np.isfinite(cross_entropy(np.array([[1e4, -1e4, 0.0]]), targets))


def test_what_is_badly_off_is_repaired_to_within_a_point() -> None:
    rng = np.random.default_rng(2)
    levels = np.array(LEVELS[:-1])
    # A point of coverage is less than what bins twice as wide get wrong.
    edges = np.arange(0, 601, WIDTH // 2).astype(np.float64)
    logits, lengths = skewed_predictor(rng, 4000, 3, edges)
    new, true = skewed_predictor(rng, 20_000, edges=edges)
    found = fit_calibration(logits, lengths.tolist(), edges, views(4000))

    def off(calibration: Calibration) -> float:
        return float(np.abs(coverage(calibration.cdf(new), true, levels, edges) - levels).max())

    assert off(Calibration()) > 0.2
    assert off(found) < 0.012
    assert off(found.model_copy(update={"map": LevelMap()})) > 0.05
    # What predictors return goes by the map.
    predicted = LengthDistribution.from_weights([int(e) for e in edges], found.probabilities(new[:1])[0])
    assert predicted.quantile(0.9) == quantiles(found.cdf(new[:1]), edges, np.array([0.9]))[0, 0]


def test_where_nothing_is_wrong_next_to_nothing_is_changed() -> None:
    rng = np.random.default_rng(3)
    untouched, moved = 0, []
    for _ in range(60):
        logits, lengths = right_predictor(rng, 600)
        found = fit_map(Answers.of(lengths.tolist()).spans(Calibration().cdf(logits), EDGES))
        untouched += sum(abs(s - q) < 1e-6 for s, q in zip(found.scores, found.levels, strict=True))
        untouched += len(LEVELS) if not found.levels else 0
        scores = dict(zip(found.levels, found.scores, strict=True))
        moved.append(scores.get(0.9, 0.9) - 0.9)
    # A standard normal lies within 2 with a probability of 0.954.
    assert untouched / (60 * len(LEVELS)) == pytest.approx(0.954, abs=0.04)
    # The empirical quantile itself would scatter by sqrt(0.9 * 0.1 / 600) = 0.0122.
    assert np.std(moved) < 0.007


def test_more_answers_to_the_same_prompts_make_it_scatter_less() -> None:
    def scatter(answers: int) -> float:
        rng = np.random.default_rng(4)
        new, true = right_predictor(np.random.default_rng(5), 2000)
        found = []
        for _ in range(12):
            logits, lengths = right_predictor(rng, 300, answers)
            found.append(
                coverage(fit_calibration(logits, lengths.tolist(), EDGES, views(300)).cdf(new), true, np.array([0.9]))
            )
        return float(np.sqrt(np.mean(np.square(np.asarray(found) - 0.9))))

    one, eight = scatter(1), scatter(8)
    assert eight < 0.7 * one
    assert one < 0.02


def test_every_row_weighs_the_same_however_many_answers_it_has() -> None:
    rng = np.random.default_rng(6)
    logits, lengths = skewed_predictor(rng, 203)
    once = [[int(n)] for n in lengths[:, 0]]
    often = [row * (1 + 4 * (i % 3)) for i, row in enumerate(once)]
    a, b = (fit_calibration(logits, rows, EDGES, views(203)) for rows in (once, often))
    assert a.temperature == pytest.approx(b.temperature)
    assert a.map.scores == pytest.approx(b.map.scores)
    assert (a.answers, b.answers) == (203, sum(map(len, often)))


def test_whole_tokens_of_a_right_predictor_are_left_alone() -> None:
    # Most answers have one to three tokens, each of a probability that levels lie within.
    rng = np.random.default_rng(7)
    edges = np.array([0.0, 1.0, 2.0, 3.0, 50.0])
    p = np.array([0.4, 0.25, 0.2, 0.15])
    lengths = np.array([[1], [2], [3], [20]])[rng.choice(4, 800, p=p)] + 0
    long = lengths[:, 0] == 20
    lengths[long, 0] = rng.integers(4, 51, long.sum())
    found = fit_map(Answers.of(lengths.tolist()).spans(cdf_of(np.tile(p, (800, 1))), edges))
    after = np.diff(found.apply(cdf_of(p[None])))[0]
    assert after == pytest.approx(p, abs=0.03)


def test_few_rows_calibrate_little_or_nothing() -> None:
    logits, lengths = skewed_predictor(np.random.default_rng(8), 60)
    rows = lengths.tolist()
    assert fit_calibration(logits[:19], rows[:19], EDGES, views(19)) == Calibration()
    some = fit_calibration(logits[:49], rows[:49], EDGES, views(49))
    assert some.temperature != 1.0
    assert some.map == LevelMap()
    assert some.bounds is None
    enough = fit_calibration(logits, rows, EDGES, views(60))
    assert enough.map.levels
    assert enough.bounds is not None


weights = st.lists(st.floats(0.0, 1.0).filter(lambda p: p == 0.0 or p > 1e-6), min_size=BINS, max_size=BINS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 900), min_size=50, max_size=120), weights.filter(lambda w: sum(w) > 1e-3), st.data())
def test_whatever_was_fitted_the_result_is_a_distribution(
    lengths: list[int], shares: list[float], data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    logits = np.log(np.maximum(rng.dirichlet(np.full(BINS, 0.3), len(lengths)), 1e-9))
    found = fit_calibration(logits, [[n] * (1 + n % 3) for n in lengths], EDGES, views(len(lengths)))
    assert Calibration.model_validate_json(found.model_dump_json()) == found
    cdf = cdf_of(np.asarray([shares]) / sum(shares))
    after = found.map.apply(cdf)
    assert after[0, 0] == 0.0
    assert after[0, -1] == 1.0
    assert (np.diff(after) >= 0.0).all()
    # What was possible stays so.
    assert (np.diff(after)[np.diff(cdf) > 1e-9] > 0.0).all()
    p = found.probabilities(10.0 * logits)
    assert (p >= 0.0).all()
    assert p.sum(axis=1) == pytest.approx(np.ones(len(lengths)))


def test_a_damaged_map_is_refused() -> None:
    whole = {"levels": [0.5, 0.9], "scores": [0.4, 0.8]}
    assert LevelMap.model_validate(whole).scores == (0.4, 0.8)
    for wrong in ({"scores": [0.4]}, {"scores": [0.8, 0.4]}, {"levels": [0.5, 1.0]}, {"scores": [0.0, 0.4]}):
        with pytest.raises(ValidationError):
            LevelMap.model_validate({**whole, **wrong})


def test_quantiles_are_those_of_the_distribution() -> None:
    rng = np.random.default_rng(6)
    edges = np.array([0, 1, 3, 10, 11, 40])
    p = rng.dirichlet(np.full(5, 0.3), 200)
    levels = np.array([0.1, 0.5, 0.9])
    found = quantiles(cdf_of(p), edges.astype(float), levels)
    lengths = [LengthDistribution.from_weights(edges.tolist(), row) for row in p]
    assert found.tolist() == [[d.quantile(float(q)) for q in levels] for d in lengths]
    assert pinball(cdf_of(p), edges.astype(float), np.full(200, 5.0)).shape == (200,)


def test_a_control_undoes_the_luck_of_the_held_out_rows() -> None:
    """Coverage on unlucky rows is off; weighed by what a cruder predictor knows of all rows, it is not."""
    rng = np.random.default_rng(8)
    hits, errors = [], []
    for _ in range(40):
        # Rows of unseen ease: both predictors' PIT values are of the same normal surprise, one more noisily.
        surprise = rng.normal(size=10_000)
        own = surprise[:1000]
        crude = 0.9 * surprise + np.sqrt(1 - 0.9**2) * rng.normal(size=10_000)
        control = Control(held=ndtr(crude[:1000]), served=ndtr(crude))
        pit = ndtr(own)
        for which, known in ((0, None), (1, control)):
            answers = Answers.of([[1.0]] * 1000, known)
            spans = Spans(answers, pit, pit)
            off, error = spans.error(0.9)
            hits.append((which, off))
            errors.append((which, error))
    spread = [float(np.std([off for w, off in hits if w == which])) for which in (0, 1)]
    stated = [float(np.mean([e for w, e in errors if w == which])) for which in (0, 1)]
    assert spread[1] < 0.75 * spread[0]
    assert stated[0] == pytest.approx(0.0095, rel=0.05)
    assert stated[1] == pytest.approx(spread[1], rel=0.35), "the standard error knows what the control takes away"


def test_other_temperatures_answers_are_moved_to_the_served_one() -> None:
    rng = np.random.default_rng(3)
    rows = 1000
    # The served answers scatter more than the three others to the same prompts.
    surprise = np.stack([rng.normal(size=rows), *(0.7 * rng.normal(size=(3, rows)))], axis=1)
    all_rows = rng.normal(size=20_000)
    control = Control(held=ndtr(surprise.ravel()), served=ndtr(all_rows))
    pit = ndtr(surprise.ravel())
    covered = []
    for known in (None, control):
        answers = Answers.of([[1.0] * 4] * rows, known)
        covered.append(float(answers.weight @ (pit <= 0.9)))
    assert covered[0] > 0.93
    assert covered[1] == pytest.approx(0.9, abs=0.006)


def test_a_control_is_made_of_trees_that_have_not_seen_the_row() -> None:
    trace = synthetic_trace(1600, seed=4)
    parts = training_parts(trace, seed=0, held_out=0.25)
    bins = Bins.fit(parts.fit.all_lengths())
    config = PredictorConfig(
        backend="lightgbm",
        edges=bins.edges,
        prior=tuple(bins.shares(parts.fit.all_lengths()).tolist()),
        trace_name="synthetic",
        trace_format=trace.format,
        trace_sha256=trace.sha256,
        length_source=trace.length_source,
        rows_trained=len(parts.fit),
        rows_held_out=len(parts.held),
        seed=0,
    )
    found = control_of(parts.fit_records, parts.held_records, config, BoostingSettings(), seed=0)
    assert found is not None
    assert len(found.served) == len(parts.fit) + len(parts.held)
    assert len(found.held) == sum(map(len, parts.held.answers))
    # Honest scores are even over 0 to 1; of rows the trees had learned they would crowd in the middle.
    assert np.quantile(found.served, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.06)
    assert control_of(parts.fit_records, parts.held_records[:100], config, BoostingSettings()) is None


@pytest.mark.parametrize("seed", range(4))
def test_being_right_about_all_is_no_excuse_for_knowing_nothing_of_each(seed: int) -> None:
    """An endless temperature predicts the same for every request, and its coverage is right."""
    rng = np.random.default_rng(seed)
    edges = np.arange(0.0, 501.0, 10.0)
    lengths = np.clip(np.rint(rng.uniform(1, 500, 60)), 1, 500)
    # Of much help, and too long by 50: no temperature makes it cover what it says, but one that says next to nothing.
    predicted = np.clip(lengths + 50.0 + rng.normal(0, 20, 60), 0, 500)
    logits = 4.0 * np.exp(-(((edges[1:] - 5.0 - predicted[:, None]) / 60.0) ** 2))
    found = fit_calibration(logits, [[n] for n in lengths], edges, views(60))
    assert found.temperature < 1.5
    before = pinball(Calibration().cdf(logits), edges, lengths).mean()
    assert pinball(Calibration(temperature=found.temperature).cdf(logits), edges, lengths).mean() < 1.02 * before
