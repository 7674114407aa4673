"""What a trace format is: it turns one row into exchanges.

A row that it cannot use becomes a :class:`Reject` whose reason is counted, never an exception. Token counts, duplicates
and limits are the loader's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from ecoserve.data.fields import Row, blank, whole
from ecoserve.data.records import Record

FAILED: Final = "failed request (no answer tokens)"
NO_TIME: Final = "arrival is not a time"
#: No prompt has more tokens than this; a length above it, or below 1, is dirt.
MAX_PROMPT_TOKENS: Final = 2**24


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request as the row has it; its ``record`` has lengths only if the row itself counts tokens.

    ``answer`` is as found, of any type; ``length_field`` and ``sample_field`` are looked up in ``fields``; ``notes``
    are counted if the record is kept. ``missing``: the reason to count without an answer's text or length; ``None``:
    the loader's. ``counts_turn``: the file states the conversation, but not the turn: the loader counts. ``named``: the
    row names its request or session, which tells equal exchanges apart.
    """

    record: Record
    answer: object
    fields: Row
    notes: tuple[str, ...] = ()
    missing: str | None = None
    counts_turn: bool = False
    named: bool = False


@dataclass(frozen=True, slots=True)
class Reject:
    """An exchange that cannot be used, and why."""

    reason: str


Exchanges = Iterable[Exchange | Reject]


class Hints(NamedTuple):
    """What the user says of a file: ``per_second``, units of its times in a second; 0: nothing.

    ``expands``: lists of lengths in a row are several answers' (no option names a field of lengths).
    """

    per_second: float = 0.0
    expands: bool = True


class Reader(Protocol):
    """Reads the rows of one file in their order: a format that has seen the first ones.

    ``stated``: how it reads times and blocks, ``guesses``: what of that the file does not say. ``length_source``: of
    lengths that are no counts of tokens.
    """

    @property
    def stated(self) -> Sequence[str]: ...
    @property
    def guesses(self) -> Sequence[str]: ...
    @property
    def length_source(self) -> str | None: ...

    def read(self, row: Row, index: int) -> Exchanges: ...

    def finish(self) -> Exchanges:
        """What is known only when all rows were read."""
        ...


@dataclass(frozen=True, slots=True)
class RowByRow:
    """The reader of a format whose rows say everything themselves."""

    read: Callable[[Row, int], Exchanges]
    stated: Sequence[str] = ()
    guesses: Sequence[str] = ()
    length_source: str | None = None

    def finish(self) -> Exchanges:
        return ()


@dataclass(frozen=True, slots=True)
class Format:
    """A trace format: its name, the fields by which a person knows it, and its text in docs/guides/data.md.

    ``matches``: whether a row has its fields. ``opened``: the reader of a file that begins with some rows.
    ``own_ids``: conversation and turn are the file's own, so that they tell equal exchanges apart.
    """

    name: str
    looks_like: str
    about: str
    matches: Callable[[Row], bool]
    opened: Callable[[Sequence[Row], Hints], Reader]
    own_ids: bool = False

    def read(self, row: Row, index: int) -> list[Exchange | Reject]:
        """The exchanges of a lone row and its 0-based number in the file."""
        reader = self.opened([row], Hints())
        return [*reader.read(row, index), *reader.finish()]


def each_row(read: Callable[[Row, int], Exchanges]) -> Callable[[Sequence[Row], Hints], Reader]:
    """A :attr:`Format.opened` for rows that need no others."""
    reader = RowByRow(read)
    return lambda rows, hints: reader


def has_fields(*names: str) -> Callable[[Row], bool]:
    """A :attr:`Format.matches` of rows that have all fields ``names``."""
    return lambda row: all(name in row for name in names)


class Lengths(NamedTuple):
    """Tokens of a row's prompt and answer, ``None`` where it does not state them; ``missing``: why not the answer's."""

    prompt: int | None
    response: int | None
    missing: str


def checked(prompt: object, response: object) -> Lengths | str:
    """The lengths that a row states, or why it is spoilt.

    An answer of no tokens is a request that failed; a prompt's length that is no length spoils the row, since a
    simulation would run it. Only the answer's length may come from elsewhere (``--length-field``).
    """
    prompt_tokens = whole(prompt)
    if prompt_tokens is None and not blank(prompt):
        return "prompt length is not a whole number"
    if prompt_tokens is not None and not 1 <= prompt_tokens <= MAX_PROMPT_TOKENS:
        return "absurd prompt length"
    tokens = whole(response)
    if tokens == 0:
        return Lengths(prompt_tokens, None, FAILED)
    missing = "no answer length" if blank(response) else "answer length is not a whole number"
    return Lengths(prompt_tokens, tokens, missing)
