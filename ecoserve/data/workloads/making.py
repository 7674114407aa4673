"""From a workload to its requests, made as they are asked for, by arrival.

Every class of requests has random numbers of its own, a row of them for each request, so that another class or more
requests leave the others as they are. Rates and weights count requests; a class with conversations has that many fewer
starts. In memory are the later turns of conversations that have begun.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from ecoserve.data.formats.records import header
from ecoserve.data.measuring import BY_CHARACTERS
from ecoserve.data.records import LoadReport, Record, Trace
from ecoserve.data.workloads import servegen
from ecoserve.data.workloads.sources import Floats, Sources
from ecoserve.data.workloads.spec import TrafficClass, Workload, read_workload
from ecoserve.data.workloads.starts import Start, seed_for, starts_of

#: ``length_source`` of what a law gave.
SYNTHETIC: Final = "synthetic"
#: From so many requests on, a bar shows how far it is.
_MANY: Final = 20_000


class Making(NamedTuple):
    """A workload being made: its ``n`` requests, once, sorted by arrival, and where their lengths come from."""

    records: Iterator[Record]
    n: int
    length_source: str
    prompt_length_source: str


def workload_rows(path: str | Path, limit: int | None = None, *, shown: bool = False) -> Iterator[dict[str, Any]]:
    """The requests of a workload file (its first ``limit``) as rows of our own trace format, made when asked for.

    ``shown``: show a bar on stderr, if that is a terminal and there are many. Raises TraceError naming the key that is
    wrong, or what cannot be made.
    """
    made = make_workload(read_workload(path), base=Path(path).resolve().parent, where=str(path), limit=limit)
    # The first line of such a trace; what the records hash to is known only after the last one.
    yield header(Trace((), str(path), "workload", "", made.length_source, LoadReport(), made.prompt_length_source))
    records: Iterable[Record] = made.records
    if shown and made.n >= _MANY:
        from rich.console import Console
        from rich.progress import track

        bar = Console(stderr=True)
        records = track(records, "making requests", made.n, console=bar, transient=True, disable=not bar.is_terminal)
    for record in records:
        yield record.as_row()


def make_workload(workload: Workload, *, base: Path, where: str = "workload", limit: int | None = None) -> Making:
    """What ``workload`` describes (its first ``limit`` requests), made while it is read.

    Traces named in it are relative to ``base``; ``where`` is the file's name, for messages. Raises TraceError if a
    trace that it names cannot be used; while records are read, if a template cannot be rendered.
    """
    n = workload.requests if limit is None else min(limit, workload.requests)
    sources = Sources(base, where)
    if (clients := workload.servegen) is not None:
        found = servegen.read_clients(sources.located(clients.clients), where)
        asked = clients.model_dump(exclude={"clients"})
        return Making(servegen.requests(found, n, workload.seed, **asked), n, SYNTHETIC, SYNTHETIC)
    classes = workload.traffic()
    own = any(each.arrivals is not None for each in classes.values())
    records = _with_own_arrivals(workload, classes, n, sources) if own else _mixed(workload, classes, n, sources)
    lengths, prompts = zip(*(_length_sources(each, sources) for each in classes.values()), strict=True)
    return Making(islice(records, n), n, ", ".join(sorted(set(lengths))), ", ".join(sorted(set(prompts))))


def _with_own_arrivals(
    workload: Workload, classes: dict[str, TrafficClass], n: int, sources: Sources
) -> Iterator[Record]:
    streams = []
    for k, (name, each) in enumerate(classes.items()):
        assert each.arrivals is not None  # of all or of none
        seed = seed_for(workload.seed, f"{name}/arrivals")
        times = sources.arrivals(each.arrivals, n, seed, 1.0 / _turns(each))
        starts = starts_of(name, each, n, workload.seed, sources, times)
        streams.append((start[0][0], number, start) for number, start in enumerate(starts, k * n))
    return _by_arrival(heapq.merge(*streams))


def _mixed(workload: Workload, classes: dict[str, TrafficClass], n: int, sources: Sources) -> Iterator[Record]:
    weights = np.array([(each.weight or 1.0) / _turns(each) for each in classes.values()])
    share = float(weights.sum() / sum(each.weight or 1.0 for each in classes.values()))
    draws = np.random.default_rng(seed_for(workload.seed, "classes")).random(n)
    edges = np.cumsum(weights / weights.sum())
    # The class of each start.
    chosen = np.minimum(np.searchsorted(edges, draws, side="right"), len(weights) - 1)
    times: Floats | None = None
    if workload.arrivals is not None:
        times = sources.arrivals(workload.arrivals, n, seed_for(workload.seed, "arrivals"), share)
    made = []
    for k, (name, each) in enumerate(classes.items()):
        mine = chosen == k
        of_mine = None if times is None else times[mine]
        made.append(starts_of(name, each, int(mine.sum()), workload.seed, sources, of_mine))
    starts = (next(made[k]) for k in chosen)
    if times is None:
        return (record for start in starts for _, record in start)
    return _by_arrival((start[0][0], number, start) for number, start in enumerate(starts))


def _turns(traffic: TrafficClass) -> float:
    return traffic.conversations.turns if traffic.conversations else 1.0


def _by_arrival(starts: Iterable[tuple[float, int, Start]]) -> Iterator[Record]:
    """All requests of starts that come in order of time and number, further turns put in where they belong."""
    later: list[tuple[float, int, int, Record]] = []
    for at, number, start in starts:
        while later and later[0][:2] < (at, number):
            yield heapq.heappop(later)[3]
        yield start[0][1]
        for turn, (when, record) in enumerate(start[1:], 1):
            heapq.heappush(later, (when, number, turn, record))
    while later:
        yield heapq.heappop(later)[3]


def _length_sources(traffic: TrafficClass, sources: Sources) -> tuple[str, str]:
    if traffic.rows is not None:
        trace = sources.trace(traffic.rows)
        return trace.length_source, trace.prompt_length_source
    by_text = traffic.prompt is not None and traffic.prompt.templates is not None
    return SYNTHETIC, BY_CHARACTERS if by_text else SYNTHETIC
