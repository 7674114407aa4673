"""Request bodies: what they ask for, and how our values are put into them. Bytes in, bytes out, no I/O.

A body that vLLM would not read as a JSON object is passed on byte for byte. Where a body has no ``vllm_xargs`` yet,
they are inserted before its last brace, and all other bytes stay. Clients' own values under our keys are removed,
unless the operator allows them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from ecoserve.data import Message
from ecoserve.data.parameters import LARGEST_LIMIT, NO_PARAMETERS, RequestParameters, parameters_of
from ecoserve.lengths import LengthDistribution
from ecoserve.predictor.text import ChatRequest
from ecoserve.serving.core import keys

#: Name of the object that carries ``extra_args`` in vLLM's HTTP bodies.
XARGS: Final = "vllm_xargs"
#: vLLM's own default where a completion does not say ``max_tokens``.
COMPLETION_MAX_TOKENS: Final = 16
#: Numbers in the predictions of one batch of prompts: each of its prompts carries all of them to the engine.
BATCH_NUMBERS: Final = 8192
#: Larger batches of prompts are served without predictions.
BATCH_PROMPTS: Final = 256
#: Bodies with more commas, thus maybe as many values, are served without predictions: reading them takes long.
MOST_COMMAS: Final = 50_000
#: A character of our keys' prefix as JSON's escape. No serializer escapes letters.
_ESCAPED: Final = re.compile(rb"\\u00(?:6[35fF]|7[236]|5[fF])")

Kind = Literal["json", "form"]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a body asks for.

    Attributes:
        chats: one context per response, each a sequence of messages.
        batch: whether they are the prompts of one batch (predictions then travel as a list).
        limit: the body's own limit on generated tokens, if it has one.
        parameters: other parameters that bear on the lengths.
    """

    chats: tuple[tuple[Message, ...], ...]
    batch: bool = False
    limit: int | None = None
    parameters: RequestParameters = NO_PARAMETERS

    def requests(self) -> list[ChatRequest]:
        limit = self.limit and min(self.limit, LARGEST_LIMIT)
        return [ChatRequest(chat, replace(self.parameters, max_tokens=limit)) for chat in self.chats]


def parse(body: bytes) -> dict[str, Any] | None:
    """The JSON object in ``body`` as vLLM would read it (UTF-8, -16 or -32), or None."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def ask_chat(body: Mapping[str, Any]) -> Ask | None:
    chat = _messages(body.get("messages"))
    limit = body.get("max_completion_tokens")
    limit = limit_of(body.get("max_tokens") if limit is None else limit)
    return Ask((chat,), limit=limit, parameters=parameters_of(body)) if chat else None


def ask_completion(body: Mapping[str, Any]) -> Ask | None:
    """A request to ``/v1/completions``; None for prompts of token ids."""
    prompt = body.get("prompt")
    limit = body.get("max_tokens")
    limit = COMPLETION_MAX_TOKENS if limit is None else limit_of(limit)
    if body.get("prompt_embeds") is not None or body.get("use_beam_search"):
        return None
    said = parameters_of(body)
    if isinstance(prompt, str):
        return Ask((_user(prompt),), limit=limit, parameters=said)
    if isinstance(prompt, list) and 0 < len(prompt) <= BATCH_PROMPTS and all(isinstance(p, str) for p in prompt):
        return Ask(tuple(_user(p) for p in prompt), batch=True, limit=limit, parameters=said)
    return None


def ask_responses(body: Mapping[str, Any]) -> Ask | None:
    """A request to ``/v1/responses``; turns stored by the server are not seen."""
    asked = body.get("input")
    chat = _user(asked) if isinstance(asked, str) else _messages(asked)
    if not chat:
        return None
    instructions = body.get("instructions")
    if isinstance(instructions, str) and instructions:
        chat = (Message("system", instructions), *chat)
    return Ask((chat,), limit=limit_of(body.get("max_output_tokens")), parameters=parameters_of(body))


def ask_anthropic(body: Mapping[str, Any]) -> Ask | None:
    chat = _messages(body.get("messages"))
    system = _text(body.get("system"))
    if chat and system:
        chat = (Message("system", system), *chat)
    return Ask((chat,), limit=limit_of(body.get("max_tokens")), parameters=parameters_of(body)) if chat else None


def responses(body: Mapping[str, Any]) -> int:
    """How many responses ``body`` asks for to each prompt."""
    return limit_of(body.get("n")) or 1


def forced(body: Mapping[str, Any]) -> bool:
    """Whether ``body`` sets how long responses are at least, so that they say nothing about others."""
    return bool(body.get("ignore_eos") or body.get("min_tokens"))


#: Paths whose requests are predicted, and how to read them.
ASKS: Final = {
    "/v1/chat/completions": ask_chat,
    "/v1/completions": ask_completion,
    "/v1/responses": ask_responses,
    "/v1/messages": ask_anthropic,
}


def kind(content_type: bytes) -> Kind | None:
    """How vLLM would read a body of this content-type; None: as nothing that could carry our keys."""
    name = content_type.split(b";")[0].strip().lower()
    if name == b"application/json" or (name.startswith(b"application/") and name.endswith(b"+json")):
        return "json"
    return "form" if name == b"multipart/form-data" else None


def too_many(body: bytes) -> bool:
    """Whether ``body`` may have more values than are read for a prediction."""
    return body.count(b",") > MOST_COMMAS


def may_carry_keys(body: bytes) -> bool:
    """Whether JSON could name one of our keys, in any encoding, escaped or not; False is certain."""
    return _named(body) or b"\0" in body


def form_may_carry_keys(body: bytes, content_type: bytes) -> bool:
    """The same of a form; its charset is its content-type's."""
    parameters = content_type.lower().replace(b'"', b"").replace(b" ", b"").split(b";")[1:]
    charsets = {p.removeprefix(b"charset=") for p in parameters if p.startswith(b"charset=")}
    return _named(body) or not charsets <= {b"utf-8", b"us-ascii", b"iso-8859-1"}


def _named(body: bytes) -> bool:
    return keys.PREFIX.encode() in body or _ESCAPED.search(body) is not None


def foreign_keys(body: Mapping[str, Any], allowed: Collection[str]) -> list[tuple[str, ...]]:
    """Paths to the keys of ours in ``body`` that are not ``allowed``."""
    found: list[tuple[str, ...]] = []
    for path in ((XARGS,), ("extra_args",), ("sampling_params", "extra_args")):
        holder: Any = body
        for name in path:
            holder = holder.get(name) if isinstance(holder, Mapping) else None
        if isinstance(holder, Mapping):
            found += [(*path, key) for key in keys.ALL if key in holder and key not in allowed]
    return found


def rewrite(
    raw: bytes,
    body: Mapping[str, Any],
    drop: Sequence[tuple[str, ...]],
    add: Mapping[str, Any],
    fields: Mapping[str, Any] | None = None,
) -> bytes | None:
    """``raw`` (whose parsed form is ``body``) without the paths ``drop``, with ``add`` in its ``vllm_xargs``.

    ``fields`` replace those of the body itself.

    Returns:
        The new body as UTF-8; None if nothing changes. Nothing is added to ``vllm_xargs`` that are not an object.
    """
    given = body.get(XARGS)
    if given is not None and not isinstance(given, Mapping):
        add = {}
    fields = fields or {}
    if not drop and not add and not fields:
        return None
    there = XARGS in body or bool(fields.keys() & body.keys())
    if not drop and not there and json.detect_encoding(raw).startswith("utf-8"):
        end = raw.rindex(b"}")
        extra = json.dumps({**fields, **({XARGS: add} if add else {})}, separators=(",", ":")).encode()
        return raw[:end] + (b"," if body else b"") + extra[1:-1] + raw[end:]
    new: dict[str, Any] = {**body, **fields}
    for path in drop:
        holder = new
        for name in path[:-1]:
            holder[name] = dict(holder[name])
            holder = holder[name]
        del holder[path[-1]]
    if add:
        new[XARGS] = {**(new.get(XARGS) or {}), **add}
    # ASCII only: lone surrogates stay escapes, so the result is valid UTF-8.
    return json.dumps(new, separators=(",", ":")).encode()


def wire_args(ask: Ask, lengths: Sequence[LengthDistribution]) -> dict[str, list[float]]:
    """The ``vllm_xargs`` that carry ``lengths`` (one per context of ``ask``), closed at the body's own limit."""
    if ask.limit is not None:
        lengths = [d.closed_at(ask.limit) for d in lengths]
    if not ask.batch:
        return {keys.LENGTHS: lengths[0].to_wire()}
    bins = max(1, (BATCH_NUMBERS // len(lengths) - 4) // 2)
    flat = [float(len(lengths))]
    for distribution in lengths:
        wire = coarser(distribution, bins).to_wire()
        flat += [float(len(wire)), *wire]
    return {keys.LENGTHS_BATCH: flat}


def coarser(distribution: LengthDistribution, bins: int) -> LengthDistribution:
    """The same distribution on at most ``bins`` (>= 1) bins.

    The two neighbours whose union moves the mean least are joined repeatedly, so that a long thin tail stays apart.
    """
    edges, probs = list(distribution.edges), list(distribution.probs)
    if len(probs) <= bins:
        return distribution
    while len(probs) > bins:
        moved = [
            abs(probs[k + 1] * (edges[k + 1] - edges[k]) - probs[k] * (edges[k + 2] - edges[k + 1]))
            for k in range(len(probs) - 1)
        ]
        k = moved.index(min(moved))
        probs[k : k + 2] = [probs[k] + probs[k + 1]]
        del edges[k + 1]
    return LengthDistribution.from_weights(edges, probs, distribution.closed_by)


# -- reading untrusted JSON -----------------------------------------------------------------------------------


def limit_of(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None


def _user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def _messages(value: Any) -> tuple[Message, ...]:
    """Chat messages in OpenAI's or Anthropic's form; other items are left out."""
    return tuple(
        Message(role, _text(item.get("content")))
        for item in (value if isinstance(value, list) else ())
        if isinstance(item, Mapping) and isinstance(role := item.get("role"), str)
    )


def _text(content: Any) -> str:
    """A message's text: the string, or the text parts of a list of parts (images and the like have none)."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = [p if isinstance(p, str) else p.get("text") if isinstance(p, Mapping) else None for p in content]
    return "\n".join(t for t in texts if isinstance(t, str))
