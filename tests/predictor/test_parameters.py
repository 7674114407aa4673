"""Parameters of requests: learned where a trace has them, absent for all other predictors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ecoserve.data import Message, Record, Trace, synthetic_trace
from ecoserve.data.parameters import RequestParameters
from ecoserve.predictor import BoostingSettings, LengthPredictor, evaluate_predictor, load_predictor, train_predictor
from ecoserve.predictor.text import ChatRequest, asked_of, parameters_that_vary, read_record, read_request

SAID = RequestParameters(64, ("\n",), 2, "high", "json_object")
CHAT = (Message("system", "Be brief."), Message("user", "What is a cache?"))


def obeying(trace: Trace, *, stated: bool) -> Trace:
    """Answers that end at a stop string, think if they may, are cut off at ``max_tokens``; ``stated``: in records."""
    draw = np.random.default_rng(5)
    records = []
    for record in trace.records:
        stop = ("\n",) if draw.random() < 0.4 else ()
        thinking = str(draw.choice(["off", "high"]))
        limit = int(draw.choice([32, 2048]))
        length = (record.response_tokens or 1) // (5 if stop else 1) + (400 if thinking == "high" else 0)
        said = {"stop": stop, "thinking": thinking, "max_tokens": limit} if stated else {}
        records.append(
            replace(
                record,
                response_tokens=min(length, limit),
                censored=length > limit,
                sample_tokens=(),
                finish_reason="length" if length > limit else "stop",
                **said,
            )
        )
    return trace.with_records(records)


@pytest.fixture(scope="module")
def aware(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> LengthPredictor:
    folder = tmp_path_factory.mktemp("parameters") / "aware"
    return train_predictor(
        obeying(trace, stated=True), backend="lightgbm", output_dir=folder, settings=BoostingSettings(rounds=40)
    )


@pytest.fixture(scope="module")
def blind(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> LengthPredictor:
    folder = tmp_path_factory.mktemp("parameters") / "blind"
    return train_predictor(
        obeying(trace, stated=False), backend="lightgbm", output_dir=folder, settings=BoostingSettings(rounds=40)
    )


def test_it_learns_what_parameters_do(aware: LengthPredictor, blind: LengthPredictor) -> None:
    assert aware.config.parameters == ("max_tokens", "stop", "thinking")
    assert blind.config.parameters == ()
    # The same answers, of which one has seen the parameters.
    known = [r for r in obeying(synthetic_trace(300, seed=9), stated=True).records if not r.censored]
    hidden = [replace(r, stop=(), thinking=None, max_tokens=None) for r in known]
    with_them, without = evaluate_predictor(aware, known), evaluate_predictor(blind, hidden)
    assert with_them["mae_tokens"] < 0.6 * without["mae_tokens"]
    assert with_them["kendall_tau"] > without["kendall_tau"] + 0.2

    def median(**said: object) -> int:
        base = {"max_tokens": 2048, "thinking": "off"}
        request = ChatRequest([Message("user", "Explain a cache.")], RequestParameters(**{**base, **said}))  # type: ignore[arg-type]
        return aware.predict([request])[0].quantile(0.5)

    assert median(stop=("\n",)) < 0.5 * median()
    assert median(thinking="high") > median() + 200


def test_who_has_not_learned_from_them_does_not_see_them(predictor: LengthPredictor) -> None:
    assert predictor.config.parameters == ()
    assert predictor.predict([ChatRequest(CHAT, SAID)]) == predictor.predict([CHAT])
    [plain] = predictor.predict(["What is a cache?"])
    assert predictor.predict([ChatRequest([Message("user", "What is a cache?")], SAID)]) == [plain]


def test_a_request_without_them_reads_as_ever() -> None:
    names = ("max_tokens", "stop", "tools", "thinking", "response_format")
    for request in ("What is a cache?", CHAT, ChatRequest(CHAT, RequestParameters())):
        assert read_request(request, names) == read_request(request)
    assert "at most" not in read_request(ChatRequest(CHAT, SAID)).text


def test_only_what_was_learned_is_read_and_it_stands_first() -> None:
    view = read_request(ChatRequest(CHAT, SAID), ("stop", "tools"))
    assert view.parameters == RequestParameters(stop=("\n",), tools=2)
    assert view.context == "stop at newline, 2 tools\nsystem: Be brief."
    every = read_request(ChatRequest(CHAT, SAID), ("max_tokens", "stop", "tools", "thinking", "response_format"))
    line = "at most 64 tokens, stop at newline, 2 tools, thinking high, format json_object"
    assert every.context.splitlines()[0] == line


def test_records_bring_theirs_and_constants_teach_nothing() -> None:
    record = Record("c", prompt="p", stop=("\n",), max_tokens=64)
    assert isinstance(asked_of(record), ChatRequest)
    assert asked_of(Record("c", prompt="p")) == "p"
    assert asked_of(Record("c")) is None
    view = read_record(record, ("stop",))
    assert view is not None
    assert view.context == "stop at newline"
    assert parameters_that_vary([record, replace(record, tools=1)]) == ("tools",)
    assert parameters_that_vary([record, record]) == ()


def test_a_checkpoint_remembers_which(aware: LengthPredictor, tmp_path: Path) -> None:
    again = load_predictor(aware.save_pretrained(tmp_path / "copy"))
    assert "beside the text, max_tokens, stop, thinking\n" in (tmp_path / "copy" / "README.md").read_text()
    request = ChatRequest(CHAT, SAID)
    assert again.config.parameters == aware.config.parameters
    assert again.predict([request]) == aware.predict([request])
    assert again.predict([request]) != again.predict([CHAT])


def test_long_words_are_cut() -> None:
    said = RequestParameters(stop=("x" * 10_000,) * 4, thinking="y" * 10_000, response_format="z" * 10_000)
    view = read_request(ChatRequest(CHAT, said), ("stop", "thinking", "response_format"))
    assert len(view.context) < 500


def test_half_a_surrogate_pair_takes_no_other_prediction_away(predictor: LengthPredictor) -> None:
    assert len(predictor.predict(["half \ud800 a pair", "a whole prompt"])) == 2


def test_lines_of_the_command_may_hold_them(tmp_path: Path) -> None:
    from ecoserve.cli.predict import _read

    file = tmp_path / "asked.txt"
    file.write_text('plain\n{"prompt": "p", "stop": "END"}\n{"messages": [{"role": "user", "content": "q"}]}\n')
    plain, stopped, chat = _read(str(file))
    assert plain == "plain"
    assert isinstance(stopped, ChatRequest)
    assert stopped.parameters == RequestParameters(stop=("END",))
    assert chat == [Message("user", "q")]
