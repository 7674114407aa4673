"""Clients of a served model, as ServeGen publishes them, as the requests of a workload.

A client is two files: ``chunk-N-trace.csv`` with a line a window (start in s, requests a second, coefficient of
variation of the gaps, their law, its shape and scale), and ``chunk-N-dataset.json`` with the distributions of input
and output tokens and of the share of the output that is thinking, for each part of the day. Gaps are drawn by each
window's law, lengths independently by the distributions of the part of the day (the nearest that the client has).
After the last window the day begins again. Source: Xiang et al., ServeGen, 2025.
"""

from __future__ import annotations

import ast
import csv
import heapq
import json
import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ecoserve.data.records import Record
from ecoserve.errors import TraceError

Floats = npt.NDArray[np.float64]

TRACES: Final = "chunk-*-trace.csv"
_NAME: Final = re.compile(r"chunk-(.+)-trace\.csv")
_SIDES: Final = ("input_tokens", "output_tokens", "reason_ratio")
#: Laws of gaps, which have a shape; the scale follows from the window's rate.
_LAWS: Final = ("gamma", "weibull", "exponential", "")


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time from ``start_s``: ``rate`` requests a second, the law of their gaps and its shape."""

    start_s: float
    rate: float
    law: str
    shape: float

    def gap(self, rng: np.random.Generator) -> float:
        """A gap of mean 1."""
        if self.law == "gamma":
            return float(rng.gamma(self.shape, 1.0 / self.shape))
        if self.law == "weibull":
            return float(rng.weibull(self.shape) / math.gamma(1.0 + 1.0 / self.shape))
        return float(rng.exponential())


@dataclass(frozen=True, slots=True)
class Lengths:
    """Values (ascending, shape ``[k]``) and their probabilities, summed up."""

    values: Floats
    upto: Floats

    def draw(self, rng: np.random.Generator) -> float:
        return float(self.values[min(np.searchsorted(self.upto, rng.random() * self.upto[-1]), len(self.values) - 1)])


@dataclass(frozen=True, slots=True)
class Client:
    """One client: its windows in order, and for each part of the day (its start in s) its distributions."""

    name: str
    windows: Sequence[Window]
    window_s: float
    parts: Mapping[float, tuple[Lengths, Lengths, Lengths | None]]

    @property
    def day_s(self) -> float:
        return self.windows[-1].start_s + self.window_s

    def arrivals(self, rng: np.random.Generator, factor: float, start_s: float) -> Iterator[float]:
        """Seconds on the day's clock from ``start_s`` on, at ``factor`` times the client's rates; endless."""
        day = 0.0
        while any(w.rate > 0 for w in self.windows):
            for window in self.windows:
                begin = day + window.start_s
                if begin + self.window_s <= start_s or window.rate <= 0:
                    continue
                mean = 1.0 / (window.rate * factor)
                at = begin + rng.random() * window.gap(rng) * mean
                while at < begin + self.window_s:
                    if at >= start_s:
                        yield at
                    at += window.gap(rng) * mean
            day += self.day_s

    def lengths(self, at: float) -> tuple[Lengths, Lengths, Lengths | None]:
        """Those of the part of the day at ``at`` s, or of the nearest part that has some."""
        second = at % self.day_s
        now = max((start for start in self.parts if start <= second), default=min(self.parts))
        return self.parts[now] if now in self.parts else self.parts[min(self.parts, key=lambda s: abs(s - second))]


def read_clients(folder: Path, where: str) -> list[Client]:
    """The clients in ``folder`` that have traffic and lengths; TraceError if there is none, or one is damaged."""
    files = sorted(folder.glob(TRACES)) if folder.is_dir() else []
    if not files:
        fix = f"name a folder with {TRACES} and the datasets beside them"
        raise TraceError(f"{folder} has no clients of ServeGen", where=where, fix=fix)
    clients = []
    for file in files:
        name = _NAME.fullmatch(file.name)
        windows = _windows(file)
        parts = _parts(file.with_name(file.name.replace("-trace.csv", "-dataset.json")))
        if parts and any(w.rate > 0 for w in windows):
            gaps = np.diff([w.start_s for w in windows])
            window_s = float(np.median(gaps)) if len(gaps) else 600.0
            clients.append(Client(name[1] if name else file.name, windows, window_s, parts))
    if not clients:
        raise TraceError(f"the clients in {folder} send nothing", where=where, fix="name another folder")
    return clients


def _windows(file: Path) -> list[Window]:
    windows = []
    with file.open(newline="") as lines:
        for number, cells in enumerate(csv.reader(lines), 1):
            try:
                start, rate, _, law, *shapes = cells
                window = Window(float(start), float(rate), law.strip().lower(), float(shapes[0] or 0))
                sound = window.law in _LAWS and math.isfinite(window.start_s) and 0 <= window.rate < math.inf
                sound = sound and (not (window.law and window.rate) or window.law == "exponential" or window.shape > 0)
            except (ValueError, IndexError):
                sound = False
            if not sound:
                what = f"line {number} is no window: start, rate, CV, Gamma or Weibull, shape, scale"
                raise TraceError(what, where=str(file), fix="download it again")
            windows.append(window)
    return sorted(windows, key=lambda w: w.start_s)


def _parts(file: Path) -> dict[float, tuple[Lengths, Lengths, Lengths | None]]:
    try:
        content = json.loads(file.read_text())
        parts = {}
        for start, sides in content.items():
            given, answered, thought = (_lengths(sides.get(side)) for side in _SIDES)
            if given is not None and answered is not None:
                parts[float(start)] = (given, answered, thought)
    except FileNotFoundError:
        raise TraceError(
            "there is no such file", where=str(file), fix="keep each client's two files together"
        ) from None
    except (OSError, ValueError, SyntaxError, AttributeError, TypeError, RecursionError) as error:
        raise TraceError("is no dataset of ServeGen", where=str(file), fix="download it again") from error
    return parts


def _lengths(text: Any) -> Lengths | None:
    """A distribution written as a dictionary in Python's words; ``None`` for an empty one."""
    found = ast.literal_eval(text) if isinstance(text, str) else text
    if not found:
        return None
    values, chances = (
        np.asarray(list(column), dtype=np.float64) for column in zip(*sorted(found.items()), strict=True)
    )
    if not (np.isfinite(values).all() and np.isfinite(chances).all() and chances.min() >= 0 and chances.sum() > 0):
        raise ValueError("no distribution")
    return Lengths(values, np.cumsum(chances))


def requests(
    clients: Sequence[Client], n: int, seed: int, *, rate: float | None, start_s: float, max_tokens: int | None
) -> Iterator[Record]:
    """``n`` requests of all ``clients`` by arrival, from ``start_s`` of the day on.

    ``rate``: scale the clients' rates so that they send so many requests a second together, on average over the day.
    """
    own = sum(w.rate * c.window_s for c in clients for w in c.windows) / max(c.day_s for c in clients)
    factor = rate / own if rate is not None else 1.0
    streams = (_of_client(c, np.random.default_rng([seed, zlib.crc32(c.name.encode())]), factor, start_s, max_tokens)
               for c in clients)  # fmt: skip
    for _, (_, _, record) in zip(range(n), heapq.merge(*streams), strict=False):
        yield record


def _of_client(
    client: Client, rng: np.random.Generator, factor: float, start_s: float, max_tokens: int | None
) -> Iterator[tuple[float, str, Record]]:
    for number, at in enumerate(client.arrivals(rng, factor, start_s)):
        given, answered, thought = client.lengths(at)
        wanted = max(1, round(answered.draw(rng)))
        thinking = round(wanted * thought.draw(rng)) if thought is not None else None
        cut = max_tokens is not None and wanted > max_tokens
        tokens = max_tokens if max_tokens is not None and cut else wanted
        record = Record(
            f"client-{client.name}-{number}",
            response_tokens=tokens,
            prompt_tokens=max(1, round(given.draw(rng))),
            arrival_s=at - start_s,
            censored=cut,
            finish_reason="length" if cut else "stop",
            max_tokens=max_tokens,
            thinking_tokens=None if thinking is None else min(thinking, tokens),
        )
        yield at, record.conversation, record
