"""OpenTelemetry spans of predictions, beside vLLM's own where ``--otlp-traces-endpoint`` turns its tracing on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter.metrics import Outcome


class PredictionSpans:
    """Spans ``ecoserve_prediction``, children of the trace that the request's headers name.

    ``provider``: where they go; by default to the provider that vLLM has set.
    """

    def __init__(self, provider: Any = None) -> None:
        self._tracer = trace.get_tracer("ecoserve", tracer_provider=provider)
        self._context = TraceContextTextMapPropagator()

    def record(
        self,
        headers: Sequence[tuple[bytes, bytes]],
        begun_ns: int,
        outcome: Outcome,
        lengths: Sequence[LengthDistribution],
    ) -> None:
        """A span from ``begun_ns`` (since the epoch) until now."""
        carrier = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}
        span = self._tracer.start_span(
            "ecoserve_prediction", context=self._context.extract(carrier), start_time=begun_ns
        )
        span.set_attribute("ecoserve.outcome", outcome)
        if lengths:
            span.set_attribute("ecoserve.predicted_tokens", [float(d.mean()) for d in lengths])
        span.end(time.time_ns())
