"""The packed body on a CPU says what the network says, and steps aside where it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from ecoserve.data import Trace
from ecoserve.predictor import LengthPredictor, load_predictor
from ecoserve.predictor.encoder import inference
from ecoserve.predictor.encoder.inference import PackedBody, for_cpu, native_precision
from ecoserve.predictor.encoder.model import LengthEncoder
from ecoserve.predictor.encoder.predictor import EncoderPredictor
from ecoserve.predictor.text import read_request


@pytest.fixture
def loaded(encoded: LengthPredictor, tmp_path: Path) -> Iterator[EncoderPredictor]:
    """A copy that a test may change."""
    predictor = load_predictor(encoded.save_pretrained(tmp_path / "copy"))
    assert isinstance(predictor, EncoderPredictor)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield predictor
    torch.set_num_threads(before)


def plain_logits(predictor: EncoderPredictor, texts: list[str]) -> np.ndarray:
    """One at a time through the network as it was trained."""
    rows = []
    with torch.inference_mode():
        for ids in predictor.tokenizer([read_request(t) for t in texts]):
            inputs = torch.tensor([ids])
            rows.append(predictor.model(inputs, torch.ones_like(inputs))["logits"][0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("bfloat16", 0.1)])
def test_packed_weights_say_the_same(
    loaded: EncoderPredictor, trace: Trace, precision: inference.Precision, tolerance: float
) -> None:
    texts = [r.prompt or "" for r in trace.records[:40]]
    loaded.precision = precision
    network = loaded._network()
    assert isinstance(network.body, PackedBody)
    assert network.body.dtype == native_precision(precision)
    batched = loaded.logits([read_request(t) for t in texts])
    single = np.concatenate([loaded.logits([read_request(t)]) for t in texts])
    plain = plain_logits(loaded, texts)
    assert np.abs(batched - plain).max() < tolerance
    assert np.abs(single - plain).max() < tolerance
    assert np.ptp(plain, axis=0).max() > 10 * tolerance, "requests differ by more than the tolerance"


def test_the_number_format_follows_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for has, expected in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
        ({}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        assert native_precision() == expected
    assert native_precision("bfloat16") == torch.bfloat16


def test_changed_weights_are_noticed(loaded: EncoderPredictor, trace: Trace) -> None:
    texts = [r.prompt or "" for r in trace.records[:5]]
    loaded.precision = "float32"
    views = [read_request(t) for t in texts]
    before = loaded.logits(views)
    assert loaded._network() is loaded._network(), "packed once"
    with torch.no_grad():
        loaded.model.body.encoder.layer[0].output.dense.weight.mul_(3.0)
    after = loaded.logits(views)
    assert np.abs(after - before).max() > 1e-3
    assert np.abs(after - plain_logits(loaded, texts)).max() < 1e-4


def test_a_body_of_another_kind_runs_as_it_is() -> None:
    from transformers import DistilBertConfig, DistilBertModel

    body = DistilBertModel(DistilBertConfig(vocab_size=50, dim=16, n_layers=1, n_heads=2, hidden_dim=32))
    model = LengthEncoder(body, 16, 4).eval()
    assert for_cpu(model) is model


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.05)])
def test_distances_between_tokens_are_read_as_mpnet_reads_them(
    precision: inference.Precision, tolerance: float
) -> None:
    from transformers import MPNetConfig, MPNetModel

    torch.manual_seed(5)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    body = MPNetModel(MPNetConfig(vocab_size=60, max_position_embeddings=142, initializer_range=0.15, **sizes))
    with torch.no_grad():
        body.encoder.relative_attention_bias.weight.normal_(std=1.0)
    model = LengthEncoder(body, 64, 4).eval().requires_grad_(False)
    packed = for_cpu(model, precision)
    assert isinstance(packed.body, PackedBody)
    # Longer than the distances that have numbers of their own (128), one row padded.
    ids = torch.randint(2, 60, (2, 140))
    mask = torch.ones_like(ids)
    mask[1, 90:] = 0
    ids[1, 90:] = 0
    with torch.inference_mode():
        plain, ours = model(ids, mask)["logits"], packed(ids, mask)["logits"]
        assert (plain - ours).abs().max() < tolerance
        body.encoder.relative_attention_bias.weight.mul_(-1.0)
        assert (model(ids, mask)["logits"] - plain).abs().max() > 2 * tolerance, "the distances matter here"


def test_kernels_that_are_missing_or_wrong_are_not_used(
    loaded: EncoderPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = inference._product

    def wrong(
        x: torch.Tensor, weights: inference._Weights, activation: str = "none", variant: str = ""
    ) -> torch.Tensor:
        return 1.5 * real(x, weights, activation, variant)

    def missing(*_: object) -> torch.Tensor:
        raise NotImplementedError

    assert for_cpu(loaded.model) is not loaded.model
    for broken in (wrong, missing):
        monkeypatch.setattr(inference, "_product", broken)
        assert for_cpu(loaded.model) is loaded.model


def test_threads_share_it(loaded: EncoderPredictor, trace: Trace) -> None:
    views = [read_request(r.prompt or "") for r in trace.records[:16]]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda view: loaded.logits([view]), views))
    assert np.array_equal(np.concatenate(found), np.concatenate([loaded.logits([v]) for v in views]))


def test_what_is_saved_is_the_network_as_trained(loaded: EncoderPredictor, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    loaded.predict(["a request, so that it is packed"])
    state = load_file(loaded.save_pretrained(tmp_path / "saved") / "model.safetensors")
    assert all(value.dtype == torch.float32 for value in state.values())
    assert state.keys() == loaded.model.state_dict().keys()
