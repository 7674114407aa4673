"""Ask one server for the samples that one journal lacks, a bounded number of requests at once.

Whatever a request's outcome, it is in the journal before the next request is sent. Failed requests are repeated with
growing waits, refused ones are not. While the server is unreachable all requests wait, and none loses an attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any, Final

import tenacity
from tenacity import RetryCallState

from ecoserve.errors import RunError
from ecoserve.serving.collect.endpoint import Again, Answer, Away, Endpoint, Failed, Outcome, Refused, Reply, Stop
from ecoserve.serving.collect.journal import Journal
from ecoserve.serving.collect.settings import (
    CollectInterrupted,
    CollectProgress,
    CollectSettings,
    Progress,
    request_body,
)

#: After this many requests in a row that failed for good, the server is at fault, not the request.
_FAILED_IN_A_ROW: Final = 25
#: After this many refusals without an answer, what all requests share is at fault, not a single prompt.
_REFUSED_AT_FIRST: Final = 100
#: Longest wait between two attempts, in seconds, unless the server asks for more.
_LONGEST_WAIT_S: Final = 60.0
_TICK_S: Final = 1.0
_TICKS_PER_SYNC: Final = 5


class _Stopping(Exception):
    """A signal has come: nothing new is sent."""


def backoff(base_s: float) -> Callable[[RetryCallState], float]:
    """Waits that double from ``base_s`` seconds to a minute; half of each is random."""
    half = {"multiplier": base_s / 2, "max": _LONGEST_WAIT_S / 2}
    return tenacity.wait_exponential(**half) + tenacity.wait_random_exponential(**half)


class Collector:
    """Asks the server ``endpoint`` for what a loaded journal lacks.

    ``progress`` is called after every request and once a second; ``ended`` says why a server of our own is gone, else
    None.
    """

    def __init__(
        self,
        settings: CollectSettings,
        model: str,
        endpoint: Endpoint,
        journal: Journal,
        progress: Progress,
        ended: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._model = model
        self._endpoint = endpoint
        self._journal = journal
        self._progress = progress
        self._ended = ended
        self._to_do = journal.to_do()
        self._stop = asyncio.Event()
        self._signal: int | None = None
        self._failed_in_a_row = 0
        self._any_answer = journal.answered > 0
        self._backoff = backoff(settings.backoff_s)
        # Monotonic times: no request goes out before the first; the next free slot of the rate; start of an outage.
        self._resume_at = 0.0
        self._next_slot = 0.0
        self._away_since: float | None = None
        self._began = time.monotonic()
        self._resume_hint = f"what was answered is kept in {journal.path}, the same command goes on"
        self.last_failure = ""
        self.state = CollectProgress(
            total=journal.prompts * journal.samples, earlier=journal.answered + journal.refused
        )

    async def run(self) -> None:
        count = min(self._settings.concurrency, self._journal.open_pairs)
        workers = [asyncio.create_task(self._work()) for _ in range(count)]
        ticker = asyncio.create_task(self._tick())
        try:
            async with self._signals(workers):
                done, _ = await asyncio.wait((asyncio.gather(*workers), ticker), return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        except asyncio.CancelledError:
            if self._signal is None:
                raise
        finally:
            for task in (*workers, ticker):
                task.cancel()
            await asyncio.gather(*workers, ticker, return_exceptions=True)
            self._report()
        if self._signal is not None and self._journal.open_pairs:
            kept = self.state.settled - self.state.failed
            raise CollectInterrupted(self._signal, kept, self.state.total, self._journal.path) from None

    # -- one sample ----------------------------------------------------------------------------------------

    async def _work(self) -> None:
        with contextlib.suppress(_Stopping):
            for prompt, sample in self._to_do:
                body = request_body(self._settings, self._model, self._journal.record(prompt), sample)
                self._settle(prompt, sample, await self._ask(body))

    async def _ask(self, body: dict[str, Any]) -> Outcome:
        reply: Reply = await self._retrying(
            Again,
            self._before_retry,
            stop=tenacity.stop_after_attempt(self._settings.retries + 1),
            retry_error_callback=lambda state: Failed(_reply(state).why),
        )(self._reach, body)
        assert isinstance(reply, Outcome), reply
        return reply

    async def _reach(self, body: dict[str, Any]) -> Reply:
        reply: Reply = await self._retrying(Away, self._before_reconnect)(self._send, body)
        self._away_since = None
        if not self.state.ending:
            self.state.note = ""
        if isinstance(reply, Stop):
            raise RunError(reply.why, where=self._endpoint.base, fix=reply.fix or self._resume_hint)
        return reply

    def _retrying(
        self, kind: type[Reply], before_sleep: Callable[[RetryCallState], None], **options: Any
    ) -> tenacity.AsyncRetrying:
        again = tenacity.retry_if_result(lambda reply: isinstance(reply, kind))
        return tenacity.AsyncRetrying(
            retry=again, wait=self._backoff, before_sleep=before_sleep, sleep=self._sleep, **options
        )

    async def _send(self, body: dict[str, Any]) -> Reply:
        await self._sleep(self._slot())
        while (wait := self._resume_at - time.monotonic()) > 0:
            await self._sleep(wait)
        self.state.sent += 1
        self.state.open += 1
        try:
            return await self._endpoint.ask(body)
        finally:
            self.state.open -= 1

    def _slot(self) -> float:
        """Take the next slot of the rate, evenly spaced; returns the seconds until then."""
        now = time.monotonic()
        at = max(now, self._next_slot)
        self._next_slot = at + (1 / self._settings.rate if self._settings.rate else 0.0)
        return at - now

    async def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), seconds)
        if self._stop.is_set():
            raise _Stopping

    def _before_retry(self, state: RetryCallState) -> None:
        reply = _reply(state)
        self.state.retries += 1
        if not (seconds := reply.after_s):
            return
        if seconds > self._settings.patience_s:
            what = f"the server asks us to wait {seconds:.0f} s ({reply.why})"
            raise RunError(what, where=self._endpoint.base, fix=self._resume_hint)
        self._resume_at = max(self._resume_at, time.monotonic() + seconds)
        self.state.note = f"the server asks us to wait {seconds:.0f} s"

    def _before_reconnect(self, state: RetryCallState) -> None:
        """Make all requests wait, not only this one, unless the server will not come back."""
        why, now = _reply(state).why, time.monotonic()
        if (end := self._ended()) is not None:
            raise RunError(end, where=str(self._journal.path), fix=self._resume_hint)
        if self._away_since is None:
            self._away_since = now
        if (away := now - self._away_since) > self._settings.patience_s:
            what = f"no server has answered for {away:.0f} s ({why})"
            raise RunError(what, where=self._endpoint.base, fix=self._resume_hint)
        assert state.next_action is not None
        self._resume_at = max(self._resume_at, now + state.next_action.sleep)
        self.state.note = f"the server is unreachable ({why})"

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
                raise RunError(what, where=self._endpoint.base, fix=self._resume_hint)
        self._report()

    # -- progress and signals ------------------------------------------------------------------------------

    def _report(self) -> None:
        self.state.elapsed_s = time.monotonic() - self._began
        self._progress(self.state)

    async def _tick(self) -> None:
        for tick in itertools.count(1):
            await asyncio.sleep(_TICK_S)
            self._report()
            if tick % _TICKS_PER_SYNC == 0:
                self._journal.sync()

    @contextlib.asynccontextmanager
    async def _signals(self, workers: list[asyncio.Task[None]]) -> AsyncIterator[None]:
        """The first SIGINT lets open requests finish, the next one, or a SIGTERM, drops them."""
        loop = asyncio.get_running_loop()

        def handle(number: int) -> None:
            again = self._stop.is_set()
            self._signal = number
            self._stop.set()
            if again or number == signal.SIGTERM:
                for worker in workers:
                    worker.cancel()
            else:
                self.state.ending = True
                self.state.note = f"ending: {self.state.open} requests are open; once more drops them"
                self._report()

        installed = []
        for number in (signal.SIGINT, signal.SIGTERM):
            # Only the main thread can handle signals; in any other, its owner decides.
            with contextlib.suppress(ValueError, RuntimeError):
                loop.add_signal_handler(number, handle, number)
                installed.append(number)
        try:
            yield
        finally:
            for number in installed:
                loop.remove_signal_handler(number)


def _reply(state: RetryCallState) -> Any:
    assert state.outcome is not None
    return state.outcome.result()
