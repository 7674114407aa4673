"""Lengths by turn, prompt band, model, language and split; and how much a group explains."""

from __future__ import annotations

import numpy as np
import pytest
from profiled import skewed, table_of, trace_of
from scipy import stats

from ecoserve.data.profiling import profile_trace
from ecoserve.data.profiling.model import Grouping
from ecoserve.data.profiling.summaries import MOST_GROUPS, OTHER, all_groupings, explained, prompt_bands
from ecoserve.data.profiling.table import language, prose


def by(name: str, lengths: object, **columns: object) -> Grouping | None:
    table = table_of(lengths, **columns)  # type: ignore[arg-type]
    found = all_groupings(table, 1.0, table)
    return next((g for g in found if g.by == name), None)


def test_groups_by_turn() -> None:
    turns = [0, 0, 1, 2, 3, 4, 7, 8, 15, 16, 40]
    found = by("turn", list(range(1, 12)), turn=turns)
    assert found is not None
    assert {g.name: g.lengths.n for g in found.groups} == {
        "turn 1": 2, "turn 2": 1, "turn 3": 1, "turn 4": 1, "turns 5–8": 2, "turns 9–16": 2, "turn 17 and later": 2,
    }  # fmt: skip
    assert sum(g.share for g in found.groups) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("tokens", "band"),
    [(1, "1"), (2, "2–2"), (3, "3–4"), (4, "3–4"), (5, "5–8"), (1024, "513–1,024"), (1025, "1,025–2,048")],
)
def test_bands_are_octaves(tokens: int, band: str) -> None:
    prompts = np.asarray([1, *(2**k for k in range(1, 13)), 4097])
    codes, names = prompt_bands(np.concatenate((prompts, [tokens])), thin=1)
    if band not in ("1", "2–2"):
        assert names[codes[-1]] == band
    assert names[codes[0]] in ("1", "up to 1")
    assert names[codes[len(prompts) - 1]] == "over 4,096"


def test_thin_bands_at_the_ends_are_joined() -> None:
    prompts = np.asarray([2] * 3 + [100] * 50 + [200] * 50 + [5000] * 2)
    codes, names = prompt_bands(prompts, thin=30)
    assert names == ["up to 128", "over 128"]
    assert np.bincount(codes).tolist() == [53, 52]


def test_each_group_has_the_percentiles_of_its_own() -> None:
    lengths, models = skewed(3000), np.random.default_rng(1).choice(["a", "b", "c"], 3000)
    found = by("model", lengths, model=models)
    assert found is not None
    for group in found.groups:
        mine = lengths[models == group.name]
        assert group.lengths.n == len(mine)
        assert group.lengths.p90 == np.quantile(mine, 0.9, method="inverted_cdf")
    assert found.explains is not None
    assert found.explains < 0.005


def test_what_a_group_explains() -> None:
    """Two models, one three times as long: share of variance by theory."""
    rng = np.random.default_rng(0)
    models = np.repeat([0, 1], 5000)
    logs = 5 + models * np.log(3) + rng.normal(0, 0.5, 10_000)
    between = (np.log(3) / 2) ** 2
    assert explained(logs, models) == pytest.approx(between / (between + 0.25), abs=0.01)
    # Cutting noise finer explains nothing; unadjusted it would be 0.1.
    assert explained(rng.normal(size=5000), rng.integers(0, 500, 5000)) == pytest.approx(0.0, abs=0.02)
    groups = [logs[models == 0][:50], logs[models == 1][:60]]
    f = stats.f_oneway(*groups).statistic
    n, k = 110, 2
    assert explained(np.concatenate(groups), np.repeat([0, 1], [50, 60])) == pytest.approx(
        1 - (n - 1) / ((k - 1) * f + n - k)
    )
    assert explained(np.ones(50), np.repeat([0, 1], 25)) is None
    assert explained(np.arange(3), np.asarray([0, 1, 2])) is None


def test_the_rarest_of_many_models_are_one_group() -> None:
    models = [f"m{i:02d}" for i in range(20) for _ in range(20 - i)]
    found = by("model", skewed(len(models)), model=models)
    assert found is not None
    assert len(found.groups) == MOST_GROUPS
    assert found.groups[0].name == "m00"
    assert found.groups[-1].name == OTHER
    assert sum(g.lengths.n for g in found.groups) == len(models)


def test_splits_and_unnamed_models() -> None:
    found = by("split", [1, 2, 3, 4], split=["train", "dev", "train", None])
    assert found is not None
    assert {g.name for g in found.groups} == {"train", "dev", "not named"}
    assert by("model", [1, 2], model=["a", "a"]) is None


def test_languages_of_prompts() -> None:
    english = [f"Please write a short story about the history of number {i} and its friends." for i in range(60)]
    german = [f"Bitte schreibe mir eine kurze Geschichte über die Zahl {i} und ihre Freunde." for i in range(60)]
    lengths = [100 + i for i in range(60)] + [700 + i for i in range(60)]
    found = next(g for g in profile_trace(trace_of(lengths, prompt=english + german)).groupings if g.by == "language")
    assert {g.name: g.lengths.n for g in found.groups} == {"en": 60, "de": 60}
    assert {g.name: g.lengths.p50 for g in found.groups} == {"en": 129, "de": 729}
    assert found.explains is not None
    assert found.explains > 0.9


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Wie koche ich am besten Spaghetti für meine ganze Familie?", "de"),
        ("请告诉我怎么做一个好吃的蛋糕", "zh"),
        ("continue", "unclear"),
        ("", "unclear"),
        ("def f(x):\n    return x + 1\n\nprint(f(2))", "unclear"),
        ("Fix it please, what is wrong with this code?\n```python\nimport os\n```", "en"),
    ],
)
def test_language_of_a_text(text: str, code: str) -> None:
    assert language(text) == code


def test_code_and_addresses_are_no_prose() -> None:
    assert prose("See https://example.com/a?b=c now").split() == ["See", "now"]
    assert "import" not in prose("What does this do?\nimport os; x = f(1)\n")
