"""What a predictor reads of a request.

Rule: what is asked now stands first and whole. What went before follows in compact form, newest first, because it
says how this conversation runs: how often and how long the model has answered, what the system message wants. A
single question without a system message is read as it is. Long texts keep their head and their tail: instructions
stand at either end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from ecoserve.data import Message, Record

#: One request as a predictor takes it: the prompt's text, or the whole context as chat messages.
Request: TypeAlias = "str | Sequence[Message]"

#: Characters that are read of one message at all: bounds the work that a hostile prompt can cause.
MESSAGE_CHARACTERS: Final = 16_384
#: Earlier messages that are read; of each of them, and of the system message, this many characters.
EARLIER_MESSAGES: Final = 8
EARLIER_CHARACTERS: Final = 100
SYSTEM_CHARACTERS: Final = 160


@dataclass(frozen=True, slots=True)
class RequestView:
    """A request as predictors see it.

    Attributes:
        prompt: what is asked now, at most :data:`MESSAGE_CHARACTERS` characters.
        context: what went before, in compact form; empty if nothing did.
        answer_words: lengths in words of the earlier answers that are read, newest first.
        turn: number of answers given before.
        system_characters: length of the system messages in characters.
    """

    prompt: str
    context: str = ""
    answer_words: tuple[int, ...] = ()
    turn: int = 0
    system_characters: int = 0

    @property
    def text(self) -> str:
        """Prompt and context in one text."""
        return f"{self.prompt}\n\n{self.context}" if self.context else self.prompt


def read_request(request: Request) -> RequestView:
    """See a request by the rule above. Messages after the last user message (tool results, ...) count as context."""
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


def read_record(record: Record) -> RequestView | None:
    """See a trace's record by the same rule; ``None`` for a record without text."""
    if record.messages:
        return read_request(record.messages)
    return None if record.prompt is None else read_request(record.prompt)


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
