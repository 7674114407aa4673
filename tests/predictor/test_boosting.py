from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ecoserve.data import Message, Trace, bayes_optimal_mae, split_trace, synthetic_trace
from ecoserve.predictor import BoostingSettings, ConstantMedian, LengthPredictor, evaluate_predictor, train_predictor
from ecoserve.predictor.boosting.features import NAMES, request_features
from ecoserve.predictor.boosting.words import WordModel
from ecoserve.predictor.runtime import silent
from ecoserve.predictor.text import read_request


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> LengthPredictor:
    return train_predictor(
        synthetic_trace(2000, seed=0), backend="lightgbm", output_dir=tmp_path_factory.mktemp("learned") / "ckpt"
    )


def test_it_approaches_what_the_law_allows(learned: LengthPredictor) -> None:
    dev = split_trace(synthetic_trace(2000, seed=0))["dev"].records
    figures = evaluate_predictor(learned, dev)
    constant = evaluate_predictor(ConstantMedian.of(learned.config), dev)
    best = bayes_optimal_mae(dev)
    gained = (constant["mae_tokens"] - figures["mae_tokens"]) / (constant["mae_tokens"] - best)
    assert gained > 0.6
    assert figures["kendall_tau"] > 0.4
    assert figures["pinball_loss"] < 0.8 * constant["pinball_loss"]


def test_its_quantiles_hold_what_they_promise(learned: LengthPredictor) -> None:
    # Fresh draws of the law for requests like those it was trained on.
    fresh = split_trace(synthetic_trace(3000, seed=7))["train"].records
    figures = evaluate_predictor(learned, fresh)
    for q in (50, 80, 90, 95):
        assert figures[f"coverage_{q}"] == pytest.approx(q / 100, abs=0.06)


def test_the_same_seed_gives_the_same_predictor(trace: Trace, boosted: LengthPredictor, tmp_path: Path) -> None:
    settings = BoostingSettings(rounds=40)
    again = train_predictor(trace, backend="lightgbm", output_dir=tmp_path / "again", settings=settings)
    other = train_predictor(trace, backend="lightgbm", output_dir=tmp_path / "other", settings=settings, seed=1)
    texts = [r.prompt or "" for r in trace.records[:20]]
    assert again.predict(texts) == boosted.predict(texts)
    assert other.predict(texts) != boosted.predict(texts)


def test_features_are_what_their_names_say() -> None:
    chat = [
        Message("system", "Be brief."),
        Message("user", "Hi"),
        Message("assistant", "one two three"),
        Message("user", "List 12 tips, or 3?\nPlease"),
    ]
    row = dict(zip(NAMES, request_features([read_request(chat)])[0], strict=True))
    assert row["characters"] == len("List 12 tips, or 3?\nPlease")
    assert row["words"] == 6
    assert row["lines"] == 1
    assert row["first_line_characters"] == 19
    assert row["largest_number"] == 12
    assert row["numbers"] == 2
    assert row["turn"] == 1
    assert row["last_answer_words"] == 3
    assert row["system_characters"] == 9
    assert row["asks_list"] == 1
    assert row["asks_several"] == 1
    assert row["asks_code"] == 0
    empty = dict(zip(NAMES, request_features([read_request("")])[0], strict=True))
    assert empty["largest_number"] == -1
    assert np.isfinite(list(empty.values())).all()


def test_word_scores_of_fitted_rows_come_from_models_that_have_not_seen_them() -> None:
    # Every prompt has a word of its own and a random target: only a model that has seen the row can know it.
    rng = np.random.default_rng(0)
    views = [read_request(f"word{i} word{i} question") for i in range(120)]
    targets = rng.normal(size=(120, 1))
    model, crossed = WordModel.fit(views, targets, terms=1000, ridge=0.01, seed=0)
    seen = model.scores(views)
    assert np.corrcoef(seen[:, 0], targets[:, 0])[0, 1] > 0.9
    assert np.corrcoef(crossed[:, 0], targets[:, 0])[0, 1] < 0.5


def test_a_word_model_comes_back_as_it_was(tmp_path: Path) -> None:
    views = [read_request(t) for t in ("list two pets", "what is a pet?", "two pets, please", "list: ü")] * 3
    model, _ = WordModel.fit(views, np.arange(24.0).reshape(12, 2), terms=100, ridge=1.0, seed=0)
    model.save(tmp_path)
    assert np.array_equal(WordModel.load(tmp_path).scores(views), model.scores(views))


def test_silence_is_possible() -> None:
    silent("anything", 1, 2)
