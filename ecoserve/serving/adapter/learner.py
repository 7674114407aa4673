"""``--learn DIR``: learning response lengths from the responses of the API server.

vLLM names each request's id in the ASGI scope's state, and its statistics of finished requests name id, tokens and
reason: together they say how long the response to a prompt was, streamed or not, and nothing in requests or responses
has to be changed for it. A response whose client went away has no statistics; its messages are a lower bound.

One thread looks after everything that takes time: fitting, in a process of its own
(:mod:`ecoserve.serving.online.refit`), and DIR. That holds the answers to learn from (features and lengths, no texts),
the checkpoint, and a lock. Both are replaced whole, and a write that fails is tried again.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from ecoserve.errors import CheckpointError, ConfigError, EcoServeError, RunError
from ecoserve.files import write_atomically
from ecoserve.predictor import load_predictor
from ecoserve.predictor.adaptation import AdaptedPredictor
from ecoserve.predictor.base import LengthPredictor
from ecoserve.predictor.boosting.features import NAMES
from ecoserve.predictor.linear import BUCKETS, PARAMETERS, LinearPredictor
from ecoserve.predictor.linear_fitting import MIN_ROWS
from ecoserve.predictor.text import Request
from ecoserve.serving.adapter.metrics import logger, middleware_metrics
from ecoserve.serving.adapter.open_responses import Message, Send
from ecoserve.serving.online.model import Answer, Note, OnlineModel, answers_from
from ecoserve.serving.online.refit import PREQUENTIAL, Refit, RefitProcess, packed_rows, unpack, unpacked_rows

#: Seconds between two fits at least, and how many times their CPU time: a twentieth of a core.
REFIT_S: Final = 5.0
REFIT_SHARE: Final = 20.0
#: New answers for a fit: so many, and so large a share of those to learn from.
FEWEST: Final = 20
SHARE: Final = 0.05
#: Seconds between two writes; of a checkpoint that holds a whole predictor too. Longest fit.
SAVE_S: Final = 30.0
SAVE_ADAPTED_S: Final = 3600.0
LONGEST_FIT_S: Final = 120.0
#: Finished requests whose responses are not known yet, and seconds for the statistics of a response that is over.
_MOST_FINISHED: Final = 4096
_LATE_S: Final = 2.0
#: Messages of a stream that carry no token.
_HEAD: Final = 2
_POLL_S: Final = 0.5
#: Seconds for the last write, when the server stops.
_LAST_S: Final = 5.0
ANSWERS, CHECKPOINT, LOCK, ASIDE = "answers.safetensors", "checkpoint", "lock", ".damaged"
_FORMAT: Final = "ecoserve-answers-1"


@dataclass(slots=True, eq=False)
class Learnable:
    """A request whose responses are learned from: a note on each prompt, and the messages that its stream has sent."""

    notes: Sequence[Note]
    sent: int = 0

    def counting(self, send: Send) -> Send:
        async def counted(message: Message) -> None:
            self.sent += message["type"] == "http.response.body"
            await send(message)

        return counted


@dataclass(frozen=True, slots=True)
class Finished:
    """What the statistics say of a response: tokens, vLLM's word for the reason, and the limit."""

    tokens: int
    reason: str
    limit: int | None


class Learner:
    """Predicts, learns, and keeps what it has learned in ``folder``.

    Args:
        base: a predictor to adapt; without one, a linear model is learned.

    Raises:
        ConfigError: if ``folder`` cannot be used.
    """

    def __init__(self, folder: Path, base: LengthPredictor | None = None, served_model: str = "") -> None:
        if isinstance(base, AdaptedPredictor | LinearPredictor):
            what = "was adapted or learned already, and is no base to adapt"
            raise ConfigError(what, where="--predictor", fix="give the checkpoint it was made from, or --learn alone")
        self._folder = folder
        self._lock = locked(folder)
        self._base = base
        self._served_model = served_model
        known = [_FORMAT, *NAMES, *PARAMETERS, BUCKETS] if base is None else base.config.model_dump(mode="json")
        self._identity = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
        answers = self._read_answers()
        self.model = OnlineModel(base, self._read_checkpoint(), answers)
        start = "a checkpoint" if self.model.model else "the predictor" if base else "the history of lengths"
        logger.info("ecoserve: learning in %s from %d answers, starting from %s", folder, len(answers), start)
        # Made here: the thread below must not be the second to make them.
        middleware_metrics()
        self._process = RefitProcess()
        self._finished: OrderedDict[str, list[Finished]] = OrderedDict()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ecoserve-learn", daemon=True)
        #: number of the last answer that was learned from, and that is in DIR; of the checkpoints in DIR
        self._learned_from = self._saved = 0 if not answers else self.model.added
        self._learned_from -= len(answers)
        self._unsaved: LengthPredictor | None = None
        self._failing = False

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop learning, and write what is new."""
        self._stop.set()
        self._process.kill()
        if self._thread.is_alive():
            self._thread.join(_LAST_S)
        self._process.close()
        self._lock.close()

    # -- requests and responses, on the event loop or the predictor's thread -------------------------------------

    def predict(self, requests: Sequence[Request], /) -> list[Note]:
        return self.model.predict(requests)

    @staticmethod
    def learnable(notes: Sequence[Note]) -> Learnable:
        return Learnable(notes)

    def finished(self, request_id: str | None, tokens: int, reason: str, limit: int | None) -> None:
        """vLLM's statistics of a request."""
        if request_id is None or tokens < 1:
            return
        self._finished.setdefault(request_id, []).append(Finished(tokens, reason, limit))
        if len(self._finished) > _MOST_FINISHED:
            self._finished.popitem(last=False)

    def over(self, request: Learnable, state: Mapping[str, Any]) -> None:
        """A response is complete, or its client has gone; ``state`` is the ASGI scope's."""
        request_id = getattr(state.get("request_metadata"), "request_id", None)
        if request_id is None:
            return
        names = [f"{request_id}-{i}" for i in range(len(request.notes))]
        if not names[1:]:
            # One prompt: its id is the request's own, a completion's has an index, a response's a turn behind it.
            names = [next((n for n in self._names(request_id) if n in self._finished), request_id)]
        late = [(name, note) for name, note in zip(names, request.notes, strict=True) if not self._learn(name, note)]
        if late:
            asyncio.get_running_loop().call_later(_LATE_S, self._late, late, request)

    @staticmethod
    def _names(request_id: str) -> tuple[str, ...]:
        return request_id, f"{request_id}-0", f"{request_id}_0"

    def _learn(self, name: str, note: Note) -> bool:
        found = self._finished.pop(name, None)
        for one in found or ():
            if one.reason in ("stop", "repetition", "length"):
                ended = one.reason != "length"
                self.model.observe(note, one.tokens, ended=ended, limit=one.limit)
                middleware_metrics().learned_answers.labels("ended" if ended else "cut_off").inc()
        return found is not None

    def _late(self, late: list[tuple[str, Note]], request: Learnable) -> None:
        for name, note in late:
            names = self._names(name) if len(request.notes) == 1 else (name,)
            if any(self._learn(n, note) for n in names):
                continue
            if len(request.notes) == 1 and request.sent > _HEAD:
                self.model.observe(note, request.sent - _HEAD, ended=False)
                middleware_metrics().learned_answers.labels("aborted").inc()

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        next_fit, next_save, next_checkpoint = 0.0, time.monotonic() + SAVE_S, 0.0
        serving, alarms = self.model.serving, 0
        while not self._stop.wait(_POLL_S):
            if self.model.alarms > alarms:
                alarms = self.model.alarms
                middleware_metrics().learning_alarms.labels().inc()
                logger.warning("ecoserve: lengths are not as predicted any more; the history of lengths serves")
            now = time.monotonic()
            if now >= next_fit and self._enough():
                next_fit = time.monotonic() + max(REFIT_S, REFIT_SHARE * self._fit())
            if self.model.serving != serving:
                serving = self.model.serving
                logger.info("ecoserve: %s", self._figures(serving))
            middleware_metrics().learning_serves.labels().set(serving)
            if now >= next_save:
                next_save = now + SAVE_S
                adapted = self._base is not None
                if self._save(checkpoint=not adapted or now >= next_checkpoint) and now >= next_checkpoint:
                    next_checkpoint = now + (SAVE_ADAPTED_S if adapted else 0.0)
        self._save()

    def _enough(self) -> bool:
        new = self.model.added - self._learned_from
        least = FEWEST if self.model.alarmed else max(FEWEST, SHARE * len(self.model.answers))
        return len(self.model.answers) >= MIN_ROWS and new >= least

    def _fit(self) -> float:
        """Fit once; returns the CPU seconds that it took."""
        answers, scores, added = self.model.newest()
        watch = threading.Timer(LONGEST_FIT_S, self._process.kill)
        watch.start()
        try:
            found = self._process.fit(answers, scores, self._base, {"served_model": self._served_model or None})
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, it goes on serving and learning
            if not self._stop.is_set():
                logger.warning("ecoserve: fitting failed (%s); it is tried again", " ".join(str(error).split()))
                middleware_metrics().learning_fits.labels("failed").inc()
            return REFIT_S
        finally:
            watch.cancel()
        self._learned_from = added
        if not isinstance(found, Refit):
            return found
        self.model.learned(found.model, found.gains, found.order, found.since, added)
        self._unsaved = found.model
        metrics = middleware_metrics()
        metrics.learning_fits.labels("done").inc()
        metrics.learning_cpu.labels().inc(found.cpu_s)
        figures = found.model.config.metrics.get(PREQUENTIAL)
        if figures:
            metrics.learning_tau.labels().set(figures["kendall_tau"])
            for level in metrics.learning_coverage.values or ():
                metrics.learning_coverage.labels(level).set(figures[f"coverage_{round(100 * float(level))}"])
        if (gain := self.model.gain()) is not None:
            metrics.learning_gain.labels().set(gain)
        return found.cpu_s

    def _figures(self, serving: bool) -> str:
        what = "what was learned serves" if serving else "the history of lengths serves, it is better"
        found = self.model.model.config.metrics.get(PREQUENTIAL) if self.model.model else None
        if not found:
            return what
        return (
            f"{what} (the newest {found['rows']:.0f} answers, predicted before they were known: Kendall's tau "
            f"{found['kendall_tau']:.2f}, {found['coverage_90']:.0%} within the quantile 0.9)"
        )

    # -- DIR -------------------------------------------------------------------------------------------------------

    def _save(self, checkpoint: bool = True) -> bool:
        """Write what is new, or log once that it cannot be written."""
        try:
            added = self.model.added
            if added > self._saved:
                about = {"format": _FORMAT, "of": self._identity}
                write_atomically(self._folder / ANSWERS, packed_rows(self.model.newest()[0], about))
                self._saved = added
            if checkpoint and self._unsaved is not None:
                self._save_checkpoint(self._unsaved)
                self._unsaved = None
        except (OSError, RunError) as error:
            middleware_metrics().learning_writes.labels("failed").inc()
            if not self._failing:
                logger.warning("ecoserve: cannot write in %s (%s); it is tried again", self._folder, error)
            self._failing = True
            return False
        if self._failing:
            logger.info("ecoserve: %s can be written again", self._folder)
        self._failing = False
        middleware_metrics().learning_writes.labels("done").inc()
        return True

    def _save_checkpoint(self, predictor: LengthPredictor) -> None:
        """A new folder each time; the link to it is replaced, so that there is one whole checkpoint at any time."""
        link = self._folder / CHECKPOINT
        old = list(self._folder.glob(f"{CHECKPOINT}-*"))
        number = 1 + max((int(n) for p in old if (n := p.name.rpartition("-")[2]).isdecimal()), default=0)
        new = self._folder / f"{CHECKPOINT}-{number:06d}"
        predictor.save_pretrained(new)
        fresh = self._folder / f".{CHECKPOINT}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(new.name)
        fresh.replace(link)
        for folder in old:
            shutil.rmtree(folder, ignore_errors=True)

    def _read_answers(self) -> list[Answer]:
        path = self._folder / ANSWERS
        if not path.exists():
            return []
        try:
            arrays, about = unpack(path.read_bytes())
            if about != {"format": _FORMAT, "of": self._identity}:
                raise ValueError("is of another predictor or version")
            return answers_from(unpacked_rows(arrays))
        except Exception as error:  # noqa: BLE001 - whatever a library raises over a damaged file
            self._put_aside(path, error)
            return []

    def _read_checkpoint(self) -> LinearPredictor | AdaptedPredictor | None:
        link = self._folder / CHECKPOINT
        if not link.is_symlink() and not link.exists():
            return None
        try:
            found = load_predictor(link)
            if self._base is None and isinstance(found, LinearPredictor):
                return found
            base = self._base
            if base is not None and isinstance(found, AdaptedPredictor) and found.base.config == base.config:
                # The base in memory, so that its weights are there once.
                return AdaptedPredictor(found.config, found.calibration, base, found.adaptation)
            raise CheckpointError("is of another predictor", where=str(link))
        except EcoServeError as error:
            self._put_aside(link, error)
            return None

    def _put_aside(self, path: Path, error: Exception) -> None:
        """Keep what cannot be read beside its place; the last such only."""
        aside = path.with_name(path.name + ASIDE)
        logger.warning("ecoserve: %s cannot be used (%s) and is kept as %s", path, " ".join(str(error).split()), aside)
        shutil.rmtree(aside, ignore_errors=True)
        source = path.resolve() if path.is_symlink() else path
        if path.is_symlink():
            path.unlink()
        if source.exists():
            source.replace(aside)


def locked(folder: Path) -> IO[bytes]:
    """Make ``folder`` and lock it, until the file that is returned is closed.

    Raises:
        ConfigError: if it cannot be written, or another server learns there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = (folder / LOCK).open("wb")
    except OSError as error:
        what = f"cannot be written ({error.strerror or error})"
        raise ConfigError(what, where=f"--learn {folder}", fix="give a folder that can") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ConfigError(
            "another server learns there", where=f"--learn {folder}", fix="give another folder"
        ) from error
    return file
