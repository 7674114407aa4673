"""Recipes: one file, one command, the same training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ecoserve.data import Trace, save_trace
from ecoserve.errors import ConfigError
from ecoserve.predictor import load_predictor
from ecoserve.predictor.encoder.settings import EncoderSettings
from ecoserve.predictor.recipes import Recipe, read_recipe

Call = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def written(folder: Path, **content: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_there_are_recipes() -> None:
    assert {p.stem for p in RECIPES} >= {"alpaca", "alpaca-encoder", "alpaca-lightgbm", "alpaca-eval", "sharegpt"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_of_the_repository_is_one(path: Path) -> None:
    from ecoserve.data.formats import get_format

    recipe = read_recipe(path)
    while recipe is not None:
        assert recipe.made_settings() is not None
        assert recipe.format == "auto" or get_format(recipe.format)
        recipe = recipe.first  # type: ignore[assignment]


def test_a_recipe_trains_and_options_win(call: Call, trace: Trace, tmp_path: Path) -> None:
    save_trace(trace, tmp_path / "trace.jsonl")
    recipe = written(
        tmp_path, trace="trace.jsonl", backend="lightgbm", seed=3, max_rows=300, served_model="m",
        settings={"rounds": 30, "leaves": 5}, bins={"bins": 12},
    )  # fmt: skip
    out, summary = tmp_path / "out", tmp_path / "summary.json"
    call("train_predictor", "--recipe", recipe, "-o", out, "--rounds", "4", "--seed", "5", "--json", summary, "--quiet")
    config = load_predictor(out).config
    assert (config.backend, config.served_model, config.seed) == ("lightgbm", "m", 5)
    asked = config.hyperparameters
    assert (asked["rounds"], asked["leaves"], asked["bins"], asked["max_rows"]) == (4, 5, 12, 300)
    assert json.loads(summary.read_text())["seed"] == 5


def test_a_first_stage_is_trained_before(
    call: Call, trace: Trace, tiny_encoder: Path, tmp_path: Path, one_thread: Callable[[], Any]
) -> None:
    save_trace(trace, tmp_path / "trace.jsonl")
    small = {"epochs": 1, "max_length": 32, "batch_size": 32}
    first = {"trace": "trace.jsonl", "backend": "encoder", "max_rows": 100, "seed": 1}
    recipe = written(
        tmp_path, backend="encoder", max_rows=100, settings=small,
        first={**first, "settings": {**small, "encoder": str(tiny_encoder)}},
    )  # fmt: skip
    with one_thread():
        call("train_predictor", tmp_path / "trace.jsonl", "--recipe", recipe, "-o", tmp_path / "out", "--quiet")
    earlier, config = load_predictor(tmp_path / "out-first").config, load_predictor(tmp_path / "out").config
    assert earlier.seed == 1
    assert config.model["started_from"]["trace_sha256"] == earlier.trace_sha256


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("- a\n- b\n", "is no recipe"),
        ("a: [", "is no YAML"),
        ("!!python/object/apply:os.system [ls]", "is no YAML"),
        ("colour: red\n", "colour: there is no such setting"),
        ("backend: lightgbm\nsettings: {epochs: 3}\n", "epochs"),
        ("backend: adapted\n", "backend"),
        ("settings: {encoder: {epochs: 0}}\n", "greater than 0"),
        ("seed: -1\n", "seed: must be greater than or equal to 0"),
        ("held_out: 1.5\n", "held_out"),
        ("backend: lightgbm\nfirst: {backend: encoder}\n", "lightgbm has none"),
    ],
)
def test_what_is_no_recipe_is_said_in_one_line(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=says) as caught:
        read_recipe(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_files(call: Call, tmp_path: Path) -> None:
    from ecoserve.errors import TraceError

    with pytest.raises(ConfigError, match="no such recipe"):
        call("train_predictor", "--recipe", tmp_path / "nothing.yaml", "-o", tmp_path / "out")
    with pytest.raises(ConfigError, match="TRACE: no trace to learn from"):
        call("train_predictor", "--recipe", written(tmp_path, backend="lightgbm"), "-o", tmp_path / "out")
    with pytest.raises(TraceError, match="missing"):
        call("train_predictor", "--recipe", written(tmp_path, trace="missing.jsonl"), "-o", tmp_path / "out")


def test_another_backend_takes_none_of_the_recipes_hyperparameters() -> None:
    recipe = Recipe(backend="encoder", settings={"epochs": 5}, seed=2)
    assert recipe.with_options({"backend": "lightgbm"}).settings == {}
    stacked = Recipe().with_options({"epochs": 2, "rounds": 9})
    assert stacked.settings == {"encoder": {"epochs": 2}, "lightgbm": {"rounds": 9}}
    again = recipe.with_options({"body_lr": 1e-5}).made_settings()
    assert isinstance(again, EncoderSettings)
    assert (again.epochs, again.body_lr) == (5, 1e-5)


def test_the_pretrained_body_is_where_the_first_stage_begins() -> None:
    recipe = Recipe(first=Recipe(backend="encoder", settings={"epochs": 1})).with_options({"encoder": "/bodies/large"})
    assert recipe.first is not None
    first = recipe.first.made_settings()
    assert isinstance(first, EncoderSettings)
    assert (first.encoder, first.epochs) == ("/bodies/large", 1)
    assert recipe.settings == {}
