"""Run functions for tests: a real, tiny model of serving (a queue before a few slots), and ways to fail.

``vllm`` serves first come, first served; ``ecoserve`` serves the shortest predicted length first. Better lengths give
lower normalized latency under load, and no gain without load: the shape that the report has to show.
"""

from __future__ import annotations

import heapq
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from ecoserve.errors import InputError
from ecoserve.serving.runs import EngineTotals, KVPoint, KVSeries, RequestRow, RunResult

TOKEN_S = 0.02


class QueueSettings(BaseModel):
    model_config = ConfigDict(extra="forbid")

    policy: str
    lengths: str
    rate_rps: float | None
    seed: int
    requests: int = 100
    trace: str = "synthetic"
    depth: int = 1
    blocks: int = 8
    slo_scale: float | None = None
    mark: str | None = None
    hold: str | None = None
    die: bool = False


def queue(settings: QueueSettings) -> RunResult:
    """Serve lognormal answers on ``blocks`` slots."""
    if settings.mark:
        with open(settings.mark, "a", encoding="utf-8") as marks:
            marks.write(f"{settings.policy} {settings.lengths} {settings.rate_rps} {settings.seed}\n")
    if settings.hold:
        wait_until(lambda: not Path(settings.hold or "").exists())
    if settings.die:
        os._exit(9)
    rng = np.random.default_rng(settings.seed)
    arrivals = np.cumsum(rng.exponential(1 / (settings.rate_rps or 1.0), settings.requests))
    true = np.clip(rng.lognormal(4.5, 0.9, settings.requests).round(), 1, 2000)
    predicted = _predictions(settings.lengths, true, rng)
    slots = [0.0] * settings.blocks
    heapq.heapify(slots)
    waiting: list[tuple[float, int]] = []
    rows: list[RequestRow | None] = [None] * settings.requests
    upcoming = 0
    while upcoming < settings.requests or waiting:
        now = max(heapq.heappop(slots), arrivals[upcoming] if not waiting else 0.0)
        while upcoming < settings.requests and arrivals[upcoming] <= now:
            length = predicted[upcoming] if settings.policy == "ecoserve" and predicted is not None else float(upcoming)
            heapq.heappush(waiting, (float(length), upcoming))
            upcoming += 1
        _, i = heapq.heappop(waiting)
        end = now + float(true[i]) * TOKEN_S
        heapq.heappush(slots, end)
        rows[i] = RequestRow(
            request_id=f"r{i}",
            arrival_s=float(arrivals[i]),
            prompt_tokens=20,
            output_tokens=int(true[i]),
            first_token_s=now + TOKEN_S,
            finish_s=end,
            predicted_tokens=None if predicted is None else float(predicted[i]),
            pit=None if predicted is None else float(true[i] / (true[i] + predicted[i])),
            deadline_s=None
            if settings.slo_scale is None
            else float(arrivals[i]) + settings.slo_scale * float(true[i]) * TOKEN_S,
        )
    done = [row for row in rows if row is not None]
    waited = int(sum(row.first_token_s - row.arrival_s > 1 for row in done if row.first_token_s is not None))
    totals = EngineTotals(
        preemptions=waited if settings.policy == "vllm" else 0,
        recomputed_tokens=40 * waited if settings.policy == "vllm" else 0,
        pauses=waited // 3 if settings.policy == "ecoserve" else 0,
        steps=int(true.sum()),
        mispredictions=_mispredictions(settings.policy, predicted, true),
        kv_used_mean=0.5,
        schedule_s=[time.perf_counter() % 1 for _ in range(3)],
    )
    labels = {"blocks": settings.blocks, "depth": settings.depth}
    kv = _busy(done, settings.blocks)
    return RunResult(settings.policy, settings.lengths, settings.rate_rps, settings.seed, done, totals, labels, kv=kv)


def _busy(rows: list[RequestRow], blocks: int) -> list[KVPoint]:
    """Slots taken over time; those of answers in the queue's last third are called wasted."""
    end = max(row.finish_s or 0.0 for row in rows)
    series = KVSeries(blocks)
    for at in np.arange(0.0, end, end / 60):
        held = sum((row.first_token_s or 0.0) <= at < (row.finish_s or 0.0) for row in rows)
        series.add(float(at), end / 60, held, held / 2, held / 4, held / 8)
    return series.points()


def _mispredictions(policy: str, predicted: np.ndarray | None, true: np.ndarray) -> dict[str, int]:
    under = 0 if policy == "vllm" or predicted is None else int((predicted < true).sum())
    return {
        "under_predictions": under,
        "underprediction_own_space": under // 2,
        "underprediction_re_reserved": under - under // 2,
    }


def _predictions(lengths: str, true: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    kind, _, detail = lengths.partition(":")
    if kind == "true":
        return true
    sigma = {"noise": lambda: float(detail), "predicted": lambda: 0.5}.get(kind)
    return None if sigma is None else true * np.exp(sigma() * rng.standard_normal(len(true)))


def wait_until(event: Callable[[], bool], limit_s: float = 300.0) -> None:
    """Return when something has happened; the limit only ends what would hang."""
    deadline = time.monotonic() + limit_s
    while not event():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {limit_s:g} s")
        time.sleep(0.01)


def untyped(settings: dict[str, object]) -> RunResult:
    """Takes the plain mapping."""
    return queue(QueueSettings.model_validate(settings))


def fails_on_seed_one(settings: QueueSettings) -> RunResult:
    if settings.seed == 1:
        raise ZeroDivisionError("one seed\nfails")
    return queue(settings)


def refuses(settings: QueueSettings) -> RunResult:
    raise InputError("no such trace", where=settings.trace)


def dies_on_seed_one(settings: QueueSettings) -> RunResult:
    """The process is gone at once, as after the kernel's out-of-memory killer."""
    return queue(settings.model_copy(update={"die": settings.seed == 1}))


def interrupts_on_seed_one(settings: QueueSettings) -> RunResult:
    if settings.seed == 1:
        raise KeyboardInterrupt
    return queue(settings)


def fails_once(settings: QueueSettings) -> RunResult:
    """Fails as long as the file named as trace does not exist."""
    if not Path(settings.trace).exists():
        raise RuntimeError("not yet")
    return queue(settings)


def killed_once(settings: QueueSettings) -> RunResult:
    """The process of seed 1 is killed outright the first time; the marks say which process ran on which node."""
    assert settings.mark is not None
    with open(settings.mark, "a", encoding="utf-8") as marks:
        marks.write(f"{settings.seed} {settings.lengths} {os.getppid()}\n")
    first = Path(f"{settings.mark}.killed")
    if settings.seed == 1 and not first.exists():
        first.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    # The first run holds its node until the other one has taken its part.
    marks_file = Path(settings.mark)
    wait_until(lambda: len({line.split()[-1] for line in marks_file.read_text().splitlines()}) > 1)
    return queue(settings.model_copy(update={"mark": None}))


def returns_nan(settings: QueueSettings) -> RunResult:
    """A time that is no number, for one seed."""
    result = queue(settings)
    if settings.seed == 1:
        result.rows[3].finish_s = float("nan")
    return result


def returns_nonsense(settings: QueueSettings) -> RunResult:
    return {"policy": settings.policy}  # type: ignore[return-value]
