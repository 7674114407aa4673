"""A new backend is one file and one line in the table of backends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ecoserve.cli.main import main
from ecoserve.data import Trace
from ecoserve.predictor import base, evaluate_predictor, load_predictor
from ecoserve.predictor.recipes import Recipe

FILE = '''
from pathlib import Path

import numpy as np
from pydantic import Field

from ecoserve.predictor.base import LengthPredictor, TrainingRun
from ecoserve.predictor.calibration import Calibration
from ecoserve.predictor.config import BackendSettings


class FirstWordSettings(BackendSettings):
    weight: float = Field(default=10.0, gt=0, description="rows that the lengths of all prompts count for")


class FirstWordPredictor(LengthPredictor):
    """The lengths of the responses to prompts that begin with the same word."""

    Settings = FirstWordSettings
    packages = ("pydantic",)

    def __init__(self, config, calibration, logits):
        super().__init__(config, calibration)
        self._by_word = logits

    @classmethod
    def fit(cls, run: TrainingRun, settings: FirstWordSettings):
        counts = {}
        targets = run.fit.targets(run.config.bins)
        for done, (view, row) in enumerate(zip(run.fit.views, targets)):
            run.progress("counting", done, len(run.fit))
            counts[_word(view)] = counts.get(_word(view), 0.0) + row
        prior = settings.weight * np.asarray(run.config.prior)
        return cls(run.config, Calibration(), {w: np.log(prior + c).tolist() for w, c in counts.items()})

    def _logits(self, views):
        unknown = np.log(self.config.prior).tolist()
        return np.asarray([self._by_word.get(_word(v), unknown) for v in views])

    def _write(self, folder: Path):
        import json

        (folder / "words.json").write_text(json.dumps(self._by_word))

    @classmethod
    def _load(cls, folder, config, calibration):
        import json

        return cls(config, calibration, json.loads((folder / "words.json").read_text()))


def _word(view):
    return view.prompt.partition(" ")[0]
'''


@pytest.fixture
def _registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "first_word_backend.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(base.BACKENDS, "first-word", "first_word_backend:FirstWordPredictor")


@pytest.mark.usefixtures("_registered")
def test_it_trains_evaluates_saves_and_loads(trace: Trace, trace_file: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(f"trace: {trace_file}\nbackend: first-word\nsettings: {{weight: 3}}\n")
    folder, summary = tmp_path / "ckpt", tmp_path / "summary.json"
    assert main(["train-predictor", "--recipe", str(tmp_path / "recipe.yaml"), "-o", str(folder), "--quiet"]) == 0
    predictor = load_predictor(folder)
    config = predictor.config
    assert type(predictor).__name__ == "FirstWordPredictor"
    assert config.backend == predictor.backend == "first-word"
    assert config.hyperparameters["weight"] == 3
    assert "pydantic" in config.versions
    assert config.metrics["dev"]["mae_tokens"] < config.metrics["constant_median"]["mae_tokens"]
    assert main(["evaluate-predictor", str(folder), str(trace_file), "--json", str(summary)]) == 0
    assert json.loads(summary.read_text())["mae_tokens"] == pytest.approx(config.metrics["dev"]["mae_tokens"])
    again = load_predictor(predictor.save_pretrained(tmp_path / "copy"))
    texts = [r.prompt or "" for r in trace.records[:20]]
    assert again.predict(texts) == predictor.predict(texts)
    assert again.upper_bounds(texts) == predictor.upper_bounds(texts)
    assert evaluate_predictor(again, trace.records)["rows"] == len(trace.records)
    assert Recipe(backend="first-word").with_options({"weight": 5}).settings == {"weight": 5}


def test_every_registered_backend_can_be_imported() -> None:
    for name in base.BACKENDS:
        assert issubclass(base.backend_class(name), base.LengthPredictor)
    assert list(base.trained_backends()) == ["stacked", "encoder", "lightgbm"]
