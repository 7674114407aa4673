"""Our metrics on vLLM's ``/metrics``: those of the engine's process and those of the API server's.

``ecoserve serve`` gives all processes one fresh ``PROMETHEUS_MULTIPROC_DIR`` (:func:`multiprocess_dir`), so that all
metrics are on the API server's ``/metrics``. In vLLM's own server without that directory only its own part is there.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import cache
from typing import Any, Final, Literal, get_args

from ecoserve.deprecations import METRICS
from ecoserve.serving.core.counters import Counters, Gauges
from ecoserve.serving.core.learning import SourceName

logger = logging.getLogger("vllm.ecoserve")

MULTIPROC_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"

#: What became of the prediction that a request should have had.
Outcome = Literal["made", "timeout", "error", "overload", "bypassed"]
OUTCOMES: Final[tuple[Outcome, ...]] = ("made", "timeout", "error", "overload", "bypassed")

#: Why a request was answered in vLLM's place: the server stops, the engine has failed, our keys in a body that is not
#: searched, an SLO that is none.
Refusal = Literal["stopping", "engine_failed", "keys", "slo"]

#: Seconds: from a LightGBM model on one prompt to an encoder that has fallen behind.
_LATENCY_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_RATIO_BUCKETS: Final = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
_ACTION: Final = "underprediction_"
_SOURCE: Final = "length_source"
#: Where the series of the fields of :class:`Gauges` are not called ``ecoserve_<field>``.
_GAUGE_NAMES: Final = {"running": "ecoserve_running_requests"}


def counter_series(name: str) -> str:
    """The series of a field of :class:`Counters`: its name, and its label where it has one."""
    if name.startswith(_ACTION):
        return f'ecoserve_underprediction_actions_total{{action="{name.removeprefix(_ACTION)}"}}'
    return f"ecoserve_{name}_total"


def gauge_name(name: str) -> str:
    return f"ecoserve_kv_{name}" if name.endswith("_blocks") else _GAUGE_NAMES.get(name, f"ecoserve_{name}")


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


@cache
def _family(kind: str, name: str, help_text: str, *labels: str) -> Any:
    """A counter or gauge of the engine's process, which registers each name once, however many engines it makes."""
    import prometheus_client

    if kind == "counter":
        return prometheus_client.Counter(name, help_text, ["engine", *labels])
    return prometheus_client.Gauge(name, help_text, ["engine", *labels], multiprocess_mode="mostrecent")


def _counter(series: str, help_text: str, engine: str) -> Any:
    name, _, label = series.partition("{")
    if not label:
        return _family("counter", name, help_text).labels(engine)
    help_text = "Under-predictions by the action that covered or resolved them."
    return _family("counter", name, help_text, "action").labels(engine, label.split('"')[1])


@cache
def _error_ratio() -> Any:
    from prometheus_client import Histogram

    return Histogram(
        "ecoserve_prediction_error_ratio",
        "Generated tokens divided by predicted ones (1 is exact, above 1 under-predicted).",
        ["engine"],
        buckets=_RATIO_BUCKETS,
    )


class _MiddlewareMetrics:
    def __init__(self) -> None:
        from prometheus_client import Counter, Histogram

        def counted(name: str, help_text: str, label: str, values: Sequence[str]) -> Any:
            family = Counter(name, help_text, [label])
            for value in values:
                family.labels(value)
            return family

        self.predictions = counted(
            "ecoserve_predictions_total", "Requests by the outcome of their prediction.", "outcome", OUTCOMES
        )
        self.seconds = Histogram(
            "ecoserve_prediction_seconds",
            "Time a request waited for its prediction, batching included.",
            buckets=_LATENCY_BUCKETS,
        )
        self.dropped_keys = Counter(
            "ecoserve_client_keys_dropped_total", "Keys of the scheduler that untrusted clients sent."
        )
        self.refused = counted(
            "ecoserve_requests_refused_total",
            "Requests and open responses that ecoserve ended with an error, by reason.",
            "reason",
            get_args(Refusal),
        )
        self.slos_stated = counted(
            "ecoserve_slo_stated_total", "Requests with an SLO by who stated it.", "source", ("client", "default")
        )
        self.slo_values = counted(
            "ecoserve_slo_values_total",
            "SLO values that clients sent, by outcome.",
            "outcome",
            ("accepted", "clamped", "refused", "ignored"),
        )


@cache
def middleware_metrics() -> _MiddlewareMetrics:
    """The API server's metrics; a process registers them once."""
    return _MiddlewareMetrics()


class MetricsPublisher:
    """Publishes one scheduler's counters and gauges.

    Args:
        engine: index of the engine (data-parallel rank), a label of every metric. policy: the policy's name.
        interval_s: minimum time between two publications; an idle scheduler publishes at once.
    """

    def __init__(self, engine: int = 0, interval_s: float = 0.25, policy: str = "ecoserve") -> None:
        self._engine = label = str(engine)
        old = {series: name for name, series in METRICS.items() if series is not None}
        # Old names get the same increments.
        self._counters = {
            f.name: [
                _counter(name, f.metadata["help"], label)
                for name in (counter_series(f.name), old.get(counter_series(f.name)))
                if name is not None
            ]
            for f in fields(Counters)
        }
        self._gauges = {
            f.name: _family("gauge", gauge_name(f.name), f.metadata["help"]).labels(label)
            for f in fields(Gauges)
            if f.name != _SOURCE
        }
        source = next(f for f in fields(Gauges) if f.name == _SOURCE)
        self._sources = [
            _family("gauge", gauge_name(_SOURCE), source.metadata["help"], "source").labels(label, name)
            for name in get_args(SourceName)
        ]
        self._old_source = _family("gauge", "ecoserve_believed", source.metadata["help"]).labels(label)
        self._ratio = _error_ratio().labels(label)
        policy_help = "1 for the policy that the engine runs; to be joined with the other metrics by their engine."
        _family("gauge", "ecoserve_policy_info", policy_help, "policy").labels(label, policy).set(1)
        _warn_of_old_names()
        self._seen = dict.fromkeys(self._counters, 0)
        self._interval_s = interval_s
        self._next = 0.0

    def due(self) -> bool:
        """Whether the interval is over; until then there is no need to compute gauges."""
        return time.monotonic() >= self._next

    def publish(self, counters: Counters, gauges: Gauges) -> None:
        """Add what ``counters`` grew by since the last time, and set the gauges. Cheap to call after every step."""
        now = time.monotonic()
        idle = not (gauges.running or gauges.waiting_prompts or gauges.waiting_generations)
        if now < self._next and not idle:
            return
        self._next = now + self._interval_s
        for name, value in asdict(counters).items():
            if (new := value - self._seen[name]) > 0:
                for series in self._counters[name]:
                    series.inc(new)
                self._seen[name] = value
        for name, gauge in self._gauges.items():
            gauge.set(getattr(gauges, name))
        in_use = get_args(SourceName).index(gauges.length_source)
        for number, series in enumerate(self._sources):
            series.set(number == in_use)
        self._old_source.set(in_use)

    def observe_error(self, predicted: float, generated: int) -> None:
        """Note a finished response of ``generated`` tokens for which ``predicted`` (> 0) were expected."""
        if predicted > 0:
            self._ratio.observe(generated / predicted)


@cache
def _warn_of_old_names() -> None:
    names = ", ".join(name for name, series in METRICS.items() if series is not None)
    logger.warning("ecoserve: /metrics has %s for one more release; CHANGELOG.md has their new names", names)
