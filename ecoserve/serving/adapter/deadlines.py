"""SLOs in the API server: what clients may ask for, and the default for requests that state none.

- A request states its SLO in the headers ``x-slo-ttft-ms`` and ``x-slo-tpot-ms``, or in the body's field ``slo`` as
  ``{"ttft_ms": ..., "tpot_ms": ...}``. A header wins over the field: gateways set headers, clients set bodies.
- Clients are not trusted. A value that is not a duration is refused with 400. A duration below the operator's minimum
  is raised to it, so that an impossible SLO gains nothing. ``client_slos: off`` ignores all of it.
- Other requests get the operator's SLO, if there is one: ``slo_scale`` times the times of an idle engine, for the first
  token and for each further one. That is EcoServe's rule, scale x (prompt time + token time x length);
  :meth:`ecoserve.serving.core.tasks.Task.due_s` combines the two.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from ecoserve.errors import InputError
from ecoserve.serving.adapter.middleware_settings import LONGEST_MS, MiddlewareSettings
from ecoserve.serving.core import keys

#: Our keys, with the header and the name in the body's field for each.
HEADERS: Final = {keys.SLO_TTFT: "x-slo-ttft-ms", keys.SLO_TPOT: "x-slo-tpot-ms"}
FIELD: Final = "slo"
NAMES: Final = {keys.SLO_TTFT: "ttft_ms", keys.SLO_TPOT: "tpot_ms"}

_PLAIN_NUMBER: Final = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?")


class BadDeadline(InputError):
    """A client's SLO is not valid (HTTP 400). ``where`` is the header or the field."""


@dataclass(frozen=True, slots=True)
class Decision:
    """The SLO of one request.

    Attributes:
        add: seconds under our keys, for the request's ``vllm_xargs``.
        source: who stated it; None: there is none.
        accepted, clamped: numbers of the client's values that were accepted as they are, and that were raised.
    """

    add: dict[str, float]
    source: Literal["client", "default"] | None = None
    accepted: int = 0
    clamped: int = 0


class SloRule:
    def __init__(self, settings: MiddlewareSettings) -> None:
        self.listens = settings.client_slos == "clamp"
        self._least_ms = {keys.SLO_TTFT: settings.slo_min_ttft_ms, keys.SLO_TPOT: settings.slo_min_tpot_ms}
        unloaded = {keys.SLO_TTFT: settings.unloaded_ttft_ms, keys.SLO_TPOT: settings.unloaded_tpot_ms}
        self._default = {key: settings.slo_scale * ms / 1e3 for key, ms in unloaded.items() if ms is not None}

    def decide(
        self, headers: Iterable[tuple[bytes, bytes]], body: Mapping[str, Any], client_keys: Iterable[str]
    ) -> Decision:
        """The SLO of one request, from its ASGI headers and parsed body.

        A trusted client that sets our own keys (``client_keys``) gets no default.

        Raises:
            BadDeadline: if the client asked for something that is not a duration.
        """
        asked = asked_ms(headers, body) if self.listens else {}
        if asked:
            add = {key: max(ms, self._least_ms[key]) / 1e3 for key, ms in asked.items()}
            clamped = sum(ms < self._least_ms[key] for key, ms in asked.items())
            return Decision({**self._default, **add}, "client", len(asked) - clamped, clamped)
        if self._default and not set(client_keys) & {keys.DEADLINE, *HEADERS}:
            return Decision(dict(self._default), "default")
        return Decision({})


def asked_ms(headers: Iterable[tuple[bytes, bytes]], body: Mapping[str, Any]) -> dict[str, float]:
    """What a client asks for, in milliseconds, under our keys.

    Raises:
        BadDeadline: for a value that is not a duration, a header given twice, or an unknown name.
    """
    field = body.get(FIELD)
    if field is not None and not isinstance(field, Mapping):
        raise BadDeadline("is not an object", where=FIELD, fix=_FIX)
    given = {} if field is None else field
    for name in given:
        if name not in NAMES.values():
            raise BadDeadline(f"has no {str(name)[:40]!r}", where=FIELD, fix=_FIX)
    out = {}
    for key, name in NAMES.items():
        if given.get(name) is not None:
            out[key] = _number(given[name], f"{FIELD}.{name}")
    seen: set[str] = set()
    for raw, value in headers:
        for key, header in HEADERS.items():
            if raw.lower() == header.encode():
                if header in seen:
                    raise BadDeadline("is given twice", where=header)
                seen.add(header)
                out[key] = _header_number(value, header)
    return out


def asks(headers: Iterable[tuple[bytes, bytes]], body: Mapping[str, Any] | None = None) -> bool:
    names = {header.encode() for header in HEADERS.values()}
    return (body is not None and body.get(FIELD) is not None) or any(n.lower() in names for n, _ in headers)


_FIX: Final = 'write {"ttft_ms": 500, "tpot_ms": 50}'


def _header_number(value: bytes, header: str) -> float:
    text = value.decode("latin-1").strip()
    if not _PLAIN_NUMBER.fullmatch(text):
        raise BadDeadline(f"{text[:40]!r} is not a number of milliseconds", where=header)
    return _number(float(text), header)


def _number(value: Any, where: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise BadDeadline(f"{str(value)[:40]!r} is not a number of milliseconds", where=where)
    # Integers may be too long for a float, and comparisons with NaN are false.
    if not 0 < value <= LONGEST_MS:
        raise BadDeadline(f"{str(value)[:40]} ms is not above 0 and at most {LONGEST_MS:.0f} (a day)", where=where)
    return float(value)
