"""One collection from beginning to end: choose the prompts, ask, write the trace; or go on where one was cut off.

Rule: until the trace is written, everything that was answered is in the journal, and the same call goes on from it;
when the trace is there, the journal is gone. What can be said to be wrong before anything is asked, is.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

from ecoserve.data import LoadReport, Record
from ecoserve.errors import ConfigError, RunError
from ecoserve.serving.collect.collector import Collector
from ecoserve.serving.collect.endpoint import Endpoint
from ecoserve.serving.collect.journal import Journal, journal_of
from ecoserve.serving.collect.local import LocalServer, name_of
from ecoserve.serving.collect.prompts import choose
from ecoserve.serving.collect.settings import CollectSettings
from ecoserve.serving.collect.tally import CollectProgress, CollectResult, Progress
from ecoserve.serving.collect.writing import write_trace

#: Prompts between two words about reading them.
_READ: Final = 2000


def collect(settings: CollectSettings, progress: Progress | None = None) -> CollectResult:
    """Ask a model for answers and write a trace of their true lengths.

    Resumable: after any end, the same call asks only for what is missing. Without ``url`` and ``model`` nothing is
    asked, and the trace is written from what earlier runs have collected.

    Args:
        settings: what is asked, of whom, how fast.
        progress: called with the state of things at every step, and once a second.

    Raises:
        InputError: for prompts or settings that cannot be used, a server that is not there or does not let us in, or a
            journal of other settings.
        RunError: if the server goes away or fails, or answers are missing in the end.
        CollectInterrupted: after SIGINT or SIGTERM.
    """
    output, folder = settings.output, journal_of(settings.output)
    if output.is_dir():
        raise ConfigError("is a folder", where=str(output), fix="name a file in it")
    if output.exists() and not (folder / "settings.json").exists():
        raise ConfigError("exists already", where=str(output), fix="remove it, or name another output")
    with Journal(folder) as journal:
        kept = journal.settings()
        try:
            return _Collection(settings, journal, progress or (lambda state: None)).run(kept)
        finally:
            # A first run that brought nothing leaves nothing to go on with.
            if kept is None and not journal.answered:
                journal.remove()


class _Collection:
    def __init__(self, settings: CollectSettings, journal: Journal, progress: Progress) -> None:
        self._settings = settings
        self._journal = journal
        self._progress = progress
        self._began = time.monotonic()
        self._model = ""
        self._earlier = 0
        self._damaged = 0
        self._state = CollectProgress(0, 0)
        self._last_failure = ""

    def run(self, kept: Mapping[str, Any] | None) -> CollectResult:
        s = self._settings
        nobody = s.url is None and s.model is None
        if kept is None and nobody:
            raise ConfigError("needs a server to ask", fix="give --url, or --model for one of our own")
        if kept is not None:
            self._same(kept)
        source = self._prompts(kept)
        if kept is not None:
            self._open()
        if not nobody and (kept is None or self._journal.open_pairs):
            asyncio.run(self._ask(kept, source))
        return self._finish(kept, nobody, source)

    # -- what is asked -------------------------------------------------------------------------------------

    def _prompts(self, kept: Mapping[str, Any] | None) -> str:
        """Read the prompts, and write them down or see that they are still the same; returns what was read, in words.

        Raises:
            ConfigError: if they are others than the journal's.
        """
        s = self._settings
        report = LoadReport()
        chosen = choose(s.prompts, format=s.format, limit=s.limit, sample=s.sample, seed=s.seed, report=report)
        print_of = _Fingerprint()
        followed = self._counted(print_of.follow(chosen, s))
        if kept is None:
            self._journal.keep_prompts(followed)
        else:
            for _ in followed:
                pass
            if kept["prompts_sha256"] != print_of.hex():
                counts = f" ({kept['prompts']:,} there, {print_of.count:,} now)"
                raise self._other(f"was begun with other prompts{counts * (kept['prompts'] != print_of.count)}")
        self._print = print_of
        return str(report)

    def _counted(self, chosen: Iterable[tuple[Record, str]]) -> Iterator[tuple[Record, str]]:
        for count, found in enumerate(chosen):
            if count % _READ == 0:
                self._progress(CollectProgress(0, 0, note=f"reading prompts: {count:,}"))
            yield found

    def _same(self, kept: Mapping[str, Any]) -> None:
        """See that the journal's answers are answers to what is asked now.

        Raises:
            ConfigError: naming the first thing that differs.
        """
        for name, now in self._settings.identity().items():
            there = kept["identity"].get(name)
            if there != now:
                if name == "body":
                    raise self._other("was begun with other fields in --body")
                raise self._other(f"was begun with {name} {_said(there)}, now it is {_said(now)}")
        self._model = kept["model"]

    def _other(self, what: str) -> ConfigError:
        folder = self._journal.folder
        return ConfigError(what, where=str(folder), fix=f"give the same, name another output, or remove {folder.name}")

    def _open(self) -> None:
        self._damaged = self._journal.open(self._settings.samples, self._print.count)
        self._earlier = self._journal.answered

    # -- asking --------------------------------------------------------------------------------------------

    async def _ask(self, kept: Mapping[str, Any] | None, source: str) -> None:
        s = self._settings
        secret = s.api_key.get_secret_value() if s.api_key is not None else None
        async with AsyncExitStack() as stack:
            url, name, socket, ended = s.url, s.served_model, None, _never
            if s.model is not None:
                name = name or name_of(s.model)
                self._check_model(kept, name)
                server = LocalServer(s.model, s.server_flags, name, _log_of(s.output), self._progress)
                await stack.enter_async_context(server)
                url, socket, secret, ended = server.url, server.socket, None, server.ended
            assert url is not None
            endpoint = await stack.enter_async_context(
                Endpoint(url, api=s.api, connections=s.concurrency, timeout_s=s.timeout_s, secret=secret, socket=socket)
            )
            name = await endpoint.model(name)
            self._check_model(kept, name)
            if kept is None:
                self._begin(name, source)
            collector = Collector(s, name, endpoint, self._journal, self._progress, ended)
            self._state = collector.state
            await collector.run()
            self._last_failure = collector.last_failure
        _log_of(s.output).unlink(missing_ok=True)

    def _check_model(self, kept: Mapping[str, Any] | None, name: str) -> None:
        if kept is not None and kept["model"] != name:
            raise self._other(f"was begun with the model {kept['model']}, now it is {name}")

    def _begin(self, model: str, source: str) -> None:
        self._model = model
        s = self._settings
        self._journal.begin(
            {
                "model": model,
                "source": s.prompts,
                "rows": source,
                "prompts": self._print.count,
                "prompts_sha256": self._print.hex(),
                "identity": s.identity(),
            }
        )
        self._open()

    # -- ending --------------------------------------------------------------------------------------------

    def _finish(self, kept: Mapping[str, Any] | None, nobody: bool, source: str) -> CollectResult:
        s, journal = self._settings, self._journal
        missing, total = journal.open_pairs, journal.prompts * journal.samples
        if missing and not s.allow_missing:
            if nobody:
                what, fix = f"{missing:,} of {total:,} answers are missing", "give --url or --model to ask for them"
            else:
                what = f"{missing:,} of {total:,} requests failed; the last: {self._last_failure}"
                fix = "the same command asks for them again"
            fix = f"{fix}, --allow-missing writes the trace without them"
            raise RunError(what, where=str(journal.folder), fix=fix)
        written = write_trace(journal, s, self._model)
        journal.remove()
        return CollectResult(
            output=s.output,
            model=self._model,
            prompts=journal.prompts,
            samples=journal.samples,
            rows=written.rows,
            rows_earlier=self._earlier,
            refused=journal.refused,
            missing=missing,
            damaged=self._damaged,
            censored=written.censored,
            tokens=written.tokens,
            requests_sent=self._state.sent,
            retries=self._state.retries,
            duration_s=time.monotonic() - self._began,
            source=source,
            finish_reasons=dict(written.reasons),
        )


class _Fingerprint:
    """SHA-256 of requests in their order: context and limit of each."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self.count = 0

    def follow(self, chosen: Iterable[tuple[Record, str]], settings: CollectSettings) -> Iterator[tuple[Record, str]]:
        for record, digest in chosen:
            self._digest.update(f"{digest} {settings.limit_of(record)}\n".encode())
            self.count += 1
            yield record, digest

    def hex(self) -> str:
        return self._digest.hexdigest()


def _log_of(output: Path) -> Path:
    return output.with_name(f"{output.name}.server.log")


def _said(value: object) -> object:
    return "not given" if value is None else value


def _never() -> str | None:
    return None
