"""Predictions for requests as they arrive: off the event loop, in small batches, within a time limit.

One worker thread runs the predictor. The first request that finds it idle waits a moment for others; requests that
arrive while it is busy make up the next batch. Prompts beyond ``predict_waiting`` are refused at once.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from ecoserve.data import Message
from ecoserve.serving.adapter.metrics import Outcome, logger, middleware_metrics
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings

if TYPE_CHECKING:
    from ecoserve.predictor import LengthPredictor

Chat = Sequence[Message]
#: What is predicted of a request.
T = TypeVar("T")


@cache
def shared_predictor(path: str) -> LengthPredictor:
    """The predictor of a checkpoint (folder or hub id), loaded once per process.

    Raises:
        CheckpointError: if it cannot be loaded.
    """
    from ecoserve.predictor import load_predictor

    return load_predictor(path)


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    chats: Sequence[Chat]
    result: asyncio.Future[list[T]]
    deadline: float


class Predictor(Protocol[T]):
    def predict(self, requests: Sequence[Chat], /) -> list[T]: ...


class PredictionService(Generic[T]):
    """A predictor behind a queue, for one event loop, with the settings called ``predict_*``.

    The predictor is called from one worker thread only, with at most ``predict_batch`` contexts (more if one request
    has more).
    """

    def __init__(self, predictor: Predictor[T], settings: MiddlewareSettings) -> None:
        self.predictor = predictor
        self._timeout_s = settings.predict_timeout_ms / 1e3
        self._window_s = settings.predict_window_ms / 1e3
        self._max_batch = settings.predict_batch
        self._max_waiting = settings.predict_waiting
        self._waiting: deque[_Job[T]] = deque()
        self._count = 0
        self._collector: asyncio.Task[None] | None = None
        threads = settings.predict_threads or max(1, min(4, len(os.sched_getaffinity(0)) // 4))
        self._worker = _Worker(predictor, threads)
        self._errors = 0

    async def predict(self, chats: Sequence[Chat]) -> tuple[list[T] | None, Outcome]:
        """Predictions for ``chats``, in order, or None and the reason. Errors of the predictor end here."""
        if self._count + len(chats) > self._max_waiting:
            return None, "overload"
        loop = asyncio.get_running_loop()
        job = _Job(chats, loop.create_future(), loop.time() + self._timeout_s)
        self._waiting.append(job)
        self._wait(len(chats))
        if self._collector is None or self._collector.done():
            self._collector = loop.create_task(self._collect(loop))
        try:
            return await asyncio.wait_for(job.result, self._timeout_s), "made"
        except TimeoutError:
            return None, "timeout"
        except _PredictorFailed:
            return None, "error"

    async def warm_up(self) -> None:
        """Predict once: the first call of a model is slow. Raises what the predictor raises."""
        chat = (Message("user", "hello"),)
        await self._worker.predict([chat])

    def close(self) -> None:
        """Stop the worker; a prediction in progress is not waited for."""
        if self._collector is not None:
            self._collector.cancel()
        self._worker.close()

    def close_when_idle(self) -> None:
        """Answer what waits, then stop the worker."""
        if self._collector is None or self._collector.done():
            self.close()
        else:
            self._collector.add_done_callback(lambda _: self.close())

    async def _collect(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._count < self._max_batch:
            await asyncio.sleep(self._window_s)
        while self._waiting:
            batch = self._take(loop.time())
            if not batch:
                continue
            chats = [chat for job in batch for chat in job.chats]
            try:
                begun = time.perf_counter()
                found = await self._worker.predict(chats)
                middleware_metrics().predictor_seconds.labels().observe(time.perf_counter() - begun)
                if len(found) != len(chats):
                    raise ValueError(f"{len(found)} predictions for {len(chats)} prompts")
            except Exception:  # noqa: BLE001 - requests are served without predictions, whatever the error
                self._fail(batch)
                continue
            at = 0
            for job in batch:
                if not job.result.done():
                    job.result.set_result(found[at : at + len(job.chats)])
                at += len(job.chats)

    def _wait(self, more: int) -> None:
        self._count += more
        middleware_metrics().predictor_queue.labels().set(self._count)

    def _take(self, now: float) -> list[_Job[T]]:
        batch: list[_Job[T]] = []
        size = 0
        while self._waiting and (not batch or size + len(self._waiting[0].chats) <= self._max_batch):
            job = self._waiting.popleft()
            self._wait(-len(job.chats))
            if not job.result.done() and job.deadline > now:
                batch.append(job)
                size += len(job.chats)
        return batch

    def _fail(self, batch: list[_Job[T]]) -> None:
        self._errors += 1
        if self._errors & (self._errors - 1) == 0:  # logged the 1st, 2nd, 4th, 8th, ... time
            logger.warning("ecoserve: the length predictor failed (%d times so far)", self._errors, exc_info=True)
        for job in batch:
            if not job.result.done():
                job.result.set_exception(_PredictorFailed())


class _Worker:
    """Calls a predictor in one daemon thread: at its end Python waits for an executor's, and a predictor may hang."""

    def __init__(self, predictor: Predictor[Any], threads: int) -> None:
        self._calls: SimpleQueue[tuple[Sequence[Chat], asyncio.Future[Any]] | None] = SimpleQueue()
        Thread(target=self._run, args=(predictor, threads), name="ecoserve-predict", daemon=True).start()

    async def predict(self, chats: Sequence[Chat]) -> list[Any]:
        future: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._calls.put((chats, future))
        return await future

    def close(self) -> None:
        self._calls.put(None)

    def _run(self, predictor: Predictor[Any], threads: int) -> None:
        if "torch" in sys.modules:  # the predictor may use it
            sys.modules["torch"].set_num_threads(threads)
        while (call := self._calls.get()) is not None:
            chats, future = call
            found: Any
            try:
                found = predictor.predict(chats)
            except Exception as error:  # noqa: BLE001 - it is raised where the call is waited for
                found = error
            with suppress(RuntimeError):  # the loop is closed
                future.get_loop().call_soon_threadsafe(_resolve, future, found)


def _resolve(future: asyncio.Future[Any], found: Any) -> None:
    if future.done():  # it was not waited for any longer
        return
    if isinstance(found, Exception):
        future.set_exception(found)
    else:
        future.set_result(found)


class _PredictorFailed(Exception): ...
