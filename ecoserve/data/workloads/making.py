"""From a workload to a trace.

Rule: every class of requests has random numbers of its own, a row of them for each request, so that adding a class, or
asking for more requests, leaves the others as they are. A *start* is a request, or the first turn of a conversation;
rates and weights count requests, and where a class has conversations, there are that many fewer starts.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from ecoserve.data.arrivals import ThinkTime
from ecoserve.data.measuring import CHARACTERS_PER_TOKEN
from ecoserve.data.records import ASSISTANT, USER, LoadReport, Message, Record, Trace, fingerprint
from ecoserve.data.workloads.drawing import Drawn, draw_requests
from ecoserve.data.workloads.sources import Floats, Sources
from ecoserve.data.workloads.spec import Rows, TrafficClass, Workload
from ecoserve.data.workloads.texts import filler

FORMAT: Final = "workload"
#: ``length_source`` of what a law gave, ``prompt_length_source`` of what texts gave.
SYNTHETIC: Final = "synthetic"
_BY_CHARACTERS: Final = f"characters/{CHARACTERS_PER_TOKEN}"


#: Requests that follow from one arrival, with their seconds after it.
_Start = list[tuple[float, Record]]


def make_workload(workload: Workload, *, base: Path, where: str = "workload", limit: int | None = None) -> Trace:
    """The trace that ``workload`` describes, sorted by arrival.

    Args:
        workload: as read from a file.
        base: the folder that traces named in it are relative to.
        where: the file's name, which becomes :attr:`Trace.source`.
        limit: make only so many of its requests, the first ones.

    Raises:
        TraceError: if a trace that it names cannot be used, or a template cannot be rendered.
    """
    n = workload.requests if limit is None else min(limit, workload.requests)
    sources = Sources(base, where)
    classes = workload.traffic()
    turns = {name: each.conversations.turns if each.conversations else 1.0 for name, each in classes.items()}
    timed: list[tuple[float, Record]] = []
    lasting: list[Record] = []
    if any(each.arrivals is not None for each in classes.values()):
        for name, each in classes.items():
            assert each.arrivals is not None  # of all or of none
            starts = _starts(name, each, n, workload.seed, sources)
            seed = _seed(workload.seed, f"{name}/arrivals")
            timed += _placed(sources.arrivals(each.arrivals, n, seed, 1.0 / turns[name]), starts)
    else:
        weights = np.array([each.weight or 1.0 for each in classes.values()])
        weights = weights / weights.sum() / np.array(list(turns.values()))
        chosen = _choices(n, weights / weights.sum(), workload.seed)
        made = [
            iter(_starts(name, each, int((chosen == i).sum()), workload.seed, sources))
            for i, (name, each) in enumerate(classes.items())
        ]
        starts = [next(made[i]) for i in chosen]
        if workload.arrivals is None:
            lasting = [record for start in starts for _, record in start][:n]
        else:
            seed = _seed(workload.seed, "arrivals")
            timed = list(_placed(sources.arrivals(workload.arrivals, n, seed, float(weights.sum())), starts))
    if not lasting:
        timed.sort(key=lambda pair: pair[0])
        lasting = [replace(record, arrival_s=at) for at, record in timed[:n]]
    report = LoadReport(rows_in=len(lasting), kept=len(lasting))
    report.note("answers cut off", sum(r.censored for r in lasting))
    lengths, prompts = zip(*(_length_sources(each, sources) for each in classes.values()), strict=True)
    return Trace(
        tuple(lasting),
        where,
        FORMAT,
        fingerprint(lasting),
        ", ".join(sorted(set(lengths))),
        report,
        ", ".join(sorted(set(prompts))),
    )


def _seed(seed: int, purpose: str) -> int:
    """A seed for one purpose: what else is drawn does not change it."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1, np.uint64)[0])


def _choices(n: int, shares: Floats, seed: int) -> np.ndarray:
    """Which class each of ``n`` starts is of."""
    draws = np.random.default_rng(_seed(seed, "classes")).random(n)
    return np.minimum(np.searchsorted(np.cumsum(shares), draws, side="right"), len(shares) - 1)


def _placed(times: Floats, starts: list[_Start]) -> Iterator[tuple[float, Record]]:
    for at, start in zip(times.tolist(), starts, strict=True):
        for later, record in start:
            yield at + later, record


def _starts(name: str, traffic: TrafficClass, n: int, seed: int, sources: Sources) -> list[_Start]:
    """``n`` starts of the class ``name``."""
    if traffic.rows is not None:
        return _from_rows(name, traffic.rows, traffic.model, n, _seed(seed, f"{name}/rows"), sources)
    talks = traffic.conversations
    if talks is None:
        drawn = draw_requests(traffic, n, _seed(seed, name), sources)
        return [[(0.0, _record(name, i, traffic, drawn, i))] for i in range(n)]
    rng = np.random.default_rng(_seed(seed, f"{name}/turns"))
    counts = rng.geometric(1.0 / talks.turns, size=n)
    drawn = draw_requests(traffic, int(counts.sum()), _seed(seed, name), sources)
    normals = np.random.default_rng(_seed(seed, f"{name}/thinking")).standard_normal(len(drawn))
    ends = np.cumsum(counts).tolist()
    return [
        _talk(name, i, traffic, drawn, normals, range(end - count, end))
        for i, (count, end) in enumerate(zip(counts.tolist(), ends, strict=True))
    ]


def _record(name: str, number: int, traffic: TrafficClass, drawn: Drawn, at: int) -> Record:
    """The request at place ``at`` of what was drawn, as the start ``number`` of its class."""
    cut = bool(drawn.cut[at])
    return Record(
        conversation=f"{name}-{number}",
        prompt=drawn.texts[at] if drawn.texts is not None else None,
        response_tokens=int(drawn.response[at]),
        prompt_tokens=int(drawn.prompt[at]),
        model=traffic.model,
        censored=cut,
        finish_reason="length" if cut else "stop",
        max_tokens=traffic.response.max_tokens if traffic.response else None,
    )


def _talk(name: str, number: int, traffic: TrafficClass, drawn: Drawn, normals: Floats, places: range) -> _Start:
    """A conversation whose turns were drawn at ``places``."""
    talks = traffic.conversations
    assert talks is not None
    think = ThinkTime(talks.think_s, talks.think_sigma, talks.seconds_per_token)
    context, later = 0, 0.0
    before: tuple[Message, ...] = ()
    requests: _Start = []
    for turn, at in enumerate(places):
        record = _record(name, number, traffic, drawn, at)
        answer = record.response_tokens or 0
        asked = context + (record.prompt_tokens or 0)
        if turn and asked + answer > talks.max_context_tokens:
            break
        messages: tuple[Message, ...] = ()
        if record.prompt is not None:
            before = (*before, Message(USER, record.prompt))
            messages = before if turn else ()
            before = (*before, Message(ASSISTANT, filler(answer, float(drawn.spare[at]))))
        requests.append((later, replace(record, turn=turn, prompt_tokens=asked, messages=messages)))
        later += think.pause_s(float(normals[at]), answer)
        context = asked + answer
    return requests


def _from_rows(name: str, rows: Rows, model: str | None, n: int, seed: int, sources: Sources) -> list[_Start]:
    """``n`` records of a trace: without putting back, until all have been drawn, then again."""
    records = sources.trace(rows).records
    rng = np.random.default_rng(seed)
    starts: list[_Start] = []
    for again in range(-(-n // len(records))):
        mark = f"#{again + 1}" if again else ""
        for i in rng.permutation(len(records))[: n - len(starts)].tolist():
            record = records[i]
            wanted = record.response_tokens or 1
            cut = rows.max_tokens is not None and wanted > rows.max_tokens
            moved = replace(
                record,
                conversation=f"{name}-{record.conversation}{mark}",
                response_tokens=rows.max_tokens if cut else wanted,
                censored=record.censored or cut,
                finish_reason="length" if cut else record.finish_reason,
                max_tokens=rows.max_tokens or record.max_tokens,
                model=record.model or model,
                arrival_s=None,
            )
            starts.append([(0.0, moved)])
    return starts


def _length_sources(traffic: TrafficClass, sources: Sources) -> tuple[str, str]:
    if traffic.rows is not None:
        trace = sources.trace(traffic.rows)
        return trace.length_source, trace.prompt_length_source
    by_text = traffic.prompt is not None and traffic.prompt.templates is not None
    return SYNTHETIC, _BY_CHARACTERS if by_text else SYNTHETIC
