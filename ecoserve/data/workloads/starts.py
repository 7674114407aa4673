"""The requests of one class: drawing prompts, answers and texts, and making starts of them.

One row of uniform numbers is drawn per request, and one for its text, so that words draw no other lengths. Prompt and
response length are tied by a Gaussian copula (docs/guides/workloads.md). A *start* is a request, or a conversation with
all its turns. It depends on the class's name and the file's seed alone.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from ecoserve.data.laws import LONGEST
from ecoserve.data.measuring import estimated_tokens
from ecoserve.data.records import ASSISTANT, USER, Message, Record
from ecoserve.data.workloads.sources import Bools, Floats, Ints, Sources
from ecoserve.data.workloads.spec import Conversations, FittedCorrelation, Rows, TrafficClass
from ecoserve.data.workloads.texts import Templates, filler
from ecoserve.errors import TraceError

#: Requests that follow from one arrival, and when each comes (0 without arrivals); at least one.
Start = list[tuple[float, Record]]

#: Uniform numbers of a request: prompt, response, and one for filler in a conversation.
_OWN_DRAWS: Final = 3
#: Quantiles are asked for between this and 1 minus it.
_EDGE: Final = 2.0**-53
#: Starts drawn at once.
_BLOCK: Final = 2048


@dataclass(frozen=True, slots=True)
class Drawn:
    """Requests of one class, shape ``[n]`` each: tokens, whether the answer was cut off, texts, spare uniform draws."""

    prompt: Ints
    response: Ints
    cut: Bools
    texts: list[str] | None
    spare: Floats

    def __len__(self) -> int:
        return len(self.prompt)


class Drawer:
    """Requests of the class ``name``: what comes does not depend on how many are drawn at a time."""

    def __init__(self, name: str, traffic: TrafficClass, seed: int, sources: Sources) -> None:
        assert traffic.prompt is not None
        assert traffic.response is not None
        prompt, response = traffic.prompt, traffic.response
        self._name, self._traffic = name, traffic
        self._where, self._max_tokens = sources.where, response.max_tokens
        self._numbers, self._words = (np.random.default_rng([seed, i]) for i in (0, 1))
        self._templates = Templates(prompt.templates, prompt.words) if prompt.templates else None
        given = traffic.correlation
        self._correlation = sources.correlation(given.fitted) if isinstance(given, FittedCorrelation) else float(given)
        self._prompt = sources.quantiles(prompt.tokens, "prompt") if prompt.tokens is not None else None
        self._response = sources.quantiles(response.tokens, "response")

    def take(self, n: int) -> Drawn:
        draws = self._numbers.random((n, _OWN_DRAWS))
        at_prompt, at_response = _tied(draws[:, 0], draws[:, 1], self._correlation)
        asked = self._prompt(at_prompt)[0] if self._prompt is not None else None
        wanted, cut = self._response(at_response)
        texts: list[str] | None = None
        if self._templates is not None:
            texts, factors = [], np.ones(n)
            for i, row in enumerate(self._words.random((n, self._templates.draws)).tolist()):
                try:
                    text, factors[i] = self._templates.render(row, None if asked is None else int(asked[i]))
                except ValueError as error:
                    raise TraceError(str(error), where=self._where) from None
                texts.append(text)
            asked = np.array([estimated_tokens(text) for text in texts], dtype=np.int64)
            wanted = np.clip(np.rint(wanted * factors), 1, LONGEST).astype(np.int64)
        assert asked is not None  # a prompt has tokens or templates
        if (most := self._max_tokens) is not None:
            cut = (cut & (wanted <= most)) | (wanted > most)
            wanted = np.minimum(wanted, most)
        return Drawn(asked, wanted, cut, texts, draws[:, 2])

    def requests(self, n: int, times: Floats | None) -> Iterator[Start]:
        for block, when in _blocks(n, times):
            drawn = self.take(len(block))
            for i, at in enumerate(when):
                yield [(at or 0.0, self._record(block[i], drawn, i, at))]

    def talks(self, n: int, times: Floats | None, seed: int) -> Iterator[Start]:
        talks = self._traffic.conversations
        assert talks is not None
        turns = np.random.default_rng(seed_for(seed, f"{self._name}/turns"))
        thinking = np.random.default_rng(seed_for(seed, f"{self._name}/thinking"))
        for block, when in _blocks(n, times):
            counts = turns.geometric(1.0 / talks.turns, size=len(block))
            drawn = self.take(int(counts.sum()))
            normals = thinking.standard_normal(len(drawn)).tolist()
            ends = np.cumsum(counts).tolist()
            for number, at, count, end in zip(block, when, counts.tolist(), ends, strict=True):
                yield self._talk(talks, number, drawn, normals, range(end - count, end), at)

    def _talk(
        self, talks: Conversations, number: int, drawn: Drawn, normals: list[float], places: range, at: float | None
    ) -> Start:
        """A conversation whose turns were drawn at ``places``."""
        context, later, thinks = 0, 0.0, 0.0
        before: tuple[Message, ...] = ()
        requests: Start = []
        for turn, i in enumerate(places):
            answer, asked = int(drawn.response[i]), int(drawn.prompt[i])
            if turn and context + asked + answer > talks.max_context_tokens:
                break
            messages: tuple[Message, ...] = ()
            if drawn.texts is not None:
                before = (*before, Message(USER, drawn.texts[i]))
                messages = before if turn else ()
                before = (*before, Message(ASSISTANT, filler(answer, float(drawn.spare[i]))))
            when = None if at is None else at + later
            said = self._record(number, drawn, i, when, turn=turn, context=context, messages=messages)
            if talks.closed:
                said = replace(said, arrival_s=None if turn else at, think_s=thinks)
            requests.append((when or 0.0, said))
            # An open load waits for the time that an answer is taken to need, then for the person.
            thinks = talks.think_s * math.exp(talks.think_sigma * normals[i])
            later += thinks if talks.closed else talks.seconds_per_token * answer + thinks
            context += asked + answer
        return requests

    def _record(
        self,
        number: int,
        drawn: Drawn,
        i: int,
        at: float | None,
        *,
        turn: int = 0,
        context: int = 0,
        messages: tuple[Message, ...] = (),
    ) -> Record:
        """The request at place ``i`` of what was drawn, as a turn of the start ``number``, after ``context`` tokens."""
        cut = bool(drawn.cut[i])
        return Record(
            conversation=f"{self._name}-{number}",
            turn=turn,
            prompt=drawn.texts[i] if drawn.texts is not None else None,
            messages=messages,
            response_tokens=int(drawn.response[i]),
            prompt_tokens=context + int(drawn.prompt[i]),
            model=self._traffic.model,
            arrival_s=at,
            censored=cut,
            finish_reason="length" if cut else "stop",
            max_tokens=self._max_tokens,
        )


def _tied(first: Floats, second: Floats, correlation: float) -> tuple[Floats, Floats]:
    """Two independent uniform variables as two whose normals have ``correlation``; the first one stays as it is."""
    from scipy import special

    first, second = np.clip(first, _EDGE, 1 - _EDGE), np.clip(second, _EDGE, 1 - _EDGE)
    if correlation:
        normal = correlation * special.ndtri(first) + np.sqrt(1 - correlation**2) * special.ndtri(second)
        second = np.clip(special.ndtr(normal), _EDGE, 1 - _EDGE)
    return first, second


def seed_for(seed: int, purpose: str) -> int:
    """A seed for one purpose: what else is drawn does not change it."""
    return int(np.random.SeedSequence([seed, zlib.crc32(purpose.encode())]).generate_state(1, np.uint64)[0])


def starts_of(
    name: str, traffic: TrafficClass, n: int, seed: int, sources: Sources, times: Floats | None
) -> Iterator[Start]:
    """``n`` starts of the class ``name``, the i-th at ``times[i]`` (seconds; ``None``: without arrivals).

    Raises TraceError if a trace that it names cannot be used; while they are made, if a template cannot be rendered.
    """
    if traffic.rows is not None:
        records = sources.trace(traffic.rows).records
        return _from_rows(name, traffic.rows, traffic.model, n, records, seed_for(seed, f"{name}/rows"), times)
    drawer = Drawer(name, traffic, seed_for(seed, name), sources)
    return drawer.requests(n, times) if traffic.conversations is None else drawer.talks(n, times, seed)


def _blocks(n: int, times: Floats | None) -> Iterator[tuple[range, list[float | None]]]:
    """Numbers of starts, block by block, and when each comes."""
    for first in range(0, n, _BLOCK):
        block = range(first, min(n, first + _BLOCK))
        yield block, [None] * len(block) if times is None else times[block.start : block.stop].tolist()


def _from_rows(
    name: str, rows: Rows, model: str | None, n: int, records: Sequence[Record], seed: int, times: Floats | None
) -> Iterator[Start]:
    """``n`` of ``records`` as requests of the class: without putting back, until all were drawn, then again."""
    rng = np.random.default_rng(seed)
    order = (
        (records[i], f"#{again + 1}" if again else "")
        for again in range(-(-n // len(records)))
        for i in rng.permutation(len(records)).tolist()
    )
    for _, when in _blocks(n, times):
        for at in when:
            record, mark = next(order)
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
                arrival_s=at,
            )
            yield [(at or 0.0, moved)]
