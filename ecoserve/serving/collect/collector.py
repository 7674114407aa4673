"""Asking: so many requests open at once, each until it is settled, each written down the moment it is.

Rules: whatever a request's end, it is in the journal before the next one is sent for it; requests that went wrong are
repeated with growing waits, those that the server refuses are not; a server that is away is waited for by all of them
together and costs none of them an attempt. A first signal lets open requests end, a second drops them.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Final

from ecoserve.errors import RunError
from ecoserve.serving.collect.endpoint import Endpoint
from ecoserve.serving.collect.journal import Journal
from ecoserve.serving.collect.pace import Gate, Pace, backoff
from ecoserve.serving.collect.prompts import context_digest
from ecoserve.serving.collect.replies import Again, Answer, Away, Failed, Outcome, Refused, Stop
from ecoserve.serving.collect.settings import CollectSettings, request_body
from ecoserve.serving.collect.tally import CollectInterrupted, CollectProgress, Progress

#: So many requests in a row that failed after all their attempts: the server, not the request, is at fault.
_FAILED_IN_A_ROW: Final = 25
#: So many refusals before any answer: what is asked, not a single prompt, is at fault.
_REFUSED_AT_FIRST: Final = 100
_TICK_S: Final = 1.0
_SYNC_S: Final = 5.0


class _Stopping(Exception):
    """Somebody wants us to end: nothing new is sent."""


class Collector:
    """Asks one server for what one journal lacks.

    Args:
        settings: the collection's.
        model: the served model's name.
        endpoint: the server.
        journal: opened.
        progress: told of every step.
        ended: says why there can be no server any more, if that is known (a server of our own that has died).
    """

    def __init__(
        self,
        settings: CollectSettings,
        model: str,
        endpoint: Endpoint,
        journal: Journal,
        progress: Progress | None = None,
        ended: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._model = model
        self._endpoint = endpoint
        self._journal = journal
        self._show = progress or (lambda state: None)
        self._ended = ended
        self._rng = random.Random(settings.seed)
        self._pace = Pace(settings.rate)
        self._gate = Gate(settings.backoff_s, self._rng)
        self._to_do: Iterator[tuple[int, int]] = journal.to_do()
        self._stop = asyncio.Event()
        self._signal: int | None = None
        self._failed_in_a_row = 0
        self._where = str(journal.folder)
        self._began = time.monotonic()
        earlier = journal.answered + journal.refused
        self._any_answer = journal.answered > 0
        self.last_failure = ""
        self.state = CollectProgress(total=journal.prompts * journal.samples, earlier=earlier)

    async def run(self) -> None:
        """Ask until all is settled.

        Raises:
            RunError: if the server is away for too long, or nothing but failures comes back.
            CollectInterrupted: after a signal.
        """
        self._began = time.monotonic()
        count = min(self._settings.concurrency, self._journal.open_pairs)
        workers = [asyncio.create_task(self._work()) for _ in range(count)]
        ticker = asyncio.create_task(self._tick())
        try:
            async with self._signals(workers):
                everyone = asyncio.gather(*workers)
                ended, _ = await asyncio.wait((everyone, ticker), return_when=asyncio.FIRST_COMPLETED)
                for task in ended:
                    task.result()
        except asyncio.CancelledError:
            if self._signal is None:
                raise
        finally:
            for task in (*workers, ticker):
                task.cancel()
            await asyncio.gather(*workers, ticker, return_exceptions=True)
            self._tell()
        if self._signal is not None and self._journal.open_pairs:
            state = self.state
            raise CollectInterrupted(
                self._signal, state.settled - state.failed, state.total, self._journal.folder
            ) from None

    # -- one request ---------------------------------------------------------------------------------------

    async def _work(self) -> None:
        with contextlib.suppress(_Stopping):
            for prompt, sample in self._to_do:
                record = self._journal.record(prompt)
                body = request_body(self._settings, self._model, record, context_digest(record), sample)
                self._settle(prompt, sample, await self._ask(body))

    async def _ask(self, body: dict[str, object]) -> Outcome:
        attempt = 0
        while True:
            await self._turn()
            self.state.sent += 1
            self.state.open += 1
            try:
                reply = await self._endpoint.ask(body)
            finally:
                self.state.open -= 1
            if isinstance(reply, Away):
                self._away(reply)
                continue
            self._gate.reached()
            self.state.note = self.state.note if self.state.ending else ""
            if isinstance(reply, Stop):
                raise RunError(reply.why, where=self._endpoint.base, fix=reply.fix or self._go_on())
            if not isinstance(reply, Again):
                return reply
            attempt += 1
            if attempt > self._settings.retries:
                return Failed(reply.why)
            self.state.retries += 1
            if reply.after_s:
                self._hold(reply)
            await self._sleep(backoff(self._settings.backoff_s, attempt, self._rng))

    async def _turn(self) -> None:
        """Wait until this request may go out."""
        if self._stop.is_set():
            raise _Stopping
        await self._sleep(self._pace.take(time.monotonic()))
        while wait := self._gate.wait(time.monotonic()):
            await self._sleep(wait)

    async def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), seconds)
        if self._stop.is_set():
            raise _Stopping

    def _settle(self, prompt: int, sample: int, outcome: Outcome) -> None:
        if isinstance(outcome, Answer) and not self._settings.keep_text:
            outcome = replace(outcome, text=None)
        self._journal.add(prompt, sample, outcome)
        state = self.state
        if isinstance(outcome, Answer):
            state.answered += 1
            state.tokens += outcome.tokens
            self._any_answer, self._failed_in_a_row = True, 0
        elif isinstance(outcome, Refused):
            state.refused += 1
            if not self._any_answer and state.refused >= _REFUSED_AT_FIRST:
                what = f"the first {state.refused} requests were all refused; the last: {outcome.why}"
                raise RunError(what, where=self._endpoint.base)
        else:
            state.failed += 1
            self.last_failure = outcome.why
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= _FAILED_IN_A_ROW:
                what = f"{_FAILED_IN_A_ROW} requests in a row failed; the last: {outcome.why}"
                raise RunError(what, where=self._endpoint.base, fix=self._go_on())
        self._tell()

    # -- a server that is not there, or not yet ------------------------------------------------------------

    def _away(self, reply: Away) -> None:
        """Let all wait for the server.

        Raises:
            RunError: if it will not come back, or has been away for too long.
        """
        self._patience(reply.why)
        self._gate.away(time.monotonic())
        self.state.note = f"no server answers ({reply.why})"

    def _patience(self, why: str) -> None:
        if (end := self._ended()) is not None:
            raise RunError(end, where=self._where, fix=self._go_on())
        away = self._gate.away_for(time.monotonic())
        if away > self._settings.patience_s:
            what = f"no server has answered for {away:.0f} s ({why})"
            raise RunError(what, where=self._endpoint.base, fix=self._go_on())

    def _hold(self, reply: Again) -> None:
        seconds = reply.after_s or 0.0
        if seconds > self._settings.patience_s:
            what = f"the server asks us to wait {seconds:.0f} s ({reply.why})"
            raise RunError(what, where=self._endpoint.base, fix=self._go_on())
        self._gate.hold(time.monotonic(), seconds)
        self.state.note = f"the server asks us to wait {seconds:.0f} s"

    def _go_on(self) -> str:
        return f"what was answered is kept in {self._where}, the same command goes on"

    # -- around them ---------------------------------------------------------------------------------------

    def _tell(self) -> None:
        self.state.elapsed_s = time.monotonic() - self._began
        self._show(self.state)

    async def _tick(self) -> None:
        synced = time.monotonic()
        while True:
            await asyncio.sleep(_TICK_S)
            self._tell()
            if time.monotonic() - synced > _SYNC_S:
                await asyncio.to_thread(self._journal.sync)
                synced = time.monotonic()

    @contextlib.asynccontextmanager
    async def _signals(self, workers: list[asyncio.Task[None]]) -> AsyncIterator[None]:
        """The first SIGINT lets open requests end, the next one, or a SIGTERM, drops them."""
        loop = asyncio.get_running_loop()

        def come(number: int) -> None:
            again = self._stop.is_set()
            self._signal = number
            self._stop.set()
            if again or number == signal.SIGTERM:
                for worker in workers:
                    worker.cancel()
            else:
                self.state.ending = True
                self.state.note = f"ending: {self.state.open} requests are open; once more drops them"
                self._tell()

        numbers = (signal.SIGINT, signal.SIGTERM)
        installed = []
        for number in numbers:
            # Only the main thread takes signals; elsewhere whoever owns that thread decides.
            with contextlib.suppress(ValueError, RuntimeError):
                loop.add_signal_handler(number, come, number)
                installed.append(number)
        try:
            yield
        finally:
            for number in installed:
                loop.remove_signal_handler(number)
