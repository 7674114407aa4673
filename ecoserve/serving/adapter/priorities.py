"""Level ``order`` in the API server: the priority that a request gets, from its body and its prediction.

It goes into vLLM's header and, where bodies have one, into the field ``priority``: older versions read the field only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from ecoserve.data.measuring import CHARACTERS_PER_TOKEN, estimated_tokens
from ecoserve.errors import PredictionError
from ecoserve.lengths import LengthDistribution
from ecoserve.serving.adapter import bodies
from ecoserve.serving.core import keys
from ecoserve.serving.core.request_priority import RequestPriority
from ecoserve.serving.core.settings import SchedulerSettings

#: vLLM's header, which goes before the field.
HEADER: Final = b"x-vllm-priority"
FIELD: Final = "priority"
#: Paths whose requests have a priority: those that are predicted, and two more.
PATHS: Final = frozenset({*bodies.ASKS, "/v1/chat/completions/batch", "/inference/v1/generate"})
#: Its bodies have no such field.
_NO_FIELD: Final = "/v1/messages"
_INTEGER: Final = TypeAdapter(int)


class Priorities:
    """Priorities by the scheduler's settings in vLLM's additional config, where they can be seen."""

    def __init__(self, additional_config: Any) -> None:
        self._priority = RequestPriority(SchedulerSettings.from_config(additional_config))

    def of(
        self,
        path: str,
        headers: Iterable[tuple[bytes, bytes]],
        body: Mapping[str, Any],
        ask: bodies.Ask | None,
        lengths: Sequence[LengthDistribution],
        arrival_s: float,
    ) -> tuple[int | None, dict[str, int]]:
        """The priority of a parsed body and the fields that carry it; None if vLLM would refuse the client's own."""
        client = client_priority(headers, body)
        if client is None:
            return None, {}
        limit = _limit(path, body) if ask is None else ask.limit
        found = self._priority.of(lengths, prompt_tokens(body, ask), arrival_s, limit=limit, client=client)
        return found, {} if path == _NO_FIELD else {FIELD: found}

    def unread(self, headers: Iterable[tuple[bytes, bytes]], size: int, arrival_s: float) -> int | None:
        """That of a body of ``size`` bytes that is not parsed; only the header carries it."""
        client = client_priority(headers, {})
        return None if client is None else self._priority.of((), size / CHARACTERS_PER_TOKEN, arrival_s, client=client)


def client_priority(headers: Iterable[tuple[bytes, bytes]], body: Mapping[str, Any]) -> int | None:
    """The priority that a client states, as vLLM would read it; None if vLLM would refuse it."""
    for name, value in headers:
        if name.lower() == HEADER:
            try:
                return int(value)
            except ValueError:
                break
    try:
        return _INTEGER.validate_python(body.get(FIELD, 0))
    except ValidationError:
        return None


def prompt_tokens(body: Mapping[str, Any], ask: bodies.Ask | None) -> float:
    """Tokens of a prompt, the mean of a batch: estimated by characters, counted where it has token ids, else 0."""
    if ask is not None:
        return fmean(sum(estimated_tokens(m.content) for m in chat) for chat in ask.chats)
    ids = body.get("prompt") or body.get("token_ids")
    if not isinstance(ids, list):
        return 0.0
    return fmean(map(len, ids)) if all(isinstance(i, list) for i in ids) else float(len(ids))


def trusted_lengths(body: Mapping[str, Any]) -> list[LengthDistribution]:
    """A client's own prediction, where it may send one."""
    try:
        return [LengthDistribution.from_wire(body[bodies.XARGS][keys.LENGTHS])]
    except (PredictionError, KeyError):
        return []


def _limit(path: str, body: Mapping[str, Any]) -> int | None:
    """The limit on generated tokens in a body of which nothing is predicted."""
    inner = body.get("sampling_params")
    holder = inner if isinstance(inner, Mapping) else body
    names = ("max_completion_tokens", "max_tokens", "max_output_tokens")
    found = next((n for name in names if (n := bodies.limit_of(holder.get(name)))), None)
    return bodies.COMPLETION_MAX_TOKENS if found is None and path == "/v1/completions" else found
