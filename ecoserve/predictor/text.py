"""What a predictor reads of a request.

The last user message comes first and whole. Earlier messages follow in compact form, newest first: how often and how
long the model has answered, what the system message wants. Long texts keep their head and their tail. Parameters of the
request (``max_tokens``, stop strings, tools, thinking, format) are read by predictors that have learned from them; for
all others they are not there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self, TypeAlias

from ecoserve.data import Message, Record
from ecoserve.data.parameters import NAMES, NO_PARAMETERS, STOP_CHARACTERS, RequestParameters

#: One request as a predictor takes it: the prompt's text, or the whole context as chat messages, also with parameters
#: (:class:`ChatRequest`).
Request: TypeAlias = "str | Sequence[Message]"

#: Characters read of one message: bounds the work that a hostile prompt can cause.
MESSAGE_CHARACTERS: Final = 16_384
#: Earlier messages that are read; of each of them, and of the system message, this many characters.
EARLIER_MESSAGES: Final = 8
EARLIER_CHARACTERS: Final = 100
SYSTEM_CHARACTERS: Final = 160
#: Of a parameter that is a word.
_WORD_CHARACTERS: Final = 24


class ChatRequest(tuple[Message, ...]):
    """Chat messages, and the parameters that they are sent with; otherwise like the messages alone."""

    parameters: RequestParameters

    def __new__(cls, messages: Iterable[Message], parameters: RequestParameters) -> Self:
        request = super().__new__(cls, messages)
        request.parameters = parameters
        return request


@dataclass(frozen=True, slots=True)
class RequestView:
    """A request as predictors see it."""

    #: the last user message, at most :data:`MESSAGE_CHARACTERS` characters
    prompt: str
    #: parameters and earlier messages in compact form, or empty
    context: str = ""
    #: lengths in words of the earlier responses that are read, newest first
    answer_words: tuple[int, ...] = ()
    #: number of earlier responses
    turn: int = 0
    #: length of the system messages
    system_characters: int = 0
    #: those that the predictor has learned from
    parameters: RequestParameters = NO_PARAMETERS

    @property
    def text(self) -> str:
        return f"{self.prompt}\n\n{self.context}" if self.context else self.prompt


def read_request(request: Request, parameters: Collection[str] = ()) -> RequestView:
    """Read a request, with these ``parameters`` of a :class:`ChatRequest`."""
    view = _read_messages(request)
    if not parameters or not isinstance(request, ChatRequest):
        return view
    said = RequestParameters(**{name: getattr(request.parameters, name) for name in parameters})
    if not said:
        return view
    return replace(view, parameters=said, context="\n".join(filter(None, (_parameters_line(said), view.context))))


def _read_messages(request: Request) -> RequestView:
    if isinstance(request, str):
        return RequestView(clip(request, MESSAGE_CHARACTERS))
    messages = list(request)
    if not messages:
        return RequestView("")
    asked = max((i for i, m in enumerate(messages) if m.role == "user"), default=len(messages) - 1)
    prompt = clip(messages[asked].content, MESSAGE_CHARACTERS)
    others = messages[:asked] + messages[asked + 1 :]
    if not others:
        return RequestView(prompt)
    system = [m for m in others if m.role == "system"]
    turn = sum(m.role == "assistant" for m in others)
    words: list[int] = []
    lines = [f"turn {turn + 1}"] if turn else []
    for message in [m for m in reversed(others) if m.role != "system"][:EARLIER_MESSAGES]:
        if message.role == "assistant":
            words.append(len(message.content[:MESSAGE_CHARACTERS].split()))
            lines.append(f"answered in {words[-1]} words")
        else:
            lines.append(f"{message.role} before: {_one_line(message.content, EARLIER_CHARACTERS)}")
    lines += [f"system: {_one_line(m.content, SYSTEM_CHARACTERS)}" for m in system[:2]]
    return RequestView(prompt, "\n".join(lines), tuple(words), turn, sum(len(m.content) for m in system))


def read_record(record: Record, parameters: Collection[str] = ()) -> RequestView | None:
    """Read the request of a trace's record; ``None`` for a record without text."""
    request = asked_of(record)
    return None if request is None else read_request(request, parameters)


def asked_of(record: Record) -> Request | None:
    """The request of a trace's record, with its parameters; ``None`` for a record without text."""
    if record.prompt is None and not record.messages:
        return None
    if said := record.parameters:
        return ChatRequest(record.chat(), said)
    return record.messages or record.prompt


def parameters_that_vary(records: Iterable[Record]) -> tuple[str, ...]:
    """Names of the parameters in which ``records`` differ; from others nothing can be learned."""
    seen: dict[str, set[object]] = {name: set() for name in NAMES}
    for record in records:
        said = record.parameters
        for name, values in seen.items():
            if len(values) < 2:
                values.add(getattr(said, name))
    return tuple(name for name, values in seen.items() if len(values) > 1)


def _parameters_line(said: RequestParameters) -> str:
    words = []
    if said.max_tokens is not None:
        words.append(f"at most {said.max_tokens} tokens")
    for stop in said.stop:
        words.append("stop at " + _one_line(stop.replace("\n", " newline "), 2 * STOP_CHARACTERS))
    if said.tools:
        words.append(f"{said.tools} tools")
    if said.thinking is not None:
        words.append(f"thinking {_one_line(said.thinking, _WORD_CHARACTERS)}")
    if said.response_format is not None:
        words.append(f"format {_one_line(said.response_format, _WORD_CHARACTERS)}")
    return ", ".join(words)


def clip(text: str, characters: int) -> str:
    """At most ``characters`` of ``text``: its head and its tail, in equal parts."""
    if len(text) <= characters:
        return text
    head = (characters + 1) // 2
    tail = characters - head
    return text[:head] + (text[-tail:] if tail else "")


def head_tail(ids: Sequence[int], limit: int) -> list[int]:
    """At most ``limit`` token ids: three quarters of the room for the head, one for the tail."""
    if len(ids) <= limit:
        return list(ids)
    tail = limit // 4
    return [*ids[: limit - tail], *ids[len(ids) - tail :]] if tail else list(ids[:limit])


def _one_line(text: str, characters: int) -> str:
    return " ".join(text[: 4 * characters].split())[:characters]
