"""What a request states about its answer beside its text: limits, stop strings, tools, thinking, format.

One reader for bodies that arrive at a server and for those of logs, of any of the APIs. What it keeps is small and of
known size; what it does not understand is left out, never an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from ecoserve.data.known_fields import NAMES as FIELDS

_LIMITS: Final = FIELDS["max_tokens"]
#: Larger limits are read as this one.
LARGEST_LIMIT: Final = 1_000_000
#: Stop strings that are kept of a request, and characters of each.
STOP_STRINGS: Final = 4
STOP_CHARACTERS: Final = 24
#: More tools are read as this many.
MOST_TOOLS: Final = 128

_EFFORTS: Final = frozenset(("none", "minimal", "low", "medium", "high", "xhigh", "max"))
_KINDS: Final = {"enabled": True, "adaptive": True, "disabled": False}
_SWITCHES: Final = ("enable_thinking", "thinking")
_BUDGETS: Final = ("thinking_token_budget", "thinking_budget", "budget_tokens")
_FORMATS: Final = frozenset(("json_object", "json_schema", "structural_tag"))
_GRAMMARS: Final = ("json", "json_object", "regex", "choice", "grammar")


@dataclass(frozen=True, slots=True)
class RequestParameters:
    """The parameters of one request that bear on the length of its answer; ``tools``: how many it may call.

    ``thinking``: ``"on"``, ``"off"``, the effort asked for (``"low"``, ``"high"``, ...), or its budget in tokens, as
    digits. ``response_format``: ``"json_object"``, ``"json_schema"``, ``"regex"``, ...; ``None`` for free text.
    """

    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    tools: int = 0
    thinking: str | None = None
    response_format: str | None = None

    def __bool__(self) -> bool:
        return self != NO_PARAMETERS


#: Of a request that states nothing.
NO_PARAMETERS: Final = RequestParameters()
#: All parameters' names.
NAMES: Final = tuple(f.name for f in fields(RequestParameters))


def parameters_of(body: Mapping[str, Any]) -> RequestParameters:
    """Read the body of a request: chat completions, completions, the Responses API, or Anthropic's messages."""
    return RequestParameters(
        max_tokens=next((n for n in map(_limit, map(body.get, _LIMITS)) if n is not None), None),
        stop=stops_of(body.get("stop") if body.get("stop") is not None else body.get("stop_sequences")),
        tools=tools_of(body),
        thinking=thinking_of(body),
        response_format=format_of(body),
    )


def stops_of(value: object) -> tuple[str, ...]:
    """The first stop strings, their beginnings."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        return ()
    found = (s[:STOP_CHARACTERS] for s in value[: 4 * STOP_STRINGS] if isinstance(s, str) and s)
    # Half a surrogate pair is no text: neither UTF-8 nor a tokenizer takes it.
    return tuple(dict.fromkeys(s.encode("utf-8", "ignore").decode() for s in found))[:STOP_STRINGS]


def tools_of(body: Mapping[str, Any]) -> int:
    tools = body.get("tools") if body.get("tools") is not None else body.get("functions")
    if not isinstance(tools, list) or body.get("tool_choice") == "none":
        return 0
    return min(len(tools), MOST_TOOLS)


def thinking_of(body: Mapping[str, Any]) -> str | None:
    """The switch for thinking, the effort, or the budget, by any of the names that servers have for them."""
    reasoning = body.get("reasoning")
    for effort in (body.get("reasoning_effort"), reasoning.get("effort") if isinstance(reasoning, Mapping) else None):
        if isinstance(effort, str) and effort in _EFFORTS:
            return "off" if effort == "none" else effort
    template = body.get("chat_template_kwargs")
    holders = [part for part in (body, template, body.get("vllm_xargs")) if isinstance(part, Mapping)]
    switched: bool | None = None
    for holder in holders:
        for name in _SWITCHES:
            switch = holder.get(name)
            if isinstance(switch, Mapping):
                kind = switch.get("type")
                switch = _KINDS.get(kind) if isinstance(kind, str) else None
            if switched is None and isinstance(switch, bool):
                switched = switch
    # A limit beside the messages is the whole response's.
    inner = [part for part in (body.get("thinking"), reasoning) if isinstance(part, Mapping)]
    budgets = [part.get(name) for part in inner for name in (*_BUDGETS, "max_tokens")]
    budgets += [holder.get(name) for holder in holders for name in _BUDGETS]
    budget = next((n for n in budgets if isinstance(n, int) and not isinstance(n, bool) and n >= 0), None)
    if switched is False or budget == 0:
        return "off"
    return str(min(budget, LARGEST_LIMIT)) if budget is not None else "on" if switched else None


def format_of(body: Mapping[str, Any]) -> str | None:
    text = body.get("text")
    for form in (body.get("response_format"), text.get("format") if isinstance(text, Mapping) else None):
        name = form.get("type") if isinstance(form, Mapping) else form
        if isinstance(name, str) and name in _FORMATS:
            return name
    structured = body.get("structured_outputs")
    for name in _GRAMMARS:
        inner = structured.get(name) if isinstance(structured, Mapping) else None
        if (inner if inner is not None else body.get(f"guided_{name}")) not in (None, False):
            return "json_schema" if name == "json" else name
    return None


def _limit(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return min(value, LARGEST_LIMIT)
    return None
