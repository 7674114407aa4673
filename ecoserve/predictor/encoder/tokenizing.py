"""Requests to token ids: ``[CLS] prompt [SEP]`` and, where there is a context, ``context [SEP]``.

The context gets a quarter of the room at most. What is too long keeps its head and its tail. The tokenizer's own state
is never changed, so threads can share it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ecoserve.predictor.text import RequestView, clip, head_tail

FILE: Final = "tokenizer.json"
#: Characters that are tokenized for each token that is kept, per end of the text: longer ones cannot matter.
_CHARACTERS_PER_TOKEN: Final = 12


class RequestTokenizer:
    """Wraps a ``tokenizers.Tokenizer`` (fast tokenizer) without truncation and padding of its own."""

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        self.max_length = max_length
        bare = tokenizer.encode("a", add_special_tokens=False).ids
        framed = tokenizer.encode("a", add_special_tokens=True).ids
        at = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), 0)
        self.before: list[int] = framed[:at]
        self.after: list[int] = framed[at + len(bare) :]

    @classmethod
    def load(cls, folder: Path, max_length: int) -> RequestTokenizer:
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_file(str(folder / FILE)), max_length)

    def save(self, folder: Path) -> None:
        self._tokenizer.save(str(folder / FILE))

    def __call__(self, views: Sequence[RequestView]) -> list[list[int]]:
        """Token ids of ``n`` requests: ``n`` lists of at most :attr:`max_length` ids, none empty."""
        return [self._ids(view) for view in views]

    def _ids(self, view: RequestView) -> list[int]:
        room = self.max_length - len(self.before) - len(self.after)
        context: list[int] = []
        if view.context:
            # No more than a quarter, and only as much as the closing mark leaves.
            context = self._bare(view.context, room // 4)[: room // 4]
            room -= len(context) + len(self.after)
        prompt = head_tail(self._bare(view.prompt, room), room)
        ids = [*self.before, *prompt, *self.after]
        return [*ids, *context, *self.after] if context else ids

    def _bare(self, text: str, tokens: int) -> list[int]:
        clipped = clip(text, 2 * _CHARACTERS_PER_TOKEN * max(tokens, 8))
        try:
            clipped.encode()
        except UnicodeEncodeError:
            # Half a surrogate pair, as JSON can bring it, is no text for a tokenizer: one such request in a batch would
            # take the others' predictions away.
            clipped = clipped.encode("utf-8", "replace").decode()
        ids: list[int] = self._tokenizer.encode(clipped, add_special_tokens=False).ids
        return ids
