"""Answers that the middleware gives in vLLM's place: an error in the form of the API that was called."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from ecoserve.serving.adapter.metrics import Refusal, middleware_metrics

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

#: The error's type by status, in vLLM's words and in those of ``/v1/messages``.
_TYPES: Final = {
    400: ("BadRequestError", "invalid_request_error"),
    401: ("AuthenticationError", "authentication_error"),
    404: ("NotFoundError", "not_found_error"),
    405: ("MethodNotAllowedError", "invalid_request_error"),
    413: ("RequestTooLargeError", "request_too_large"),
    429: ("TooManyRequestsError", "rate_limit_error"),
    503: ("ServiceUnavailableError", "overloaded_error"),
}


def error_body(path: str, status: int, message: str, param: str | None = None) -> bytes:
    """The JSON of an error."""
    ours, anthropic = _TYPES[status]
    shape: dict[str, Any] = {"error": {"message": message, "type": ours, "param": param, "code": status}}
    if path == "/v1/messages":
        shape = {"type": "error", "error": {"type": anthropic, "message": message}}
    return json.dumps(shape).encode()


async def refuse(
    send: Send,
    path: str,
    status: int,
    reason: Refusal,
    message: str,
    *,
    param: str | None = None,
    retry_after_s: int | None = None,
    close: bool = False,
) -> None:
    """Answer a request whose response has not begun, and count it under ``reason``; ``close``: the connection, too."""
    middleware_metrics().refused.labels(reason).inc()
    body = error_body(path, status, message, param)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if retry_after_s is not None:
        headers.append((b"retry-after", str(retry_after_s).encode()))
    if close:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
