"""Our metrics on vLLM's ``/metrics``: those of the engine's process and those of the API server's.

``ecoserve serve`` gives all processes one fresh ``PROMETHEUS_MULTIPROC_DIR`` (:func:`multiprocess_dir`), so that all
metrics are on the API server's ``/metrics``. In vLLM's own server without that directory only its own part is there.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import cache
from typing import Any, Final, Literal, get_args

from ecoserve.deprecations import METRICS
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
from ecoserve.serving.core.counters import Counters, Gauges
from ecoserve.serving.core.learning import SourceName
from ecoserve.serving.core.settings import Level, SchedulerSettings

logger = logging.getLogger("vllm.ecoserve")

MULTIPROC_DIR: Final = "PROMETHEUS_MULTIPROC_DIR"

#: What became of the prediction that a request should have had.
Outcome = Literal["made", "history", "timeout", "error", "overload", "bypassed"]
OUTCOMES: Final[tuple[Outcome, ...]] = get_args(Outcome)

#: Why a request was answered in vLLM's place: more work is open than ``max_queue_s`` allows, the server stops, the
#: engine has failed, our keys in a body that is not searched, an SLO that is none.
Refusal = Literal["queue", "stopping", "engine_failed", "keys", "slo"]

#: The scheduler's queues: requests without KV, and those that hold theirs.
Queue = Literal["prefill", "decode"]

#: Seconds: from a LightGBM model on one prompt to an encoder that has fallen behind.
_LATENCY_BUCKETS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5)
_RATIO_BUCKETS: Final = (0.1, 0.2, 0.33, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
#: Seconds per generated token.
_NORMALIZED_BUCKETS: Final = (0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5, 10.0)
#: Seconds; the ageing limit is 120 by default.
_WAIT_BUCKETS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0)
_ENGINE: Final = ("model_name", "engine")
_OLD: Final = ("engine",)
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
def _family(kind: str, name: str, help_text: str, labels: tuple[str, ...], **more: Any) -> Any:
    """A metric family; a process registers each name once, however many engines and servers it makes."""
    import prometheus_client

    if kind == "Gauge":
        more = {"multiprocess_mode": "mostrecent", **more}
    return getattr(prometheus_client, kind)(name, help_text, labels, **more)


# -- the API server's process ---------------------------------------------------------------------------------


class _Series:
    """A family of the API server's process: ``labels`` takes the values of its own labels, of one model."""

    def __init__(self, metrics: ServerMetrics, family: Any, values: Sequence[str] | None) -> None:
        self._metrics = metrics
        self._family = family
        #: the values that its label can have, which are all there from the first scrape
        self.values = values

    def labels(self, *values: str) -> Any:
        return self._family.labels(self._metrics.model_name, *values)


class ServerMetrics:
    """The API server's metrics. All have the label ``model_name``, which :meth:`serve` sets."""

    def __init__(self) -> None:
        self.model_name = ""
        self._all: list[_Series] = []

        def made(
            kind: str, name: str, help_text: str, label: str = "", values: Sequence[str] | None = (), **more: Any
        ) -> _Series:
            labels = ("model_name", label) if label else ("model_name",)
            self._all.append(_Series(self, _family(kind, name, help_text, labels, **more), values if label else None))
            return self._all[-1]

        self.predictions = made(
            "Counter", "ecoserve_predictions_total", "Requests by the outcome of their prediction.", "outcome", OUTCOMES
        )
        self.seconds = made(
            "Histogram",
            "ecoserve_prediction_seconds",
            "Time a request waited for its prediction, batching included.",
            buckets=_LATENCY_BUCKETS,
        )
        self.predictor_seconds = made(
            "Histogram",
            "ecoserve_predictor_call_seconds",
            "Time of one call of the predictor, for a batch of prompts.",
            buckets=_LATENCY_BUCKETS,
        )
        self.predictor_queue = made(
            "Gauge",
            "ecoserve_prediction_queue_prompts",
            "Prompts that wait for a prediction.",
            multiprocess_mode="livesum",
        )
        self.predictor = made("Gauge", "ecoserve_predictor_info", "1 for the predictor in use.", "predictor")
        self.open_work = made(
            "Gauge",
            "ecoserve_open_work_tokens",
            "Tokens predicted for the responses that are not complete.",
            multiprocess_mode="livesum",
        )
        self.work_rate = made(
            "Gauge",
            "ecoserve_work_rate_tokens_per_second",
            "Tokens generated per second while requests waited; 0 before that was seen.",
            multiprocess_mode="livesum",
        )
        self.dropped_keys = made(
            "Counter", "ecoserve_client_keys_dropped_total", "Keys of the scheduler that untrusted clients sent."
        )
        self.refused = made(
            "Counter",
            "ecoserve_requests_refused_total",
            "Requests that ecoserve answered with an error, by reason.",
            "reason",
            get_args(Refusal),
        )
        self.cut_off = made(
            "Counter", "ecoserve_responses_cut_off_total", "Responses that had begun when the server stopped."
        )
        self.slos_stated = made(
            "Counter",
            "ecoserve_slo_stated_total",
            "Requests with an SLO by who stated it.",
            "source",
            ("client", "default"),
        )
        self.slo_values = made(
            "Counter",
            "ecoserve_slo_values_total",
            "SLO values that clients sent, by outcome.",
            "outcome",
            ("accepted", "clamped", "refused", "ignored"),
        )

        self.learned_answers = made(
            "Counter",
            "ecoserve_learned_answers_total",
            "Answers to learn from, by how they ended.",
            "reason",
            ("ended", "cut_off", "aborted"),
        )
        self.learning_serves = made(
            "Gauge", "ecoserve_learning_serves", "1 while learned predictions are used, 0 while the history serves."
        )
        self.learning_tau = made(
            "Gauge", "ecoserve_learning_kendall_tau", "Of the newest answers, predicted before they were known."
        )
        self.learning_coverage = made(
            "Gauge",
            "ecoserve_learning_coverage",
            "Share of the newest answers within the predicted quantile of this level.",
            "level",
            ("0.5", "0.9"),
        )
        self.learning_gain = made(
            "Gauge",
            "ecoserve_learning_gain_tokens",
            "Pinball loss of history minus that of the learned predictions, on the newest answers.",
        )
        self.learning_alarms = made(
            "Counter", "ecoserve_learning_alarms_total", "Times that lengths were not as predicted any more."
        )
        self.learning_fits = made(
            "Counter", "ecoserve_learning_fits_total", "Fits, by outcome.", "outcome", ("done", "failed")
        )
        self.learning_cpu = made("Counter", "ecoserve_learning_cpu_seconds_total", "CPU time of the process that fits.")
        self.learning_writes = made(
            "Counter",
            "ecoserve_learning_writes_total",
            "Writes of what was learned, by outcome.",
            "outcome",
            ("done", "failed"),
        )

    def serve(self, model_name: str, settings: MiddlewareSettings) -> None:
        """Label everything with ``model_name`` from now on, and show what is there before the first request."""
        self.model_name = model_name
        for series in self._all:
            for values in [()] if series.values is None else [(value,) for value in series.values]:
                series.labels(*values)
        self.predictor.labels(settings.predictor or "none").set(1)
        help_text = "1; the settings of the middleware are its labels."
        # /metrics is open to all: no keys.
        shown = {n: v for n, v in settings.model_dump().items() if n != "predictor" and not n.endswith("_key")}
        _set_info("ecoserve_middleware_settings_info", help_text, {"model_name": model_name, **shown})


@cache
def middleware_metrics() -> ServerMetrics:
    """The API server's metrics; a process registers them once."""
    return ServerMetrics()


def normalized_latency(model_name: str, engine: int) -> Any:
    """The histogram of E2EL per generated token; the API server observes it."""
    return _family(
        "Histogram",
        "ecoserve_normalized_latency_seconds",
        "E2EL divided by the generated tokens, of finished requests.",
        _ENGINE,
        buckets=_NORMALIZED_BUCKETS,
    ).labels(model_name, str(engine))


def _set_info(name: str, help_text: str, labels: Mapping[str, Any]) -> None:
    _family("Gauge", name, help_text, tuple(labels)).labels(
        *("" if v is None else str(v) for v in labels.values())
    ).set(1)


# -- the engine's process ------------------------------------------------------------------------------------------


def publish_level(level: str, reason: str, model_name: str = "") -> None:
    """Say which level serves, and why."""
    help_text = "1 for the level at start (full: our scheduler; order: vLLM's own, by request priorities), and why."
    _set_info("ecoserve_level_info", help_text, {"model_name": model_name, "level": level, "reason": reason})


def publish_run_level(level: Level) -> None:
    """Say which level serves now; an operator may have changed it."""
    family = _family("Gauge", "ecoserve_level", "1 for the level that serves now.", ("model_name", "level"))
    for name in get_args(Level):
        family.labels(middleware_metrics().model_name, name).set(name == level)


class MetricsPublisher:
    """Publishes one scheduler's counters and gauges.

    Args:
        engine: index of the engine (data-parallel rank), a label of every metric like ``model_name``.
        settings: of the scheduler.
        interval_s: minimum time between two publications; an idle scheduler publishes at once.
    """

    def __init__(
        self,
        engine: int = 0,
        interval_s: float = 0.25,
        model_name: str = "",
        settings: SchedulerSettings = SchedulerSettings(),  # noqa: B008 - frozen
    ) -> None:
        self._labels = labels = (model_name, str(engine))
        old = {series: name for name, series in METRICS.items() if series is not None}
        # Old names get the same increments.
        self._counters = {
            f.name: [_counter(counter_series(f.name), f.metadata["help"], labels)] for f in fields(Counters)
        }
        for f in fields(Counters):
            if name := old.get(counter_series(f.name)):
                self._counters[f.name].append(_family("Counter", name, f.metadata["help"], _OLD).labels(labels[1]))
        self._gauges = {
            f.name: _family("Gauge", gauge_name(f.name), f.metadata["help"], _ENGINE).labels(*labels)
            for f in fields(Gauges)
            if f.name != _SOURCE
        }
        source = next(f for f in fields(Gauges) if f.name == _SOURCE).metadata["help"]
        sources = _family("Gauge", gauge_name(_SOURCE), source, (*_ENGINE, "source"))
        self._sources = [sources.labels(*labels, name) for name in get_args(SourceName)]
        self._old_source = _family("Gauge", "ecoserve_believed", source, _OLD).labels(labels[1])
        ratio_help = "Generated tokens divided by predicted ones (1 is exact, above 1 under-predicted)."
        self._ratio = _family(
            "Histogram", "ecoserve_prediction_error_ratio", ratio_help, _ENGINE, buckets=_RATIO_BUCKETS
        ).labels(*labels)
        waits = _family(
            "Histogram",
            "ecoserve_queue_wait_seconds",
            "Time in a queue: of prompts and preempted requests until they start, of paused ones until they resume.",
            (*_ENGINE, "queue"),
            buckets=_WAIT_BUCKETS,
        )
        self._waits = {queue: waits.labels(*labels, queue) for queue in get_args(Queue)}
        info = {"model_name": model_name, "engine": engine}
        policy_help = "1 for the policy that the engine runs; to be joined with the other metrics by their engine."
        _set_info("ecoserve_policy_info", policy_help, {**info, "policy": settings.policy})
        help_text = "1; the settings of the scheduler are its labels."
        shown = settings.model_dump(exclude={"policy", "event_log"})
        # Prometheus keeps the label "quantile" for summaries.
        shown = {f"{name}_" if name == "quantile" else name: value for name, value in shown.items()}
        _set_info("ecoserve_scheduler_settings_info", help_text, {**info, **shown})
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

    def observe_wait(self, queue: Queue, seconds: float) -> None:
        """Note that a request has left a queue for the batch."""
        self._waits[queue].observe(max(0.0, seconds))


def _counter(series: str, help_text: str, labels: tuple[str, str]) -> Any:
    name, _, label = series.partition("{")
    if not label:
        return _family("Counter", name, help_text, _ENGINE).labels(*labels)
    help_text = "Under-predictions by the action that covered or resolved them."
    return _family("Counter", name, help_text, (*_ENGINE, "action")).labels(*labels, label.split('"')[1])


@cache
def _warn_of_old_names() -> None:
    names = ", ".join(name for name, series in METRICS.items() if series is not None)
    logger.warning("ecoserve: /metrics has %s for one more release; CHANGELOG.md has their new names", names)
