from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import pytest

from ecoserve.data import Trace, synthetic_trace
from ecoserve.errors import CheckpointError, ConfigError
from ecoserve.predictor import (
    BoostingSettings,
    EncoderSettings,
    LengthPredictor,
    StackedSettings,
    load_predictor,
    train_predictor,
)
from ecoserve.predictor.calibration import _rounded, cross_entropy, fit_weights, mixed, softmax
from ecoserve.predictor.stacking import StackedPredictor
from ecoserve.predictor.text import read_request

OneThread = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def settings(tiny_settings: EncoderSettings) -> StackedSettings:
    return StackedSettings(encoder=tiny_settings, lightgbm=BoostingSettings(rounds=40))


@pytest.fixture(scope="module")
def stacked(
    trace: Trace, settings: StackedSettings, one_thread: OneThread, tmp_path_factory: pytest.TempPathFactory
) -> LengthPredictor:
    with one_thread():
        folder = tmp_path_factory.mktemp("stacked") / "ckpt"
        return train_predictor(trace, backend="stacked", output_dir=folder, settings=settings)


def test_it_is_made_of_what_each_part_learns_alone(
    stacked: LengthPredictor, encoded: LengthPredictor, boosted: LengthPredictor, trace: Trace
) -> None:
    views = [read_request(r.prompt or "") for r in trace.records[:50]]
    weight = stacked.config.model["encoder_weight"]
    expected = mixed((encoded.logits(views), boosted.logits(views)), (weight, 1 - weight))
    assert np.allclose(stacked.logits(views), expected, atol=1e-5)
    held = [p.config.metrics["held_out"]["pinball_loss"] for p in (stacked, encoded, boosted)]
    assert held[0] <= 1.02 * min(held[1:])


def test_its_checkpoint_comes_back_and_is_guarded(stacked: LengthPredictor, trace: Trace, tmp_path: Path) -> None:
    folder = stacked.save_pretrained(tmp_path / "copy")
    assert sorted(p.name for p in folder.iterdir()) == sorted(
        ["README.md", "calibration.json", "config.json", "model.safetensors", "model.txt", "terms.json",
         "tokenizer.json", "words.safetensors"]
    )  # fmt: skip
    texts = [r.prompt or "" for r in trace.records[:20]]
    again = load_predictor(folder)
    assert isinstance(again, StackedPredictor)
    assert again.predict(texts) == stacked.predict(texts)
    assert again.to("cpu").device.type == "cpu"
    (folder / "terms.json").write_text("[]")
    with pytest.raises(CheckpointError, match="SHA-256"):
        load_predictor(folder)


def test_the_weight_goes_to_the_part_that_knows() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(400, 6))
    targets = softmax(truth)
    noise = rng.normal(size=truth.shape)
    assert fit_weights((truth, noise), targets) == pytest.approx((1.0, 0.0), abs=0.01)
    assert fit_weights((noise, truth), targets) == pytest.approx((0.0, 1.0), abs=0.01)
    one, other = truth + noise, truth + rng.normal(size=truth.shape)
    weights = fit_weights((one, noise, other), targets)
    assert sum(weights) == pytest.approx(1.0)
    # What only the first one's noise is, is of use against it; never more than the two that know.
    assert min(weights[0], weights[2]) > 0.25
    best = fit_weights((one, other), targets)
    assert cross_entropy(mixed((one, other), best), targets) < cross_entropy(one, targets)


def test_rounded_weights_are_shares() -> None:
    # Rounded one by one, the first three would make 1.001.
    rounded = _rounded(np.array([0.2336, 0.3336, 0.43279, 0.00001]))
    assert sum(rounded) == pytest.approx(1.0, abs=1e-9)
    assert rounded == pytest.approx((0.234, 0.334, 0.432, 0.0), abs=1e-9)


def test_training_starts_from_an_earlier_encoder(
    encoded: LengthPredictor, boosted_dir: Path, tiny_settings: EncoderSettings, tmp_path: Path, one_thread: OneThread
) -> None:
    import torch

    from ecoserve.predictor.encoder.predictor import EncoderPredictor

    earlier = encoded.save_pretrained(tmp_path / "earlier")
    # Other lengths, so other bins: the body is taken over, the head is not.
    other = synthetic_trace(300, seed=5)
    still = tiny_settings.model_copy(
        update={"encoder": "owner/not-looked-for", "start_from": str(earlier), "epochs": 1, "body_lr": 1e-12}
    )
    with one_thread():
        later = train_predictor(other, backend="encoder", output_dir=tmp_path / "later", settings=still)
    assert isinstance(later, EncoderPredictor)
    assert isinstance(encoded, EncoderPredictor)
    for name, value in encoded.model.body.state_dict().items():
        assert torch.allclose(later.model.body.state_dict()[name], value, atol=1e-5), name
    assert later.config.edges != encoded.config.edges
    said = json.loads((earlier / "config.json").read_text())
    from_whom = later.config.model["started_from"]
    assert (from_whom["sha256"], from_whom["trace_sha256"]) == (said["sha256"], said["trace_sha256"])
    assert later.config.hyperparameters["start_from"] == said["sha256"]
    assert str(tmp_path) not in (tmp_path / "later" / "config.json").read_text()

    def start(folder: Path) -> None:
        settings = still.model_copy(update={"start_from": str(folder)})
        train_predictor(other, backend="encoder", output_dir=tmp_path / "never", settings=settings)

    with pytest.raises(ConfigError, match="without an encoder to start from"):
        start(boosted_dir)
    (earlier / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="SHA-256"):
        start(earlier)
    assert not (tmp_path / "never").exists()
