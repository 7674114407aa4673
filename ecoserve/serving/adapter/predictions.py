"""From a vLLM request to the core's view of it: its limits and its length distribution.

Predictions are read as untrusted numbers. A missing or invalid one is counted, and the history of lengths serves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from vllm.v1.request import Request

from ecoserve.errors import PredictionError
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core import keys
from ecoserve.serving.core.counters import Counters
from ecoserve.serving.core.history import LengthHistory
from ecoserve.serving.core.tasks import Prediction, Task


def response_limit(request: Request, max_model_len: int) -> int:
    return max(1, min(int(request.max_tokens), max_model_len - int(request.num_prompt_tokens)))


def span_limit(request: Request, max_model_len: int) -> int:
    """The most tokens of prompt and response that this request may have KV for."""
    return min(int(request.num_prompt_tokens) + int(request.max_tokens) - 1, max_model_len)


def prediction_of(request_id: str, extra_args: Mapping[str, Any] | None) -> LengthDistribution | None:
    """The length distribution that travels with a request, or None.

    Raises:
        PredictionError: if there is one and it is not valid.
    """
    if not extra_args:
        return None
    if keys.LENGTHS in extra_args:
        return LengthDistribution.from_wire(extra_args[keys.LENGTHS])
    if keys.LENGTHS_BATCH in extra_args:
        return LengthDistribution.from_wire(batch_item(extra_args[keys.LENGTHS_BATCH], prompt_index(request_id)))
    return None


def prompt_index(request_id: str) -> int:
    """Which prompt of a batch a request is: vLLM names them ``<id>-<index>``, with a random suffix behind it."""
    parts = request_id.split("-")
    for part in (parts[-2:-1] or [""])[0], parts[-1]:
        if part.isdecimal() and len(part) < 7:
            return int(part)
    raise PredictionError(f"request id {request_id!r} does not say which prompt of the batch it is")


def batch_item(values: Any, index: int) -> list[float]:
    """Item ``index`` of ``[count, n_0, *wire_0, n_1, *wire_1, ...]``."""
    if not isinstance(values, (list, tuple)) or not values:
        raise PredictionError("predictions of a batch travel as a flat list")
    try:
        count, at = int(values[0]), 1
        for k in range(count):
            size = int(values[at])
            if size < 0:
                break
            if k == index:
                if at + 1 + size > len(values):
                    break
                return list(values[at + 1 : at + 1 + size])
            at += 1 + size
    except (TypeError, ValueError, IndexError, OverflowError):
        pass
    raise PredictionError(f"predictions of a batch have no item {index}")


#: Upper bound of an SLO, seconds.
LONGEST_SLO_S: Final = 1e6


def _duration(extra: Mapping[str, Any], key: str, counters: Counters) -> float | None:
    """An SLO of a request, seconds, or None; an invalid one is counted."""
    value = extra.get(key)
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0.0 < value < math.inf:
        return min(float(value), LONGEST_SLO_S)
    counters.slos_refused += 1
    return None


def task_of(request: Request, max_model_len: int, history: LengthHistory, counters: Counters) -> Task:
    """The core's view of a new request; counts the source of its lengths. Times are on the request's clock."""
    limit = response_limit(request, max_model_len)
    params = request.sampling_params
    extra = (params.extra_args if params is not None else None) or {}
    lengths: LengthDistribution | None = None
    try:
        lengths = prediction_of(request.request_id, extra)
    except PredictionError:
        counters.predictions_refused += 1
    past = history.distribution(limit)
    prediction = None
    if lengths is None:
        counters.predictions_missing += 1
    else:
        counters.predictions_used += 1
        prediction = Prediction(lengths.closed_at(limit), past)
    deadline = _duration(extra, keys.DEADLINE, counters)
    return Task(
        request_id=request.request_id,
        prompt_tokens=request.num_prompt_tokens,
        lengths=prediction.predicted if prediction is not None else past,
        limit=limit,
        most_tokens=span_limit(request, max_model_len),
        predicted=prediction is not None,
        arrival_s=request.arrival_time,
        priority=request.priority,
        ttft_slo_s=_duration(extra, keys.SLO_TTFT, counters),
        tpot_slo_s=_duration(extra, keys.SLO_TPOT, counters),
        deadline_s=None if deadline is None else request.arrival_time + deadline,
        prediction=prediction,
    )
