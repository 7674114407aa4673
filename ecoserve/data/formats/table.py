"""Rows that are one request each, read by the table of known fields: CSV, JSON lines, exports of any tool.

Which field is what, and the units of its times, is decided by the first rows of a file together
(:class:`TableReader`). Formats of this kind are what :func:`table` makes: fields that tell them, the unit that they
have, and, where a row holds several requests, how it is taken apart. A field without a meaning is named in the report.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeVar

from ecoserve.data import known_fields as known
from ecoserve.data.fields import Row, blank, number, text_or_none, unusable_text, was_cut_off, whole
from ecoserve.data.formats.base import NO_TIME, Exchange, Exchanges, Format, Hints, Reject, checked, has_fields
from ecoserve.data.formats.conversations import ChatMessage, Context, read_message
from ecoserve.data.known_fields import NAMES, Clock, meanings_of, plain_name
from ecoserve.data.measuring import BY_CHARACTERS, CHARACTERS_PER_TOKEN
from ecoserve.data.records import ASSISTANT, LOCAL_TIMES, PREFIX_BLOCK, SYSTEM, USER, Message, Record

Path = tuple[str, ...]
T = TypeVar("T")

#: What a row of a file with several requests a row becomes.
Unwrap = Callable[[Row, int], Iterable[Row | Reject]]
#: Field of an unwrapped row: what its answer's tokens were counted by, where they were not counted.
COUNTED_BY: Final = "ecoserve_counted_by"
#: What pandas calls the numbers of its rows.
_ROW_NUMBERS: Final = ("", "index", "unnamed:_0", COUNTED_BY)
#: What exports write into a field that holds nothing; the second ones may also be a short answer.
_NOTHING: Final = frozenset(("", "{}", "[]"))
_NULLS: Final = frozenset(("null", "none", "nan", "nat", "\\n", "<na>"))
_DEPTH: Final = 4
#: Parents that are remembered; an older one begins a conversation anew.
_PARENTS: Final = 1 << 18
_NO_PARENT: Final = frozenset(("", "-1", "none", "null"))
_FAILED: Final = frozenset(("failure", "failed", "error", "errored", "fail"))
#: What is no generation of text, in a row's kind.
_OTHERS: Final = ("embedding", "image", "speech", "transcription", "rerank", "moderation")
_SPANS: Final = frozenset(
    ("span", "event", "trace", "tool", "agent", "chain", "retriever", "evaluator", "guardrail", "parser", "prompt")
)
#: Fields of traced spans, whose ``type`` may be no generation.
_OF_SPANS: Final = frozenset(("trace_id", "span_id", "run_id", "parent_observation_id"))
_COUNTS: Final = ("response_tokens", "prompt_tokens", "thinking_tokens", "total_tokens")
_SAID: Final = ("prompt", "response", "system", "thinking")
_TRUE: Final = frozenset(("true", "1", "1.0", "yes"))
#: What is read beside the texts of a format that has them itself.
_BESIDE: Final = (*_COUNTS, "cached_tokens", "arrival", "time_unit", "session", "model", "max_tokens")
#: Of a table without texts.
_NO_ANSWER: Final = ChatMessage(ASSISTANT, None, None, None, {})


@dataclass(frozen=True, slots=True)
class Convention:
    """What a format has without stating it.

    ``per_second``: units of its times in a second; ``certain``: it has no other. ``block``: tokens of a block of
    prefix hashes. ``unwrap``: a row's requests, as rows of known fields. ``local_times``: times count from a session's
    start.
    """

    per_second: float | None = None
    certain: bool = False
    block: int | None = None
    unwrap: Unwrap | None = None
    local_times: bool = False


class Found(NamedTuple):
    """What a row states beside its texts: fields of a record, its arrival in seconds, its session."""

    values: Mapping[str, Any]
    arrival_s: float | None
    session: str | None


def walk(row: Mapping[Any, Any], before: Path = ()) -> Iterator[tuple[Path, Any]]:
    """The values of ``row`` and of the objects in it, also of those written as JSON text, each with its path."""
    for name, value in row.items():
        if not isinstance(name, str):
            continue
        path = (*before, name)
        inner = parsed(value) if plain_name(name) in known.OBJECTS else value
        said = any(meaning in _SAID or meaning == "error" for meaning, _ in meanings_of(path))
        if isinstance(inner, Mapping) and inner and len(path) < _DEPTH and not said:
            yield from walk(inner, path)
        else:
            yield path, value


def parsed(value: object) -> object:
    """A list or an object written as JSON text, as what it is; else ``value``."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def empty(value: object, *, text: bool = False) -> bool:
    """Whether a field holds nothing, as exports write that; ``text``: it is for a text, which may be ``None``."""
    if isinstance(value, str):
        word = value.strip() if len(value) < 8 or value.isspace() else value
        return word in _NOTHING or (not text and word.lower() in _NULLS)
    return value is None or (isinstance(value, list | dict) and not value) or value != value


def at(row: Mapping[str, Any], path: Path) -> Any:
    value: Any = row
    for step in path:
        value = parsed(value)
        value = value.get(step) if isinstance(value, Mapping) else None
    return value


class TableReader:
    """Reads rows whose first ones are ``rows``, or, with ``beside``, what they state beside texts (:meth:`beside`).

    ``stated`` says how times and blocks are read, ``guesses`` what of that the file does not say. Rows are read in the
    order of the file: chains of parents are followed.
    """

    def __init__(
        self, rows: Sequence[Row], hints: Hints, convention: Convention | None = None, *, beside: bool = False
    ) -> None:
        self._convention, self._hints = convention or Convention(), hints
        self._meanings = frozenset(_BESIDE) if beside else NAMES.keys()
        self.stated: list[str] = []
        self.guesses: list[str] = []
        self.length_source: str | None = None
        self._columns: dict[str, list[Path]] = {}
        self._names: set[str] = set()
        self._parents: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._awaited: OrderedDict[str, None] = OrderedDict()
        self._notes: tuple[str, ...] = ()
        taken = [r for i, row in enumerate(rows) for r in self._unwrapped(row, i) if not isinstance(r, Reject)]
        self._arrange(taken)
        self._clocks: dict[str, Clock] = {}
        for meaning in ("arrival", "think"):
            if meaning in self._columns:
                self._clocks[meaning] = self._clock(meaning, taken)
        self._first_turn = self._lowest_turn(taken)
        self._block = self._block_size(taken)
        if self._convention.local_times and "arrival" in self._columns:
            self.stated.append(LOCAL_TIMES)
        if any(COUNTED_BY in row for row in taken):
            self.guesses.append("tokens of answers are their chunks, of which one may hold several: ask for usage")
        if (lost := self._lost_sessions(taken)) is not None:
            self.guesses.append(lost)

    def _lost_sessions(self, rows: Sequence[Row]) -> str | None:
        """Why sessions that the file has cannot be found in it."""
        if "parent" in self._columns:
            named = "request" in self._columns
            return None if named else "parents are named, and no field names the requests: sessions cannot be followed"
        if len({v for v in self._values(rows, "turn") if whole(v) is not None}) <= 1:
            return None
        sessions = list(map(str, self._values(rows, "session")))
        several = len(set(sessions)) < len(sessions)
        return None if several else "turns are numbered, and no field says which session they belong to"

    @property
    def columns(self) -> Mapping[str, list[Path]]:
        return self._columns

    def _unwrapped(self, row: Row, index: int) -> Iterable[Row | Reject]:
        return (row,) if self._convention.unwrap is None else self._convention.unwrap(row, index)

    def _arrange(self, rows: Sequence[Row]) -> None:
        """Find what each field is: by its name, and by values that can be that."""
        values: dict[Path, list[Any]] = {}
        for row in rows:
            self._names.update(n for n in row if isinstance(n, str))
            for path, value in walk(row):
                some = values.setdefault(path, [])
                if not empty(value):
                    some.append(value)
        ranked: dict[str, list[tuple[bool, int, Path]]] = {}
        for path, some in values.items():
            for meaning, place in meanings_of(path):
                if meaning not in self._meanings:
                    continue
                if meaning in ("prompt", "response") and some and all(whole(v) is not None for v in some):
                    # "input" and "output" of numbers are counts.
                    meaning, place = f"{meaning}_tokens", len(NAMES[f"{meaning}_tokens"])
                    self.guesses.append(f"{'.'.join(path)} taken as tokens, since it holds whole numbers")
                fits = not some or meaning not in _COUNTS or any(_count(v) is not None for v in some)
                ranked.setdefault(meaning, []).append((not (fits and some), place, path))
        self._columns = {meaning: [path for *_, path in sorted(found)] for meaning, found in ranked.items()}
        for meaning in ("response_tokens", "prompt_tokens"):
            lone = [p for p in self._columns.get(meaning, ()) if len(p) == 1 and "tokens_" not in plain_name(p[0])]
            for one, other in pairwise(lone):
                if values[other] and values[one] and list(map(_count, values[one])) != list(map(_count, values[other])):
                    what = "the answer's" if meaning == "response_tokens" else "the prompt's"
                    self.guesses.append(f"{one[0]} and {other[0]} both look like {what} tokens: {one[0]} is used")
        if "parent" in self._columns:
            # A name of the request alone is no session.
            requests = self._columns.get("request", [])
            sessions = [path for path in self._columns.pop("session", []) if path not in requests]
            if sessions:
                self._columns["session"] = sessions
                del self._columns["parent"]
        used = {path[0] for paths in self._columns.values() for path in paths}
        names = [n for n in dict.fromkeys(path[0] for path in values) if n not in used]
        unused = ", ".join(n for n in names if plain_name(n) not in _ROW_NUMBERS)
        self._notes = (f"with unused columns ({unused})",) if unused else ()
        self._counts_answers = bool({"response_tokens", "response_characters", "total_tokens"} & self._columns.keys())
        self._judges = bool({"kind", "status", "error", "requests"} & self._columns.keys())
        if "response_tokens" not in self._columns and "response_characters" in self._columns:
            self.length_source = f"{BY_CHARACTERS} of {'.'.join(self._columns['response_characters'][0])}"

    def _values(self, rows: Sequence[Row], meaning: str) -> list[Any]:
        path = self._columns.get(meaning, [None])[0]
        return [v for v in (at(r, path) for r in rows) if not empty(v)] if path else []

    def _clock(self, meaning: str, rows: Sequence[Row]) -> Clock:
        column = ".".join(self._columns[meaning][0])
        stated = {known.UNIT_NAMES.get(str(v).strip().lower()) for v in self._values(rows, "time_unit")}
        beside = {at(r, (*self._columns[meaning][0][:-1], "unit")) for r in rows[:1]} if "value" in column else set()
        stated |= {known.UNIT_NAMES.get(str(v).lower()) for v in beside if v is not None}
        given = self._hints.per_second if meaning == "arrival" else 0.0
        values = self._values(rows, meaning)
        within = meaning == "arrival" and self._convention.local_times
        if within:  # sessions' own clocks: what they tell is how long apart turns are
            at_of = [(self._one(r, "session"), number(self._one(r, "arrival"))) for r in rows]
            values = [b - a for (s, a), (t, b) in pairwise(at_of) if s == t and a is not None and b is not None]
        clock = known.clock_of(
            column,
            values,
            given=given or (stated.pop() if len(stated) == 1 else None) or None,
            usual=self._convention.per_second,
            certain=self._convention.certain,
            durations=meaning == "think" or within,
        )
        if self._values(rows, meaning):
            self.stated.append(f"{'arrivals' if meaning == 'arrival' else 'waits between turns'}: {clock.how}")
            if clock.guess is not None:
                self.guesses.append(clock.guess)
        return clock

    def _lowest_turn(self, rows: Sequence[Row]) -> int:
        turns = [t for t in map(whole, self._values(rows, "turn")) if t is not None]
        from_0 = "turn" in self._columns and "index" in plain_name(self._columns["turn"][0][-1])
        return 1 if turns and min(turns) == 1 and not from_0 else 0

    def _block_size(self, rows: Sequence[Row]) -> int:
        if "prefix_hashes" not in self._columns:
            return PREFIX_BLOCK
        stated = [n for n in map(whole, self._values(rows, "block_size")) if n]
        if stated and len(set(stated)) == 1:
            self.stated.append(f"prefix hashes: blocks of {stated[0]} tokens, as stated")
            return stated[0]
        pairs = []
        for row in rows:
            hashes, tokens = parsed(self._one(row, "prefix_hashes")), whole(self._one(row, "prompt_tokens"))
            if isinstance(hashes, list) and hashes and tokens:
                pairs.append((tokens, len(hashes)))
        usual = self._convention.block
        block = known.block_of(pairs, usual)
        if not pairs and usual is None:
            self.guesses.append(f"prefix hashes: blocks of {PREFIX_BLOCK} tokens, no prompt's length says how many")
            return PREFIX_BLOCK
        if block is None:
            self.guesses.append(
                f"prefix hashes: blocks of {usual or PREFIX_BLOCK} tokens, which prompts' lengths contradict: "
                "name a field block_size"
            )
            return usual or PREFIX_BLOCK
        if pairs:
            self.stated.append(f"prefix hashes: blocks of {block} tokens, by prompts' lengths")
        return block

    def _one(self, row: Row, meaning: str) -> Any:
        """The first field of ``meaning`` that holds something in ``row``; of counts, the first that is not 0."""
        text, counts, found = meaning in _SAID, meaning in _COUNTS, None
        for path in self._columns.get(meaning, ()):
            if not empty(value := row.get(path[0]) if len(path) == 1 else at(row, path), text=text):
                if not counts or _count(value) != 0:
                    return value
                found = value
        return found

    def read(self, row: Row, index: int) -> Exchanges:
        for number_in_row, one in enumerate(self._unwrapped(row, index)):
            if isinstance(one, Reject):
                yield one
                continue
            if not self._names.issuperset(one):
                # A field that the first rows did not have.
                self._arrange_more(one)
            name = f"row-{index}" if self._convention.unwrap is None else f"row-{index}-{number_in_row}"
            yield from self._requests(one, name)

    def finish(self) -> Exchanges:
        return ()

    def _arrange_more(self, row: Row) -> None:
        self._names.update(n for n in row if isinstance(n, str))
        for path, _ in walk(row):
            for meaning, _ in meanings_of(path):
                if meaning not in self._meanings or path in (paths := self._columns.get(meaning, [])):
                    continue
                self._columns[meaning] = [*paths, path]
                if meaning in ("arrival", "think") and not paths:
                    self._clocks[meaning] = self._clock(meaning, [row])

    def _requests(self, row: Row, name: str) -> Exchanges:
        if self._judges and (problem := self._not_one(row)) is not None:
            return [Reject(problem)]
        several = self._one(row, "response_tokens" if "response_tokens" in self._columns else "response_characters")
        if self._hints.expands and isinstance(several, list):
            return [self._request(self._sample(row, k), name, sample=k) for k in range(len(several))]
        return [self._request(row, name)]

    def _sample(self, row: Row, k: int) -> Row:
        """The row of the ``k``-th of several answers: lists of lengths hold one entry each; a text is the first's."""
        one = dict(row)
        for meaning in ("response_tokens", "response_characters", "thinking_tokens", "thinking_characters"):
            for path in self._columns.get(meaning, ()):
                if len(path) == 1 and isinstance(values := row.get(path[0]), list):
                    one[path[0]] = values[k] if k < len(values) else None
        for path in self._columns.get("response", ()) if k else ():
            one[path[0]] = None
        return one

    def _not_one(self, row: Row) -> str | None:
        """Why the row is no request that was answered, if it is none."""
        kind = self._one(row, "kind")
        if isinstance(kind, str):
            name = plain_name(self._columns["kind"][0][-1])
            traced = name != "type" or not _OF_SPANS.isdisjoint(map(plain_name, self._names))
            if any(o in kind.lower() for o in _OTHERS) if name == "call_type" else traced and kind.lower() in _SPANS:
                return f"not a generation of text ({kind.lower()})"
        status, error = self._one(row, "status"), self._one(row, "error")
        code = whole(status)
        if (isinstance(status, str) and status.strip().lower() in _FAILED) or (code is not None and code >= 400):
            return "failed request"
        if error is not None and error is not False and str(error).strip().lower() not in ("0", "false"):
            return "failed request"
        if (many := whole(self._one(row, "requests"))) is not None and many > 1:
            return "a sum over several requests"
        return None

    def _request(self, row: Row, name: str, sample: int | None = None) -> Exchange | Reject:
        if isinstance(counts := self._counts(row), str):
            return Reject(counts)
        if isinstance(lengths := checked(*counts[:2]), str):
            return Reject(lengths)
        if isinstance(asked := self._asked(row, counted=lengths.response is not None), str):
            return Reject(asked)
        if isinstance(hashes := self._hashes(row), str):
            return Reject(hashes)
        if isinstance(times := self._times(row), str):
            return Reject(times)
        (text, messages), (arrival, think, notes) = asked, times
        said = self._answer(row) if "response" in self._columns else _NO_ANSWER
        answer = said.answer
        if lengths.response is not None and (answer is None or not str(answer).strip()):
            answer = None
        reason = text_or_none(self._one(row, "finish_reason"))
        cancelled = str(self._one(row, "cancelled") or "").strip().lower() in _TRUE
        limit = whole(self._one(row, "max_tokens"))
        conversation, turn, counts_turn = self._place(row, name)
        record = Record(
            conversation,
            turn=turn,
            prompt=text,
            messages=messages,
            response_tokens=lengths.response,
            prompt_tokens=lengths.prompt,
            model=text_or_none(self._one(row, "model")),
            arrival_s=arrival,
            split=text_or_none(self._one(row, "split")),
            censored=cancelled or was_cut_off(reason, said.text),
            sample=sample if sample is not None else max(0, whole(self._one(row, "sample")) or 0),
            finish_reason=reason,
            max_tokens=limit if limit is not None and limit >= 1 else None,
            prefix_hashes=hashes,
            prefix_block_tokens=self._block if hashes else PREFIX_BLOCK,
            thinking_tokens=counts[2],
            think_s=think,
        )
        missing = said.missing or (lengths.missing if self._counts_answers or said is _NO_ANSWER else None)
        return Exchange(record, answer, row, notes, missing, counts_turn, named=conversation != name)

    def beside(self, row: Row) -> Found | str:
        """What ``row`` states beside texts, or why it is no time."""
        if isinstance(counts := self._counts(row), str):
            return counts
        if isinstance(times := self._times(row), str):
            return times
        prompt, response, thinking = counts
        lengths = {"prompt_tokens": _count(prompt), "response_tokens": _count(response), "thinking_tokens": thinking}
        values: dict[str, Any] = {n: v for n, v in lengths.items() if v}
        limit = whole(self._one(row, "max_tokens"))
        values |= {"max_tokens": limit} if limit is not None and limit >= 1 else {}
        values |= {"model": model} if (model := text_or_none(self._one(row, "model"))) else {}
        return Found(values, times[0], _name(self._one(row, "session")))

    def _times(self, row: Row) -> tuple[float | None, float | None, tuple[str, ...]] | str:
        """Arrival, the wait before it, and what is noted."""
        found: list[float | None] = []
        for meaning in ("arrival", "think"):
            value = self._one(row, meaning) if meaning in self._clocks else None
            found.append(None if value is None else self._clocks[meaning].seconds(value))
            if value is not None and found[-1] is None:
                return NO_TIME if meaning == "arrival" else "the wait before it is not a time"
        if found[0] is None and "arrival" in self._clocks and "think" not in self._clocks:
            return found[0], found[1], (*self._notes, "without an arrival, in a trace that has them")
        return found[0], found[1], self._notes

    def _counts(self, row: Row) -> tuple[object, object, int | None] | str:
        """Tokens of prompt, response and thinking; the first two as they are found where they are no numbers."""
        found = {meaning: self._one(row, meaning) for meaning in _COUNTS}
        for side in ("prompt", "response"):
            if f"{side}_ids" not in self._columns:
                continue
            ids, stated = parsed(self._one(row, f"{side}_ids")), found[f"{side}_tokens"]
            if isinstance(ids, list):
                if stated is not None and whole(stated) != len(ids):
                    return "token ids and counts disagree"
                found[f"{side}_tokens"] = len(ids)
        prompt, response, thinking, total = (_count(found[m]) for m in ("prompt_tokens", *_COUNTS[:1], *_COUNTS[2:]))
        unit = str(self._one(row, "count_unit") or "").lower() if "count_unit" in self._columns else ""
        if "response_tokens" not in self._columns and "response_characters" in self._columns:
            response = self._characters(row, "response_characters")
            thinking = thinking or self._characters(row, "thinking_characters") or None
            if response is not None and "answer" in plain_name(self._columns["response_characters"][0][-1]):
                response += thinking or 0
            found["response_tokens"] = response
        elif unit.startswith("char"):
            self.length_source = self.length_source or f"{BY_CHARACTERS}, the unit that is stated"
            prompt, response = (None if n is None else _by_characters(n) for n in (prompt, response))
            found["prompt_tokens"], found["response_tokens"] = prompt, response
        if total is None and not thinking and "cached_tokens" not in self._columns:
            return found["prompt_tokens"], found["response_tokens"], thinking
        asked, answered = (self._column_used(row, f"{side}_tokens") for side in ("prompt", "response"))
        beside = self._column_used(row, "thinking_tokens")
        settled = known.settled(
            prompt,
            response,
            thinking,
            total,
            known.cached_in({path[-1]: _count(at(row, path)) for path in self._columns.get("cached_tokens", ())}),
            cache_apart=known.leaves_out_cache(asked),
            thinking_apart=known.leaves_out_thinking(answered, beside),
        )
        return (
            found["prompt_tokens"] if prompt is None else settled.prompt,
            found["response_tokens"] if response is None and settled.response is None else settled.response,
            settled.thinking,
        )

    def _column_used(self, row: Row, meaning: str) -> str:
        return next((p[-1] for p in self._columns.get(meaning, ()) if not empty(at(row, p))), "")

    def _characters(self, row: Row, meaning: str) -> int | None:
        count = whole(self._one(row, meaning))
        return None if count is None or count < 0 else _by_characters(count)

    def _asked(self, row: Row, *, counted: bool) -> tuple[str | None, tuple[Message, ...]] | str:
        """The prompt's text and the whole context, or why they are unusable."""
        if "prompt" not in self._columns:
            return None, ()
        value = self._one(row, "prompt")
        if value is None and counted:
            return None, ()
        chat = parsed(value)
        if isinstance(chat, dict):
            chat = next((chat[n] for n in ("messages", "input", "prompt") if isinstance(chat.get(n), list)), [chat])
        if isinstance(chat, list) and chat and all(isinstance(m, dict) and "role" in m for m in chat):
            context = Context()
            for message in chat:
                context.add(read_message(message))
            problem = context.problem()
            if problem is not None:
                return (None, ()) if counted else problem
            last = context.messages[-1].content
            lone = len(context.messages) == 1 and context.messages[0].role == USER
            return last, () if lone else tuple(context.messages)
        raw = next((r for p in self._columns["prompt"] if (r := at(row, p)) is not None), None)
        if problem := unusable_text(raw if value is None else value, "prompt"):
            return (None, ()) if counted and not isinstance(value, str) else problem
        system = text_or_none(self._one(row, "system"))
        both = (Message(SYSTEM, system), Message(USER, str(value))) if system else ()
        return str(value), both

    def _answer(self, row: Row) -> ChatMessage:
        value, thought = self._one(row, "response"), text_or_none(self._one(row, "thinking"))
        inner = parsed(value)
        if isinstance(inner, dict) and isinstance(inner.get("choices"), list) and inner["choices"]:
            first = inner["choices"][0]
            inner = first.get("message", first) if isinstance(first, dict) else inner
        if isinstance(inner, list) and inner and all(isinstance(m, dict) and "role" in m for m in inner):
            inner = inner[-1]
        if isinstance(inner, dict) and ("content" in inner or "role" in inner):
            return read_message({"role": ASSISTANT, **inner})
        if isinstance(value, dict | list):
            return ChatMessage(ASSISTANT, None, None, "answer is not text", {})
        if value is None:  # spaces are an empty answer, nothing is none
            value = next((r for p in self._columns.get("response", ()) if blank(r := row.get(p[0])) and r), None)
        return read_message({"role": ASSISTANT, "content": value, "reasoning": thought})

    def _hashes(self, row: Row) -> tuple[int, ...] | str:
        if "prefix_hashes" not in self._columns:
            return ()
        found = parsed(next((v for p in self._columns["prefix_hashes"] if (v := at(row, p)) is not None), None))
        if found is None:
            return ()
        if not isinstance(found, list | tuple):
            return "hash_ids are not a list of numbers"
        if set(map(type, found)) <= {int}:
            return tuple(found)
        hashes = tuple(whole(h) if not isinstance(h, str) else hash_of(h) for h in found)
        kept = tuple(h for h in hashes if h is not None)
        return kept if len(kept) == len(hashes) else "hash_ids are not a list of numbers"

    def _place(self, row: Row, name: str) -> tuple[str, int, bool]:
        """Conversation and turn, and whether its turns are to be counted along the file."""
        stated = whole(self._one(row, "turn"))
        turn = stated - self._first_turn if stated is not None and stated >= self._first_turn else None
        request = _name(self._one(row, "request"))
        if "parent" in self._columns:
            parent = _name(self._one(row, "parent"))
            root, depth = request or name, 0
            if parent is not None and parent.lower() not in _NO_PARENT:
                if parent not in self._parents:
                    _add(self._awaited, parent, None)
                root, before = self._parents.get(parent, (parent, -1 if turn is None else turn - 1))
                depth = before + 1
            if request in self._awaited:
                self.guesses.append("requests come after those that follow them: sort the file by time")
                self._awaited.clear()
            _add(self._parents, request or name, (root, depth))
            return root, depth if turn is None else turn, False
        session = _name(self._one(row, "session"))
        counts = session is not None and turn is None
        return session or request or name, turn or 0, counts


def _add(kept: OrderedDict[str, T], name: str, value: T) -> None:
    kept[name] = value
    if len(kept) > _PARENTS:
        kept.popitem(last=False)


def _by_characters(count: int) -> int:
    return max(1, round(min(count, 2**53) / CHARACTERS_PER_TOKEN)) if count > 0 else count


def _count(value: object) -> int | None:
    if isinstance(value, list):
        return None if not value else whole(value[0])
    return whole(value)


def hash_of(text: str) -> int:
    """A prefix hash that is a text, as a number."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=7).digest(), "little")


def _name(value: object) -> str | None:
    return None if value is None or isinstance(value, list | dict) else text_or_none(str(value))


def table(
    name: str,
    looks_like: str,
    about: str,
    needs: Sequence[str],
    convention: Convention | None = None,
    matches: Callable[[Row], bool] | None = None,
) -> Format:
    """A format whose rows have the fields ``needs`` (or that ``matches``), read by the table of known fields."""
    return Format(
        name, looks_like, about, matches or has_fields(*needs), lambda rows, hints: TableReader(rows, hints, convention)
    )


def _is_table(row: Row) -> bool:
    of = TableReader([row], Hints()).columns
    answers = ("response_tokens", "response_characters", "response_ids")
    return any(name in of for name in answers) or ("prompt" in of and "response" in of)


PLAIN: Final = table(
    "plain",
    "columns like prompt_tokens and response_tokens, or prompt and response",
    "any other table or export, by the usual names of fields: lengths, texts, arrivals and waits in their unit, "
    "session, turn, model, split, `max_tokens`, thinking, prefix hashes",
    (),
    matches=_is_table,
)
