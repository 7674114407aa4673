"""Our metrics on vLLM's ``/metrics``: one definition of each, for the engine's process and for the API server's.

Rule: the scheduler counts in its own process (:class:`~ecoserve.serving.core.counters.Counters`), and
:class:`MetricsPublisher` adds what is new to Prometheus counters. ``ecoserve serve`` gives all processes one fresh
``PROMETHEUS_MULTIPROC_DIR`` (:func:`multiprocess_dir`), so that they meet on the API server's ``/metrics``; under
vLLM's own server without that directory only the API server's part is seen.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import cache
from typing import Any, Final, Literal

from ecoserve.serving.core.counters import Counters, Gauges

MULTIPROC_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"

#: What became of the prediction that a request should have had.
Outcome = Literal["made", "timeout", "error", "overload", "bypassed"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("made", "timeout", "error", "overload", "bypassed")

#: Seconds: from a LightGBM model on one prompt to an encoder that has fallen behind.
_LATENCY_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_RATIO_BUCKETS: Final = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
#: Seconds per generated token.
_NORMALIZED_BUCKETS: Final = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)

_COUNTER_HELP: Final = {
    "steps": "Scheduler steps.",
    "pauses": "Decoding requests stopped with their KV kept.",
    "resumes": "Paused requests that went on.",
    "preemptions": "Requests whose KV was dropped, to be computed again.",
    "recomputed_tokens": "Tokens computed again after preemptions.",
    "shortage_preemptions": "Preemptions chosen by the under-prediction ladder.",
    "under_predictions": "Responses that outlived their reservation.",
    "over_predictions": "Responses that ended before their reservation.",
    "re_reservations": "New reservations for responses that outlived the old one.",
    "underprediction_own_space": "Under-predictions met from the request's own unlent space.",
    "underprediction_re_reserved": "Under-predictions met by reserving again from the posterior.",
    "underprediction_global_reserve": "Under-predictions met from the global reserve.",
    "underprediction_paused": "Under-predictions met by pausing with the KV kept.",
    "underprediction_guest_moved": "Under-predictions met by freeing a host of its guest.",
    "underprediction_recomputed": "Under-predictions met by recomputing a victim.",
    "predictions_used": "Requests scheduled by a prediction that came with them.",
    "predictions_missing": "Requests scheduled by the history of finished lengths, for want of a prediction.",
    "predictions_refused": "Predictions that were no valid length distribution.",
    "forced_admissions": "Requests admitted against the policy because nothing else was running.",
    "slos_refused": "SLO fields of requests that were no durations.",
    "slo_requests": "Requests that reached the scheduler with an SLO.",
    "ttft_met": "Requests whose first token came within the time to first token that was asked for.",
    "ttft_missed": "Requests whose first token came later, or not in time before they ended.",
    "tpot_met": "Completed requests whose further tokens came at the pace that was asked for.",
    "tpot_missed": "Completed requests whose further tokens came more slowly.",
    "shortage_steps": "Steps in which running requests needed more blocks of KV than were free.",
    "finished": "Requests that left the scheduler.",
}
_GAUGE_HELP: Final = {
    "usable_blocks": "Blocks of KV that requests can use.",
    "held_blocks": "Blocks of KV that requests hold.",
    "reserved_blocks": "Blocks of KV promised to requests beyond what they hold.",
    "lent_blocks": "Promised blocks of KV lent to guests.",
    "running": "Requests that are running.",
    "waiting_prompts": "Prompt tasks that wait.",
    "waiting_generations": "Generation tasks that wait, holding KV.",
    "length_scale": "Factor by which the correction scales predicted lengths when it scales them.",
    "coverage_90": "Share of late responses that were within their 0.9 quantile.",
    "length_source": "Source of lengths: 0 predictions, 1 scaled predictions, 2 the history of finished responses.",
    "common_error": "Share of the lengths' uncertainty that requests have in common.",
}


def counter_name(field: str) -> str:
    """The Prometheus name of a field of :class:`Counters`."""
    return f"ecoserve_{field}_total"


def gauge_name(field: str) -> str:
    """The Prometheus name of a field of :class:`Gauges`."""
    if field.endswith("_blocks"):
        return f"ecoserve_kv_{field}"
    return f"ecoserve_{field}_requests" if field == "running" else f"ecoserve_{field}"


@contextmanager
def multiprocess_dir() -> Iterator[str]:
    """A fresh ``PROMETHEUS_MULTIPROC_DIR`` for this process and those it starts; removed at the end.

    Must be entered before prometheus_client is imported. A directory that the operator set is only the place where
    the fresh one is made: values left behind by an earlier server would be counted again.
    """
    before = os.environ.get(MULTIPROC_DIR)
    parent = before if before and os.path.isdir(before) else None
    with tempfile.TemporaryDirectory(prefix="ecoserve-metrics-", dir=parent, ignore_cleanup_errors=True) as path:
        os.environ[MULTIPROC_DIR] = path
        try:
            yield path
        finally:
            if before is None:
                os.environ.pop(MULTIPROC_DIR, None)
            else:
                os.environ[MULTIPROC_DIR] = before


class _EngineFamilies:
    """Metric families of the engine's process; a process registers each name once, however many engines it makes."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Gauge, Histogram

        self.counters: dict[str, Any] = {
            f.name: Counter(counter_name(f.name), _COUNTER_HELP.get(f.name, f.name), ["engine"])
            for f in fields(Counters)
        }
        self.gauges: dict[str, Any] = {
            f.name: Gauge(
                gauge_name(f.name), _GAUGE_HELP.get(f.name, f.name), ["engine"], multiprocess_mode="mostrecent"
            )
            for f in fields(Gauges)
        }
        self.policy = Gauge(
            "ecoserve_policy_info",
            "1 for the policy that the engine runs; to be joined with the other metrics by their engine.",
            ["engine", "policy"],
            multiprocess_mode="mostrecent",
        )
        self.ratio = Histogram(
            "ecoserve_prediction_error_ratio",
            "Generated tokens divided by predicted ones (1 is exact, above 1 under-predicted).",
            ["engine"],
            buckets=_RATIO_BUCKETS,
        )


class _MiddlewareFamilies:
    """Metric families of the API server's process."""

    def __init__(self) -> None:
        from prometheus_client import Counter, Histogram

        self.predictions = Counter(
            "ecoserve_predictions_total", "Requests at the front door by what became of their prediction.", ["outcome"]
        )
        self.seconds = Histogram(
            "ecoserve_prediction_seconds",
            "Time a request waited for its prediction, batching included.",
            buckets=_LATENCY_BUCKETS,
        )
        self.dropped_keys = Counter("ecoserve_client_keys_dropped_total", "Keys of ours that clients sent unasked.")
        self.slos_stated = Counter(
            "ecoserve_slo_stated_total", "Requests at the front door with an SLO, by who stated it.", ["source"]
        )
        self.slo_values = Counter(
            "ecoserve_slo_values_total", "SLO values that clients sent, by what became of them.", ["outcome"]
        )
        for source in ("client", "default"):
            self.slos_stated.labels(source)
        for became in ("accepted", "clamped", "refused", "ignored"):
            self.slo_values.labels(became)
        for outcome in OUTCOMES:
            self.predictions.labels(outcome)


@cache
def _engine_families() -> _EngineFamilies:
    return _EngineFamilies()


@cache
def middleware_metrics() -> Any:
    """The front end's families: ``predictions`` by outcome, ``seconds``, ``dropped_keys``, ``slos_stated`` by source,
    ``slo_values`` by outcome."""
    return _MiddlewareFamilies()


@cache
def normalized_latency() -> Any:
    """Histogram of E2EL per generated token, by engine: what the front end sees of finished requests."""
    from prometheus_client import Histogram

    return Histogram(
        "ecoserve_normalized_latency_seconds",
        "End-to-end latency divided by generated tokens, of finished requests.",
        ["engine"],
        buckets=_NORMALIZED_BUCKETS,
    )


class MetricsPublisher:
    """Brings one scheduler's counters and gauges to Prometheus.

    Args:
        engine: index of the engine (data-parallel rank), the metrics' only label.
        interval_s: least time between two publications; when nothing runs or waits, it publishes at once, so that the
            last state of a busy spell is always seen.
        policy: the policy's name.
    """

    def __init__(self, engine: int = 0, interval_s: float = 0.25, policy: str = "ecoserve") -> None:
        label = str(engine)
        families = _engine_families()
        self._counters = {name: family.labels(label) for name, family in families.counters.items()}
        self._gauges = {name: family.labels(label) for name, family in families.gauges.items()}
        self._ratio = families.ratio.labels(label)
        families.policy.labels(label, policy).set(1)
        self._seen = dict.fromkeys(self._counters, 0)
        self._interval_s = interval_s
        self._next = 0.0

    def due(self) -> bool:
        """Whether the interval is over; until then there is no need to work out gauges."""
        return time.monotonic() >= self._next

    def publish(self, counters: Counters, gauges: Gauges) -> None:
        """Add what ``counters`` grew by since the last time, and set the gauges. Cheap to call after every step."""
        now = time.monotonic()
        idle = not (gauges.running or gauges.waiting_prompts or gauges.waiting_generations)
        if now < self._next and not idle:
            return
        self._next = now + self._interval_s
        for name, value in asdict(counters).items():
            new = value - self._seen[name]
            if new > 0:
                self._counters[name].inc(new)
                self._seen[name] = value
        for name, value in asdict(gauges).items():
            self._gauges[name].set(value)

    def observe_error(self, predicted: float, generated: int) -> None:
        """Note a finished response of ``generated`` tokens for which ``predicted`` (> 0) were expected."""
        if predicted > 0:
            self._ratio.observe(generated / predicted)
