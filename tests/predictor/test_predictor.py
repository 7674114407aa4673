"""What holds for every backend."""

from __future__ import annotations

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from ecoserve.data import Message, Trace
from ecoserve.predictor import LengthPredictor, Predicts, load_predictor

TEXTS = [
    "List three pets.",
    "",
    "word " * 3000,
    "日本語の質問",
    "a\x00b",
    "Explain caches to a child in two sentences.",
]


def test_one_distribution_per_request_over_the_configs_bins(predictor: LengthPredictor) -> None:
    predicted = predictor.predict(TEXTS)
    assert len(predicted) == len(TEXTS)
    for lengths in predicted:
        assert lengths.edges == predictor.config.edges
        assert sum(lengths.probs) == pytest.approx(1.0)
    assert predictor.predict([]) == []
    assert isinstance(predictor, Predicts)


def test_a_request_gets_the_same_answer_in_any_company(predictor: LengthPredictor, trace: Trace) -> None:
    texts = [r.prompt or "" for r in trace.records[:70]] + TEXTS
    together = predictor.predict(texts)
    for text, lengths in list(zip(texts, together, strict=True))[::7]:
        [alone] = predictor.predict([text])
        assert alone.probs == pytest.approx(lengths.probs, abs=1e-4)


def test_messages_and_text_are_read_alike(predictor: LengthPredictor) -> None:
    chat = [Message("user", TEXTS[0])]
    assert predictor.predict([chat]) == predictor.predict([TEXTS[0]])
    longer = [Message("user", "Hi"), Message("assistant", "Hello " * 200), *chat]
    assert predictor.predict([longer]) != predictor.predict([TEXTS[0]])


def test_one_bare_string_is_no_list_of_requests(predictor: LengthPredictor) -> None:
    with pytest.raises(TypeError, match=r"\[prompt\]"):
        predictor.predict("List three pets.")


def test_many_threads_get_what_one_gets(predictor: LengthPredictor, trace: Trace) -> None:
    texts = [r.prompt or "" for r in trace.records[:48]]
    expected = [predictor.predict([t])[0] for t in texts]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            answers = list(pool.map(lambda t: predictor.predict([t])[0], texts))
            for got, want in zip(answers, expected, strict=True):
                assert got.probs == pytest.approx(want.probs, abs=1e-5)


def test_it_needs_no_network(predictor: LengthPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert len(predictor.predict(TEXTS)) == len(TEXTS)


def test_the_config_says_what_was_learned(predictor: LengthPredictor, trace: Trace) -> None:
    config = predictor.config
    assert config.trace_sha256 == trace.sha256
    assert config.served_model == trace.records[0].model
    assert config.seed == 0
    assert config.rows_trained > 5 * config.rows_held_out > 0
    assert config.backend == predictor.backend
    assert {"ecoserve", "python", "numpy"} < set(config.versions)
    assert set(config.metrics) == {"held_out", "dev", "constant_median"}
    assert config.metrics["dev"]["mae_tokens"] < config.metrics["constant_median"]["mae_tokens"]


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, ecoserve.predictor as p; dir(p); p.PredictorConfig; p.evaluate_predictor; " + (
        "print([m for m in ('torch', 'transformers', 'lightgbm', 'sklearn', 'scipy', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_names_are_unknown() -> None:
    import ecoserve.predictor

    assert ecoserve.predictor.load_predictor is load_predictor
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = ecoserve.predictor.nothing_like_it
