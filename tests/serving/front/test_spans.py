"""Spans of predictions: children of the client's trace, with what became of the prediction."""

from __future__ import annotations

import asyncio

import httpx
from front_helpers import ByWords, Recorder
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ecoserve.serving.adapter.middleware import PredictionMiddleware
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings
from ecoserve.serving.adapter.spans import PredictionSpans

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_a_prediction_is_a_span_of_the_clients_trace() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    middleware = PredictionMiddleware(
        Recorder(), settings=MiddlewareSettings(predict_timeout_ms=60_000), predictor=ByWords(delay_s=0.01)
    )
    middleware._spans = PredictionSpans(provider)

    async def go() -> None:
        transport = httpx.ASGITransport(app=middleware)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            head = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            await client.post("/v1/completions", json={"prompt": ["a b c", "d"], "max_tokens": 9}, headers=head)
            await client.post("/v1/completions", json={"prompt": [1, 2]}, headers=head)

    asyncio.run(go())
    [span] = exporter.get_finished_spans()
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert dict(span.attributes or {}) == {"ecoserve.outcome": "made", "ecoserve.predicted_tokens": (3.0, 1.0)}
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.end_time - span.start_time >= 0.01e9
