"""Sessions of agents: Claude Code's transcripts, and recorded sessions of lengths, times and prefix hashes.

A transcript has a line for each block of an answer; those of one ``message.id`` are one response, and the last states
its usage. Sessions are closed loops: ``think_s`` is the time from an answer's end to the next request.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ecoserve.data.fields import Row, first_of, number, seconds, text_or_none, unusable_text, was_cut_off
from ecoserve.data.formats.base import Exchange, Exchanges, Format, Reject
from ecoserve.data.formats.conversations import exchange_of, read_message
from ecoserve.data.formats.table import Convention, hash_of, table
from ecoserve.data.known_fields import named, usage_of
from ecoserve.data.records import ASSISTANT, Record

#: Where the bits that tell sessions apart are, of 63.
_SCOPE: Final = (1 << 62) - (1 << 24)


@dataclass(slots=True)
class _Session:
    """A transcript's session as far as it was read, and the response that is coming.

    ``prompt``: what was said last, at ``asked_s``; ``asked``: what the response answers. ``ended_s``: when the last
    line of a response came.
    """

    prompt: str | None = None
    asked: str | None = None
    asked_s: float | None = None
    ended_s: float | None = None
    turns: int = 0
    response: dict[str, Any] | None = None
    parts: list[Any] = field(default_factory=list)
    think_s: float | None = None


class _Transcripts:
    """Reads transcripts, also several in one file."""

    stated: Sequence[str] = ()
    length_source: str | None = None

    def __init__(self, rows: Sequence[Row]) -> None:
        self._sessions: dict[str, _Session] = {}
        named = any(_session_of(row) is not None for row in rows)
        self.guesses = [] if named else ["no row names its session (sessionId): all are taken as one"]

    def read(self, row: Row, index: int) -> Exchanges:
        message = row.get("message")
        if row.get("type") not in ("user", "assistant") or not isinstance(message, dict):
            return []  # a summary, a snapshot, a note of the program's
        name = str(_session_of(row) or "session")
        if row.get("isSidechain") is True:
            name = f"{name}/{first_of(row, 'agentId', 'agent_id') or 'sidechain'}"
        session = self._sessions.setdefault(name, _Session())
        at = seconds(row.get("timestamp"))
        if row["type"] == "user":
            said = read_message(message)
            if unusable_text(said.text, "prompt") is None:
                session.prompt = str(said.text)
                session.asked_s = at
            return []
        done: list[Exchange | Reject] = []
        if session.response is not None and session.response.get("id") != message.get("id"):
            done = [self._finished(name, session)]
        if session.response is None:
            if session.ended_s is not None and session.asked_s is not None:
                session.think_s = max(0.0, session.asked_s - session.ended_s)
            session.response = {"asked_s": session.asked_s if session.asked_s is not None else at}
            session.asked = session.prompt
        content = message.get("content")
        session.parts += content if isinstance(content, list) else [{"type": "text", "text": content}]
        session.response |= {n: v for n, v in message.items() if v is not None}
        session.response["failed"] = row.get("isApiErrorMessage") is True
        session.ended_s = at if at is not None else session.ended_s
        return done

    def finish(self) -> Exchanges:
        return [self._finished(name, s) for name, s in self._sessions.items() if s.response is not None]

    def _finished(self, name: str, session: _Session) -> Exchange | Reject:
        """The response that has come to its end."""
        response, parts = session.response or {}, session.parts
        turn, think = session.turns, session.think_s
        session.response, session.parts, session.think_s = None, [], None
        if response["failed"] or response.get("model") == "<synthetic>":
            return Reject("failed request")
        session.turns += 1
        said = read_message({"role": ASSISTANT, "content": parts})
        counts = usage_of(response)
        reason = text_or_none(response.get("stop_reason"))
        record = Record(
            name,
            turn=turn,
            prompt=session.asked,
            response_tokens=counts.response,
            prompt_tokens=counts.prompt,
            thinking_tokens=counts.thinking,
            model=text_or_none(response.get("model")),
            arrival_s=response["asked_s"],
            think_s=think,
            censored=was_cut_off(reason, said.text),
            finish_reason=reason,
        )
        return exchange_of(record, said, response, said.notes)


def _is_transcript(row: Row) -> bool:
    inner = row.get("message")
    return not row.keys().isdisjoint(("sessionId", "session_id", "parentUuid", "isSidechain")) and (
        row.get("type") in ("user", "assistant") and isinstance(inner, dict) and "role" in inner
    )


def _session_of(row: Row) -> object:
    return first_of(row, "sessionId", "session_id")


TRANSCRIPTS: Final = Format(
    "claude-code",
    looks_like="type, sessionId, timestamp, message.role, message.usage",
    about="transcripts of Claude Code: lengths by usage (cached prompt included), arrivals, waits between turns, "
    "subagents as sessions of their own",
    matches=_is_transcript,
    opened=lambda rows, hints: _Transcripts(rows),
    own_ids=True,
)


def _requests(row: Row, index: int) -> Iterator[Row | Reject]:
    """The requests of a session, those of its subagents as sessions of their own."""
    session = str(row.get("id") or f"row-{index}")
    # Ids of one session stand apart from those of others in their upper bits.
    scope = hash_of(session.partition("/")[0]) << 24 & _SCOPE
    requests, found = row.get("requests"), False
    for request in requests if isinstance(requests, list) else ():
        if not isinstance(request, dict):
            yield Reject("request is not an object")
        elif isinstance(request.get("requests"), list):
            found = True
            inner = {**request, "id": f"{session}/{first_of(request, 'agent_id', 'id') or 'agent'}"}
            for name in ("block_size", "hash_id_scope"):
                inner.setdefault(name, row.get(name))
            yield from _requests(inner, index)
        else:
            hashes = request.get("hash_ids")
            if isinstance(hashes, list) and row.get("hash_id_scope") == "local" and set(map(type, hashes)) <= {int}:
                hashes = [scope ^ h for h in hashes]
            wait = number(request.get("think_time"))
            yield {
                "session_id": session,
                "time": request.get("t"),
                "prompt_tokens": request.get("in"),
                "response_tokens": request.get("out"),
                "think_time": None if wait is None else max(0.0, wait),
                "thinking_tokens": named(request, "thinking_tokens"),
                "hash_ids": hashes,
                "block_size": row.get("block_size"),
                "model": request.get("model"),
                "stop_reason": first_of(request, "stop", "stop_reason"),
            }
            found = True
    if not found:
        yield Reject("session without requests")


def _is_session(row: Row) -> bool:
    requests = row.get("requests")
    return isinstance(requests, list) and any(isinstance(r, dict) and {"in", "out"} <= r.keys() for r in requests)


SESSIONS: Final = table(
    "agent-sessions",
    "id, block_size, requests[].t, .in, .out, .hash_ids, .think_time",
    "recorded sessions of coding agents: lengths, times (s) from their session's start, waits between turns, ids of "
    "shared blocks",
    (),
    Convention(per_second=1.0, unwrap=_requests, local_times=True),
    matches=_is_session,
)
