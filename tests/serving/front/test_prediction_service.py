"""The queue before the predictor: batches, deadlines, bounds."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from front_helpers import ByWords, Chat

from ecoserve.data import Message
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
from ecoserve.serving.adapter.prediction_service import PredictionService


def chat(words: int) -> Chat:
    return (Message("user", "w " * words),)


def service_of(predictor: Any, **settings: float) -> PredictionService:
    return PredictionService(predictor, MiddlewareSettings.model_validate(settings))


def run(service: PredictionService, jobs: Sequence[Sequence[Chat]], later_s: float = 0.0) -> list[Any]:
    async def go() -> list[Any]:
        async def one(index: int, chats: Sequence[Chat]) -> Any:
            await asyncio.sleep(index * later_s)
            return await service.predict(chats)

        try:
            return await asyncio.gather(*(one(i, c) for i, c in enumerate(jobs)))
        finally:
            service.close()

    return asyncio.run(go())


def test_every_request_gets_its_own_and_calls_are_shared() -> None:
    predictor = ByWords(delay_s=0.01)
    service = service_of(predictor, predict_timeout_ms=5000, predict_batch=16)
    found = run(service, [[chat(i + 1)] for i in range(40)])
    assert [(lengths[0].mean(), outcome) for lengths, outcome in found] == [(i + 1, "made") for i in range(40)]
    assert [len(c) for c in predictor.calls] == [16, 16, 8]


def test_a_request_of_many_prompts_stays_whole() -> None:
    predictor = ByWords()
    service = service_of(predictor, predict_timeout_ms=5000, predict_batch=4)
    found = run(service, [[chat(1)], [chat(2)] * 9, [chat(3)]])
    assert [len(lengths) for lengths, _ in found] == [1, 9, 1]
    assert {d for lengths, _ in found for d in lengths} == {LengthDistribution.point(n) for n in (1, 2, 3)}
    assert [len(c) for c in predictor.calls] == [1, 9, 1]


def test_who_is_late_is_let_go_and_not_predicted_after_all() -> None:
    predictor = ByWords(delay_s=0.2)
    service = service_of(predictor, predict_timeout_ms=50, predict_window_ms=0, predict_batch=1)
    found = run(service, [[chat(1)], [chat(2)], [chat(3)]])
    assert [outcome for _, outcome in found] == ["timeout"] * 3
    assert len(predictor.calls) == 1


def test_more_than_may_wait_are_turned_away_at_once() -> None:
    predictor = ByWords(delay_s=0.05)
    service = service_of(predictor, predict_timeout_ms=5000, predict_batch=2, predict_waiting=3)
    outcomes = [outcome for _, outcome in run(service, [[chat(1)]] * 8)]
    assert outcomes.count("made") == 3
    assert outcomes.count("overload") == 5


def test_room_comes_free_again() -> None:
    service = service_of(ByWords(), predict_timeout_ms=5000, predict_waiting=1, predict_window_ms=0)
    found = run(service, [[chat(1)]] * 5, later_s=0.05)
    assert [outcome for _, outcome in found] == ["made"] * 5


def test_an_error_is_said_to_those_that_waited_and_the_next_are_served() -> None:
    predictor = ByWords(error=ValueError("no"))
    service = service_of(predictor, predict_timeout_ms=5000, predict_window_ms=0)

    async def go() -> list[str]:
        first = (await service.predict([chat(1)]))[1]
        predictor.error = None
        second = (await service.predict([chat(1)]))[1]
        service.close()
        return [first, second]

    assert asyncio.run(go()) == ["error", "made"]


def test_a_predictor_that_gives_too_few_is_an_error() -> None:
    class TooFew(ByWords):
        def predict(self, texts: Sequence[Chat], /) -> list[LengthDistribution]:
            return super().predict(texts)[:-1]

    assert run(service_of(TooFew(), predict_timeout_ms=5000), [[chat(1)]]) == [(None, "error")]


HANGS = """
import asyncio, threading
from ecoserve.data import Message
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
from ecoserve.serving.adapter.prediction_service import PredictionService

class Hangs:
    def predict(self, texts):
        threading.Event().wait()

async def go():
    service = PredictionService(Hangs(), MiddlewareSettings(predict_timeout_ms=20))
    print(*[(await service.predict([(Message("user", "x"),)]))[1] for _ in range(2)])
    service.close()

asyncio.run(go())
"""


def test_a_predictor_that_hangs_does_not_keep_the_server_from_ending() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout == "timeout timeout\n"
