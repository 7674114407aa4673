"""One collection from start to end: choose the prompts, ask, write the trace; or resume an interrupted one."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Final

from ecoserve.data import LoadReport, Record, Trace, fingerprint
from ecoserve.data.formats.records import header, write_lines
from ecoserve.errors import ConfigError, RunError
from ecoserve.serving.collect.collector import Collector
from ecoserve.serving.collect.endpoint import COMPLETE, Endpoint
from ecoserve.serving.collect.journal import Journal, journal_of
from ecoserve.serving.collect.local import LocalServer, name_of
from ecoserve.serving.collect.prompts import choose
from ecoserve.serving.collect.settings import (
    CollectProgress,
    CollectResult,
    CollectSettings,
    Progress,
    body_limit,
    request_body,
)

#: Prompts between two progress messages while they are read.
_READ: Final = 2000


def collect(settings: CollectSettings, progress: Progress | None = None) -> CollectResult:
    """Ask a model for answers and write a trace of their true lengths.

    Resumable: after any end, the same call asks only for what is missing. Without ``url`` and ``model`` nothing is
    asked, and the trace is written from what earlier runs have collected. ``progress`` is called after every request,
    and once a second. Raises InputError for prompts or settings that cannot be used, a server that does not answer or
    refuses the key, or a journal of other settings; RunError if the server goes away or fails, or answers are missing
    in the end; CollectInterrupted: after SIGINT or SIGTERM.
    """
    output = settings.output
    if output.is_dir():
        raise ConfigError("is a folder", where=str(output), fix="name a file in it")
    with Journal(journal_of(output)) as journal:
        kept = journal.settings()
        try:
            if output.exists() and kept is None:
                raise ConfigError("exists already", where=str(output), fix="remove it, or name another output")
            return _Collection(settings, journal, kept, progress or (lambda state: None)).run()
        finally:
            # A first run without an answer leaves nothing to resume.
            if kept is None and not journal.answered:
                journal.remove()


class _Collection:
    """One run of a collection; ``kept`` is what earlier runs stored in the journal, None in the first."""

    def __init__(
        self, settings: CollectSettings, journal: Journal, kept: Mapping[str, Any] | None, progress: Progress
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._kept = kept
        self._progress = progress
        self._report = LoadReport()
        self._collector: Collector | None = None

    def run(self) -> CollectResult:
        s, journal = self._settings, self._journal
        has_server = s.url is not None or s.model is not None
        if self._kept is None and not has_server:
            raise ConfigError("needs a server to ask", fix="give --url, or --model for one of our own")
        if self._kept is not None:
            self._check_identity(self._kept)
        prompts = self._read_prompts()
        if self._kept is not None:
            journal.load(s.samples, prompts["prompts"])
        earlier = journal.answered
        if has_server and (self._kept is None or journal.open_pairs):
            asyncio.run(self._ask(prompts))
        assert self._kept is not None
        self._check_complete(has_server)
        reasons = journal.finish_reasons()
        _write_trace(journal, s, self._kept["model"])
        journal.remove()
        return CollectResult(
            output=s.output,
            model=self._kept["model"],
            prompts=journal.prompts,
            rows=journal.answered,
            rows_earlier=earlier,
            refused=journal.refused,
            missing=journal.open_pairs,
            censored=sum(count for reason, (count, _) in reasons.items() if reason not in COMPLETE),
            tokens=sum(tokens for _, tokens in reasons.values()),
            requests_sent=self._collector.state.sent if self._collector else 0,
            retries=self._collector.state.retries if self._collector else 0,
            finish_reasons={reason: count for reason, (count, _) in reasons.items()},
        )

    # -- the prompts and settings --------------------------------------------------------------------------

    def _read_prompts(self) -> dict[str, Any]:
        """Read the prompts; store them, or check that they are the journal's. Returns their number and fingerprint."""
        s = self._settings
        digest = hashlib.sha256()
        count = 0

        def followed() -> Iterator[Record]:
            nonlocal count
            chosen = choose(
                s.prompts, format=s.format, limit=s.limit, sample=s.sample, seed=s.seed, report=self._report
            )
            for record, context in chosen:
                if count % _READ == 0:
                    self._progress(CollectProgress(0, 0, note=f"reading prompts: {count:,}"))
                count += 1
                digest.update(f"{context} {s.limit_of(record)}\n".encode())
                yield record

        if self._kept is None:
            self._journal.keep_prompts(followed())
        else:
            for _ in followed():
                pass
            if self._kept["prompts_sha256"] != digest.hexdigest():
                counts = f" ({self._kept['prompts']:,} there, {count:,} now)"
                raise self._other(f"was begun with other prompts{counts * (self._kept['prompts'] != count)}")
        return {"prompts": count, "prompts_sha256": digest.hexdigest()}

    def _check_identity(self, kept: Mapping[str, Any]) -> None:
        """Raise ConfigError, naming the first difference, if the journal's answers are to other questions."""
        for name, now in self._settings.identity().items():
            there = kept["identity"].get(name)
            if there != now and name == "body":
                raise self._other("was begun with other fields in --body")
            if there != now:
                was, given = ("not given" if value is None else value for value in (there, now))
                raise self._other(f"was begun with {name} {was}, now it is {given}")

    def _check_model(self, name: str) -> None:
        if self._kept is not None and self._kept["model"] != name:
            raise self._other(f"was begun with the model {self._kept['model']}, now it is {name}")

    def _other(self, what: str) -> ConfigError:
        path = self._journal.path
        return ConfigError(what, where=str(path), fix=f"give the same, name another output, or remove {path.name}")

    # -- asking --------------------------------------------------------------------------------------------

    async def _ask(self, prompts: Mapping[str, Any]) -> None:
        s = self._settings
        log = s.output.with_name(f"{s.output.name}.server.log")
        async with AsyncExitStack() as stack:
            url, name, server = s.url, s.served_model, None
            if s.model is not None:
                name = name or name_of(s.model)
                self._check_model(name)
                server = LocalServer(s.model, s.server_flags, name, log, self._progress)
                await stack.enter_async_context(server)
                url = server.url
            assert url is not None
            endpoint = Endpoint(
                url,
                api=s.api,
                connections=s.concurrency,
                timeout_s=s.timeout_s,
                secret=s.api_key.get_secret_value() if s.api_key is not None and server is None else None,
                socket=server.socket if server is not None else None,
            )
            await stack.enter_async_context(endpoint)
            name = await endpoint.model(name)
            self._check_model(name)
            if self._kept is None:
                kept = {"model": name, "source": s.prompts, "rows": str(self._report), **prompts}
                kept |= {"identity": s.identity()}
                self._journal.begin(kept)
                self._journal.load(s.samples, prompts["prompts"])
                self._kept = kept
            ended = server.ended if server is not None else lambda: None
            self._collector = Collector(s, name, endpoint, self._journal, self._progress, ended)
            await self._collector.run()
        log.unlink(missing_ok=True)

    def _check_complete(self, has_server: bool) -> None:
        missing, total = self._journal.open_pairs, self._journal.prompts * self._journal.samples
        if not missing or self._settings.allow_missing:
            return
        if has_server and self._collector is not None:
            what = f"{missing:,} of {total:,} requests failed; the last: {self._collector.last_failure}"
            fix = "the same command asks for them again"
        else:
            what, fix = f"{missing:,} of {total:,} answers are missing", "give --url or --model to ask for them"
        fix = f"{fix}, --allow-missing writes the trace without them"
        raise RunError(what, where=str(self._journal.path), fix=fix)


def _write_trace(journal: Journal, settings: CollectSettings, model: str) -> None:
    """Write all answers to ``settings.output``: the file of ``save_trace``, with one prompt's answers in memory."""
    target = settings.output
    if not journal.answered:
        raise RunError("no request was answered, so there is no trace to write", where=str(target))
    digest = fingerprint(_records(journal, settings, model))
    counts = f"server:{model}"
    trace = Trace((), _source(settings, model), "records", digest, counts, LoadReport(), counts)
    try:
        write_lines(target, header(trace), _records(journal, settings, model))
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise RunError(what, where=str(target), fix="the journal is kept; make room and run it again") from error


def _records(journal: Journal, settings: CollectSettings, model: str) -> Iterator[Record]:
    for prompt in range(journal.prompts):
        answers = journal.answers(prompt)
        if not answers:
            continue
        asked = journal.record(prompt)
        limit = body_limit(request_body(settings, model, asked, 0))
        for sample, answer in answers:
            yield replace(
                asked,
                response=answer.text,
                response_tokens=answer.tokens,
                thinking_tokens=answer.thinking,
                prompt_tokens=answer.prompt_tokens,
                sample_tokens=tuple(other.tokens for s, other in answers if s != sample),
                model=model,
                sample=sample,
                finish_reason=answer.reason,
                max_tokens=limit,
                censored=answer.reason not in COMPLETE,
            )


def _source(settings: CollectSettings, model: str) -> str:
    """Where the trace comes from and how it was sampled: it is stored nowhere else."""

    def stated(name: str, value: object) -> str:
        return f"{name} {value if value is not None else 'of the server'}"

    how = [
        f"{settings.samples} samples",
        stated("temperature", settings.temperature),
        stated("top_p", settings.top_p),
        f"seed {settings.seed}",
        f"{settings.api} API",
    ]
    return f"{model} asked the prompts of {settings.prompts} ({', '.join(how)})"
