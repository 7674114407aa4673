"""Reading, predicting and writing for ``ecoserve profile``.

A trace is streamed into a compact table. Only a predictor needs the trace in memory: it reads texts, and the rows held
out of its training are found by splitting the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from ecoserve.data import Trace, load_trace, split_trace, stream_trace
from ecoserve.data.loading import reading_bar
from ecoserve.data.profiling import QUANTILES, Comparison, Predictions, Profile, TraceTable, read_table
from ecoserve.errors import RunError, TraceError
from ecoserve.files import write_atomically

if TYPE_CHECKING:
    from rich.console import Console

    from ecoserve.data import Record
    from ecoserve.predictor.base import LengthPredictor

#: Most requests that are predicted: an encoder takes some 10 ms for each.
PREDICTED: Final = 2000
_BATCH: Final = 256


@dataclass(frozen=True, slots=True)
class Source:
    """A trace and how to read it; the names are those of :func:`~ecoserve.data.load_trace`."""

    path: str
    format: str = "auto"
    length_field: str | None = None
    sample_field: str | None = None
    tokenizer: str | None = None
    limit: int | None = None
    sample: int | None = None
    seed: int = 0

    def options(self) -> dict[str, Any]:
        """How to read it, for a stream."""
        names = ("format", "length_field", "sample_field", "tokenizer", "limit")
        return {name: getattr(self, name) for name in names}


def read(source: Source, predictor: str | None, *, quiet: bool) -> tuple[TraceTable, Predictions | None]:
    """The table of a trace, and a predictor's predictions for it."""
    if predictor is not None:
        from ecoserve.predictor import load_predictor
        from ecoserve.predictor.runtime import let_waiting_threads_sleep

        let_waiting_threads_sleep()
        # Before the trace, so that a wrong checkpoint is refused at once.
        checkpoint = load_predictor(predictor)
        trace = _load(source, quiet)
        return read_table(trace, seed=source.seed), predict(checkpoint, predictor, trace, source.seed, quiet=quiet)
    if source.sample is not None:
        return read_table(_load(source, quiet), seed=source.seed), None
    with _bar(source, quiet) as progress:
        stream = stream_trace(source.path, **source.options(), progress=progress)
        return read_table(stream, seed=source.seed), None


def _load(source: Source, quiet: bool) -> Trace:
    with _bar(source, quiet) as progress:
        return load_trace(source.path, **source.options(), sample=source.sample, seed=source.seed, progress=progress)


def _bar(source: Source, quiet: bool) -> Any:
    # Without a function, load_trace shows a bar of its own.
    return nullcontext(lambda read, size: None) if quiet else reading_bar(f"reading {Path(source.path).name}")


def predict(
    checkpoint: LengthPredictor, name: str, trace: Trace, seed: int, *, quiet: bool, most: int = PREDICTED
) -> Predictions:
    """Predict at most ``most`` rows of ``trace`` that the predictor was not trained on."""
    from ecoserve.predictor.text import asked_of, read_record

    rows, held_out = _unseen(checkpoint, trace)
    rows = [i for i in rows if read_record(trace.records[i]) is not None]
    if not rows:
        what = "has no prompts with texts, which a predictor reads"
        raise TraceError(what, where=trace.source, fix="give a trace with texts, or leave out --predictor")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])
    picked = [rows[i] for i in chosen.tolist()]
    found: dict[float, list[int]] = {q: [] for q in QUANTILES}
    with working(f"predicting {len(picked):,} lengths", quiet):
        for start in range(0, len(picked), _BATCH):
            requests = [asked_of(trace.records[i]) or "" for i in picked[start : start + _BATCH]]
            for lengths in checkpoint.predict(requests):
                for q in QUANTILES:
                    found[q].append(lengths.quantile(q))
    quantiles = {q: np.asarray(values, dtype=np.int64) for q, values in found.items()}
    return Predictions(name, np.asarray(picked, dtype=np.int64), quantiles, held_out)


def _unseen(checkpoint: LengthPredictor, trace: Trace) -> tuple[list[int], bool]:
    """Rows that the checkpoint was not trained on, and whether they were held out of this trace."""
    labelled = {r.split for r in trace.records}
    trained_here = checkpoint.config.trace_sha256 == trace.sha256
    if not trained_here and not ("train" in labelled and len(labelled) > 1):
        return list(range(len(trace))), False
    row_of: dict[int, int] = {id(record): i for i, record in enumerate(trace.records)}
    dev: tuple[Record, ...] = split_trace(trace, seed=checkpoint.config.seed)["dev"].records
    return [row_of[id(record)] for record in dev], True


@contextmanager
def working(what: str, quiet: bool) -> Iterator[None]:
    """A spinner that says what is being done, on a terminal only."""
    from ecoserve.cli.common import stderr_console

    console = stderr_console(quiet)
    with console.status(what) if console.is_terminal and not quiet else nullcontext():
        yield


def write_profile(folder: Path, profile: Profile, commands: list[str], console: Console) -> None:
    """Write ``profile.json`` and ``profile.html``."""
    from ecoserve.data.profiling.reporting import render_profile

    _write(folder, "profile", profile.model_dump_json(indent=1), render_profile(profile, commands), console)


def write_comparison(folder: Path, comparison: Comparison, commands: list[str], console: Console) -> None:
    """Write ``comparison.json`` and ``comparison.html``."""
    from ecoserve.data.profiling.reporting import render_comparison

    page = render_comparison(comparison, commands)
    _write(folder, "comparison", comparison.model_dump_json(indent=1), page, console)


def _write(folder: Path, name: str, summary: str, page: str, console: Console) -> None:
    try:
        write_atomically(folder / f"{name}.json", summary + "\n")
        written = write_atomically(folder / f"{name}.html", page)
    except OSError as error:
        raise RunError(f"cannot be written ({error.strerror or error})", where=str(folder)) from error
    console.print(f"{written}", markup=False)
