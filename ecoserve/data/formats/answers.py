"""Answers collected to be judged: Arena-Hard's, with ``token_len``, and the trees of OpenAssistant."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from ecoserve.data.fields import Row, first_of, text_or_none, whole
from ecoserve.data.formats.base import Exchange, Exchanges, Format, Reject, each_row
from ecoserve.data.formats.conversations import Context, exchange_of, read_message
from ecoserve.data.known_fields import id_of, named, time_of
from ecoserve.data.records import ASSISTANT, USER, Record

BY_PEOPLE: Final = "answers written by people, whose lengths are no model's"
#: Messages that are remembered to find the parents of later rows.
_REMEMBERED: Final = 1 << 17


def _arena(row: Row, index: int) -> Iterator[Exchange | Reject]:
    """``choices[].turns[]``: an answer a turn, its prompt is in another file."""
    name = str(first_of(row, "question_id", "uid") or id_of(row, index, "request"))
    model = text_or_none(first_of(row, "model", "model_id"))
    choices = row.get("choices")
    for k, choice in enumerate(choices if isinstance(choices, list) else ()):
        turns = choice.get("turns") if isinstance(choice, dict) else None
        if not isinstance(turns, list) or not turns:
            yield Reject("no answer")
            continue
        for turn, one in enumerate(turns):
            content = one if isinstance(one, dict) else {"content": one}
            record = Record(
                name,
                turn=turn,
                response_tokens=whole(named(content, "response_tokens")),
                thinking_tokens=whole(named(content, "thinking_tokens")),
                model=model,
                arrival_s=time_of(row),
                sample=max(0, whole(choice.get("index")) or k),
            )
            said = read_message({"role": ASSISTANT, "content": content.get("content")})
            yield exchange_of(record, said, content, ())


def _is_arena(row: Row) -> bool:
    choices = row.get("choices")
    return isinstance(choices, list) and any(isinstance(c, dict) and isinstance(c.get("turns"), list) for c in choices)


ARENA: Final = Format(
    "arena",
    looks_like="question_id, model, choices[].turns[].content, .token_len",
    about="answers of Arena-Hard and MT-Bench: token counts, each choice as a sample; prompts are in another file",
    matches=_is_arena,
    opened=each_row(_arena),
    own_ids=True,
)


class _Trees:
    """Reads trees with ``replies`` in each other, and their messages row by row, parents before replies."""

    stated: Sequence[str] = ()
    length_source: str | None = None

    def __init__(self) -> None:
        self.guesses: list[str] = []
        self._contexts: OrderedDict[str, Context] = OrderedDict()

    def read(self, row: Row, index: int) -> Exchanges:
        tree = str(first_of(row, "message_tree_id") or f"row-{index}")
        root = row.get("prompt")
        if isinstance(root, dict):
            items = list(self._below(root, Context(), tree))
            return items or [Reject("no question with an answer")]
        parent = first_of(row, "parent_id")
        before = self._contexts.get(str(parent)) if parent is not None else Context()
        if before is None:
            return [Reject("its parent did not come before it")]
        item, context = self._message(row, before, tree)
        self._contexts[str(row.get("message_id"))] = context
        if len(self._contexts) > _REMEMBERED:
            self._contexts.popitem(last=False)
        return [] if item is None else [item]

    def finish(self) -> Exchanges:
        return ()

    def _below(self, message: Row, before: Context, tree: str) -> Iterator[Exchange | Reject]:
        waiting = [(message, before)]
        while waiting:
            message, before = waiting.pop()
            item, context = self._message(message, before, tree)
            if item is not None:
                yield item
            replies = message.get("replies")
            children = [r for r in replies if isinstance(r, dict)] if isinstance(replies, list) else []
            waiting += [(r, context) for r in reversed(children)]

    def _message(self, row: Row, before: Context, tree: str) -> tuple[Exchange | Reject | None, Context]:
        """The exchange that a message ends, if it is an answer, and the context of its replies."""
        answers = row.get("role") == ASSISTANT
        said = read_message({**row, "role": ASSISTANT if answers else USER, "content": row.get("text")})
        item: Exchange | Reject | None = None
        if row.get("deleted") is True:
            item = Reject("message was deleted") if answers else None
        elif answers and before.asks():
            problem = before.problem()
            item = Reject(problem) if problem else self._exchange(row, before, said, tree)
        after = Context(list(before.messages), before.answers, before.broken, before.notes, before.last)
        after.add(said)
        return item, after

    def _exchange(self, row: Row, before: Context, said: Any, tree: str) -> Exchange:
        synthetic = row.get("synthetic") is True or text_or_none(row.get("model_name")) is not None
        if not synthetic and not self.guesses:
            self.guesses.append(BY_PEOPLE)
        asked = time_of(before.last.fields) if before.last is not None else None
        record = Record(
            tree,
            turn=before.answers,
            prompt=before.messages[-1].content,
            messages=tuple(before.messages) if len(before.messages) > 1 else (),
            model=text_or_none(row.get("model_name")),
            arrival_s=asked,
            sample=max(0, whole(row.get("rank")) or 0),
        )
        return replace(exchange_of(record, said, row, said.notes), counts_turn=False)


TREES: Final = Format(
    "openassistant",
    looks_like="message_tree_id, prompt.text, prompt.replies[] (or message_id, parent_id, text, role)",
    about="OpenAssistant's trees, whole or message by message: each answer with the path to it, ranks as samples",
    matches=lambda row: "message_tree_id" in row and (isinstance(row.get("prompt"), dict) or "parent_id" in row),
    opened=lambda rows, hints: _Trees(),
)
