"""Ensembles: who may be combined, what comes out, and what its checkpoint stands."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest
import yaml

from ecoserve.cli.main import main
from ecoserve.data import Trace, save_trace, synthetic_trace
from ecoserve.errors import CheckpointError, ConfigError
from ecoserve.predictor import (
    BoostingSettings,
    EncoderSettings,
    LengthPredictor,
    adapt_predictor,
    combine_predictors,
    load_predictor,
    train_predictor,
)
from ecoserve.predictor.calibration import fit_weights, mixed
from ecoserve.predictor.ensemble import EnsemblePredictor
from ecoserve.predictor.examples import training_parts
from ecoserve.predictor.recipes import Recipe, read_recipe

OneThread = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def encoded_dir(encoded: LengthPredictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoded.save_pretrained(tmp_path_factory.mktemp("saved") / "encoder")


@pytest.fixture(scope="module")
def both(
    trace: Trace, encoded_dir: Path, boosted_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> LengthPredictor:
    return combine_predictors(
        trace, [encoded_dir, boosted_dir], output_dir=tmp_path_factory.mktemp("ensembles") / "both"
    )


def test_it_is_its_members_mixed_by_what_none_of_them_learned_from(
    both: LengthPredictor, encoded: LengthPredictor, boosted: LengthPredictor, trace: Trace
) -> None:
    held = training_parts(trace, seed=0).held
    logits = [encoded.logits(held.views), boosted.logits(held.views)]
    weights = fit_weights(logits, held.targets(encoded.config.bins))
    assert both.config.model["weights"] == pytest.approx(weights, abs=0.002)
    assert np.allclose(both.logits(held.views), mixed(logits, both.config.model["weights"]), atol=1e-5)
    losses = [p.config.metrics["held_out"]["pinball_loss"] for p in (both, encoded, boosted)]
    assert losses[0] <= 1.02 * min(losses[1:])
    assert both.calibration.rows == len(held)
    assert set(both.config.metrics) == {"held_out", "dev", "constant_median"}
    assert both.config.training_seconds >= encoded.config.training_seconds + boosted.config.training_seconds


def test_its_checkpoint_comes_back_and_is_guarded(both: LengthPredictor, trace: Trace, tmp_path: Path) -> None:
    folder = both.save_pretrained(tmp_path / "copy")
    texts = [r.prompt or "" for r in trace.records[:20]]
    again = load_predictor(folder)
    assert isinstance(again, EnsemblePredictor)
    assert again.predict(texts) == both.predict(texts)
    assert again.upper_bounds(texts) == both.upper_bounds(texts)
    # Saved again where it lies, it is whole; and a member is a checkpoint by itself.
    again.save_pretrained(folder)
    assert load_predictor(folder).predict(texts) == both.predict(texts)
    assert load_predictor(folder / "member-2").config.backend == "lightgbm"
    assert "ensemble" in (folder / "README.md").read_text()
    (folder / "member-1" / "README.md").write_text("mine")
    assert load_predictor(folder).config == both.config
    (folder / "member-1" / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"member-1.*SHA-256"):
        load_predictor(folder)


def test_files_outside_of_the_checkpoint_are_not_asked_for(both: LengthPredictor, tmp_path: Path) -> None:
    from ecoserve.predictor.checkpoint import _digest

    folder = both.save_pretrained(tmp_path / "copy")
    (tmp_path / "other").write_text("")
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    content = json.loads((folder / "config.json").read_text())
    for place in ("../other", str(tmp_path / "other")):
        content["files"][place] = empty
        content.pop("sha256", None)
        (folder / "config.json").write_text(json.dumps({**content, "sha256": _digest(content)}))
        with pytest.raises(CheckpointError, match="is missing"):
            load_predictor(folder)
        del content["files"][place]


def test_an_ensemble_can_be_adapted(both: LengthPredictor, tmp_path: Path) -> None:
    source = both.save_pretrained(tmp_path / "both")
    adapted = adapt_predictor(source, synthetic_trace(200, seed=7), output_dir=tmp_path / "adapted")
    again = load_predictor(tmp_path / "adapted")
    assert again.predict(["hello"]) == adapted.predict(["hello"])


def test_only_what_has_learned_the_same_is_combined(
    trace: Trace, both: LengthPredictor, boosted_dir: Path, encoded_dir: Path, tmp_path: Path
) -> None:
    quick = BoostingSettings(rounds=3)
    out = tmp_path / "out"
    train_predictor(trace, backend="lightgbm", output_dir=tmp_path / "seed1", settings=quick, seed=1)
    with pytest.raises(ConfigError, match=r"seed1: was trained with other seed.* than .*lightgbm"):
        combine_predictors(trace, [boosted_dir, tmp_path / "seed1"], output_dir=out)
    train_predictor(trace, backend="lightgbm", output_dir=tmp_path / "half", settings=quick, held_out=0.2)
    with pytest.raises(ConfigError, match="held_out"):
        combine_predictors(trace, [boosted_dir, tmp_path / "half"], output_dir=out)
    with pytest.raises(ConfigError, match="is not the trace that"):
        combine_predictors(synthetic_trace(900, seed=3), [boosted_dir, encoded_dir], output_dir=out)
    with pytest.raises(ConfigError, match="at least two members, not 1"):
        combine_predictors(trace, [boosted_dir], output_dir=out)
    made = both.save_pretrained(tmp_path / "both")
    with pytest.raises(ConfigError, match="is an ensemble predictor"):
        combine_predictors(trace, [boosted_dir, made], output_dir=out)
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        combine_predictors(trace, [boosted_dir, tmp_path / "nowhere"], output_dir=out)
    assert not out.exists()


def test_the_command_combines(
    trace: Trace, boosted_dir: Path, encoded_dir: Path, both: LengthPredictor, tmp_path: Path
) -> None:
    save_trace(trace, tmp_path / "trace.jsonl")
    summary = tmp_path / "summary.json"
    arguments = [
        "combine-predictors",
        *map(str, (tmp_path / "trace.jsonl", encoded_dir, boosted_dir)),
        *("-o", str(tmp_path / "out"), "--json", str(summary)),
    ]
    assert main(arguments) == 0
    said = json.loads(summary.read_text())
    assert (said["backend"], said["weights"]) == ("ensemble", both.config.model["weights"])
    assert load_predictor(tmp_path / "out").predict(["hello"]) == both.predict(["hello"])


def test_a_recipe_trains_its_members_and_combines_them(
    trace: Trace, tiny_settings: EncoderSettings, one_thread: OneThread, tmp_path: Path
) -> None:
    save_trace(trace, tmp_path / "trace.jsonl")
    small = {**tiny_settings.model_dump(mode="json"), "epochs": 1}
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(
            {
                "trace": "trace.jsonl",
                "max_rows": 200,
                "served_model": "m",
                "members": [
                    {"backend": "lightgbm", "settings": {"rounds": 5}},
                    {"backend": "encoder", "settings": small, "first": {"trace": "trace.jsonl", "max_rows": 100,
                                                                        "backend": "encoder", "settings": small}},
                ],
            }
        )
    )  # fmt: skip
    arguments = ["train-predictor", "--recipe", str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "out")]
    with one_thread():
        assert main([*arguments, "--seed", "4", "--quiet"]) == 0
    made = [load_predictor(tmp_path / name).config for name in ("out", "out-member1", "out-member2")]
    assert [c.backend for c in made] == ["ensemble", "lightgbm", "encoder"]
    assert {(c.seed, c.served_model, c.rows_trained + c.rows_held_out) for c in made} == {(4, "m", 200)}
    assert made[2].model["started_from"]["rows_trained"] < 100
    assert load_predictor(tmp_path / "out-member2-first").config.seed == 0
    # Called again, what is there is only loaded.
    before = (tmp_path / "out" / "config.json").stat().st_mtime_ns
    assert main([*arguments, "--seed", "4", "--resume", "--quiet"]) == 0
    assert (tmp_path / "out" / "config.json").stat().st_mtime_ns == before


def test_options_of_one_predictor_mean_nothing_to_several(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("members: [{backend: lightgbm}, {settings: {encoder: {epochs: 2}}}]\n")
    recipe = read_recipe(path)
    assert [m.backend for m in recipe.with_options({"seed": 2, "trace": "t"}).of_each_member()] == [
        "lightgbm",
        "stacked",
    ]
    assert {m.seed for m in recipe.with_options({"seed": 2}).of_each_member()} == {2}
    with pytest.raises(ConfigError, match="--epochs: is of one predictor, and the recipe makes several"):
        recipe.with_options({"epochs": 2})
    with pytest.raises(ConfigError, match="--backend"):
        recipe.with_options({"backend": "lightgbm"})
    for text, says in (
        ("members: [{backend: lightgbm}]", "at least two"),
        ("members: [{}, {}]\nbackend: lightgbm", "backend beside members"),
        ("members: [{}, {epochs: 3}]", r"members.1.epochs: there is no such setting"),
        ("members: [{}, {seed: 3}]", r"members.1.seed: there is no such setting"),
        ("members: [{}, {backend: lightgbm, settings: {epochs: 3}}]", "epochs"),
        ("members: [{}, {backend: lightgbm, first: {backend: encoder}}]", "lightgbm has none"),
    ):
        path.write_text(text + "\n")
        with pytest.raises(ConfigError, match=says):
            read_recipe(path)
    assert Recipe().of_each_member() == []
