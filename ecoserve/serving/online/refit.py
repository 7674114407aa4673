"""Fitting in a process of its own: ``python -m ecoserve.serving.online.refit`` reads jobs and writes results.

Both are safetensors with JSON in their metadata, each behind its length in bytes. The process has low priority, one
thread, and ends when its input does, so with the server, however that ends.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from importlib.metadata import version
from typing import IO, Any, Final

import numpy as np

from ecoserve.accuracy import kendall_tau, point_accuracy
from ecoserve.predictor.adaptation import Adaptation, AdaptedPredictor
from ecoserve.predictor.base import LengthPredictor
from ecoserve.predictor.calibration import Calibration
from ecoserve.predictor.config import PredictorConfig
from ecoserve.predictor.linear import PARAMETERS, LinearPredictor, Numbers
from ecoserve.predictor.linear_fitting import Rows, fit_adaptation_rows, fit_linear
from ecoserve.serving.online.model import Answer, rows_from

Arrays = dict[str, np.ndarray]
#: In ``metrics`` of the config: answers that were predicted before they were known.
PREQUENTIAL: Final = "prequential"
_SCORES, _GAINS = "scores", "gains"
_NICE: Final = 10


@dataclass(frozen=True, slots=True, eq=False)
class Refit:
    """A new model, see :meth:`~ecoserve.serving.online.model.OnlineModel.learned`; ``cpu_s`` is what it took."""

    model: LinearPredictor | AdaptedPredictor
    gains: list[float]
    order: float
    since: int
    factor: float
    cpu_s: float


def pack(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
    from safetensors.numpy import save

    return bytes(save(dict(arrays), {"about": json.dumps(about)}))


def unpack(content: bytes) -> tuple[Arrays, dict[str, Any]]:
    """What :func:`pack` made; anything else is a ValueError or a KeyError, or an error of safetensors."""
    from safetensors.numpy import load

    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return load(content), dict(json.loads(header["__metadata__"]["about"]))


def packed_rows(answers: Sequence[Answer], about: Mapping[str, Any], **more: np.ndarray) -> bytes:
    rows = rows_from(answers)
    return pack({**{f.name: getattr(rows, f.name) for f in fields(rows)}, **more}, about)


def unpacked_rows(arrays: Arrays) -> Rows:
    rows = Rows(**{f.name: arrays[f.name] for f in fields(Rows)})
    n = len(rows)
    if not (len(rows.dense) == len(rows.ended) == len(rows.starts) - 1 == n >= 1):
        raise ValueError("the arrays are of different lengths")
    words = len(rows.places) == len(rows.times) == rows.starts[-1]
    if not words or rows.starts[0] != 0 or (np.diff(rows.starts) < 0).any():
        raise ValueError("the words do not fit the rows")
    return rows


# -- in the process ------------------------------------------------------------------------------------------------


def fit(job: bytes) -> bytes:
    """One job: rows, scores and what is asked for, to what was learned."""
    began = time.process_time()
    arrays, about = unpack(job)
    rows = unpacked_rows(arrays)
    base = None if about["base"] is None else PredictorConfig.model_validate(about["base"])
    if base is None:
        found = fit_linear(rows)
    else:
        found = fit_adaptation_rows(rows, base.edges, Calibration.model_validate(about["base_calibration"]))
    if found is None:
        return pack({}, {"nothing": True, "cpu_s": time.process_time() - began})
    metrics = prequential(arrays[_SCORES])
    config = PredictorConfig(
        backend="linear" if base is None else "adapted",
        edges=found.bins.edges,
        closed_by=found.bins.closed_by,
        prior=tuple(found.prior.tolist()),
        served_model=about["served_model"],
        trace_name="served requests",
        trace_format="online",
        trace_sha256=hashlib.sha256(job).hexdigest(),
        length_source="usage of the responses",
        rows_trained=len(rows),
        rows_held_out=0,
        parameters=PARAMETERS if base is None else base.parameters,
        seed=0,
        versions={name: version(name) for name in ("ecoserve", "numpy", "scikit-learn")},
        metrics={PREQUENTIAL: metrics} if metrics else {},
    )
    result = {
        "config": config.model_dump(mode="json"),
        "calibration": found.calibration.model_dump(mode="json"),
        "order": found.order,
        "since": found.since,
        "factor": found.factor,
    }
    out: Arrays = {_GAINS: found.gains}
    if isinstance(found.learned, Numbers):
        out |= found.learned.arrays()
    else:
        result["adaptation"] = found.learned.model_dump(mode="json")
    return pack(out, {**result, "cpu_s": time.process_time() - began})


def prequential(scores: np.ndarray) -> dict[str, float]:
    """Figures of answers predicted before they were known; shape ``[n, 3]``: median, length, place in the CDF."""
    if len(scores) < 2:
        return {}
    medians, lengths, places = scores.T
    return {
        "rows": len(scores),
        **point_accuracy(medians, lengths),
        "kendall_tau": kendall_tau(medians, lengths) or 0.0,
        **{f"coverage_{q}": float((places <= q / 100).mean()) for q in (50, 80, 90, 95)},
    }


def main() -> None:
    os.nice(_NICE)
    # Before a job's time is taken.
    importlib.import_module("sklearn.linear_model")
    # What a library prints must not get between the results.
    results, sys.stdout = sys.stdout.buffer, sys.stderr
    # A server that ended while this one was fitting does not read the result.
    with suppress(BrokenPipeError):
        while (job := _read(sys.stdin.buffer)) is not None:
            _write(results, fit(job))


def _read(stream: IO[bytes]) -> bytes | None:
    head = stream.read(8)
    if len(head) < 8:
        return None
    size = int.from_bytes(head, "little")
    content = stream.read(size)
    return content if len(content) == size else None


def _write(stream: IO[bytes], content: bytes) -> None:
    stream.write(len(content).to_bytes(8, "little") + content)
    stream.flush()


# -- in the server -------------------------------------------------------------------------------------------------


class RefitProcess:
    """Starts the process when there is a job, and again after it has died. Used from one thread."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def fit(
        self,
        answers: Sequence[Answer],
        scores: Sequence[Sequence[float]],
        base: LengthPredictor | None,
        about: Mapping[str, Any],
    ) -> Refit | float:
        """A new model, or the CPU seconds that it took to see that there is nothing to learn yet.

        Raises:
            OSError: if the process cannot be started, or died.
        """
        given = {
            **about,
            "base": None if base is None else base.config.model_dump(mode="json"),
            "base_calibration": None if base is None else base.calibration.model_dump(mode="json"),
        }
        job = packed_rows(answers, given, **{_SCORES: np.asarray(scores, dtype=np.float64).reshape(-1, 3)})
        if self._process is None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _write(process.stdin, job)
            content = _read(process.stdout)
        except OSError:
            content = None
        if content is None:
            self.close()
            raise ChildProcessError(f"the process that learns ended with {process.returncode}")
        return read_result(content, base)

    def kill(self) -> None:
        """End it, in the middle of a job too; from any thread."""
        if (process := self._process) is not None:
            process.kill()

    def close(self) -> None:
        """End it; another is started for the next job."""
        if self._process is not None:
            self._process.kill()
            # What could not be written is lost with it.
            with suppress(OSError):
                self._process.communicate()
            self._process = None

    @staticmethod
    def _start() -> subprocess.Popen[bytes]:
        one_thread = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        line = [sys.executable, "-m", __name__]
        pipe = subprocess.PIPE
        # Its own session: Ctrl-C in the terminal is for the server, which ends it.
        return subprocess.Popen(line, stdin=pipe, stdout=pipe, env={**os.environ, **one_thread}, start_new_session=True)


def read_result(content: bytes, base: LengthPredictor | None) -> Refit | float:
    arrays, about = unpack(content)
    if about.get("nothing"):
        return float(about["cpu_s"])
    config = PredictorConfig.model_validate(about["config"])
    calibration = Calibration.model_validate(about["calibration"])
    gains = arrays.pop(_GAINS).tolist()
    model: LinearPredictor | AdaptedPredictor
    if base is None:
        model = LinearPredictor(config, calibration, Numbers.of(arrays))
    else:
        adaptation = Adaptation.model_validate(about["adaptation"])
        model = AdaptedPredictor(config, calibration, base, adaptation)
    order, since, factor = float(about["order"]), int(about["since"]), float(about["factor"])
    return Refit(model, gains, order, since, factor, float(about["cpu_s"]))


if __name__ == "__main__":
    main()
