"""``ecoserve predict-server``: predicted lengths over HTTP."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ecoserve.cli.options import takes
from ecoserve.cli.predictors import CheckpointArgument
from ecoserve.serving.adapter.middleware_settings import MiddlewareSettings


@takes(MiddlewareSettings, "predict_timeout_ms predict_window_ms predict_batch predict_waiting predict_threads")
@takes(MiddlewareSettings, "max_body_bytes")
def command(
    checkpoint: CheckpointArgument,
    *,
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port to listen at.")] = 8090,
    **given: Any,
) -> None:
    """Predict the lengths of responses over HTTP, for gateways and routers.

    POST /predict/v1/chat/completions with a client's request body. ECOSERVE_API_KEY is the key that callers need.
    """
    from ecoserve.serving.adapter.predict_server import predict_server

    predict_server(MiddlewareSettings.read(options={**given, "predictor": checkpoint}), host, port)
