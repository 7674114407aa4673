"""Token ids that stand for a load's prompts, so that the prefix cache finds what real prompts would share, and no more.

vLLM's prefix cache knows a block by its tokens and all before them, so one token of its own at the start of a stretch
is enough to tell it from others.

- A record with ``prefix_hashes`` (Mooncake's traces): its pieces of 512 tokens each begin with a token made from the
  piece's hash.
- Turns of one conversation: a turn's prompt is the prompt before, the answer, and something new; so all of them are the
  beginnings of one stream of tokens. (What ends the answer differs, so its last block is not found again.)
- Anything else shares nothing. A row that was drawn twice is a conversation of its own each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ecoserve.serving.simulate.engine import WORD
from ecoserve.serving.workload import LoadRequest

#: Tokens of one piece of ``prefix_hashes``.
PIECE_TOKENS: Final = 512
#: First token of a stream of its own, and of a piece: two ranges that do not meet.
_STREAM: Final = 10_000
_PIECE: Final = 1_000_000_000


class PromptIds:
    """Makes the token ids of a load's prompts.

    Args:
        load: all requests; their order says which copy of a row is which.
    """

    def __init__(self, load: Sequence[LoadRequest]) -> None:
        streams: dict[tuple[str, int], int] = {}
        copies: dict[tuple[str, int], int] = {}
        turns: dict[int, int] = {}
        self._stream: dict[str, int] = {}
        for request in load:
            record = request.record
            turn = (record.conversation, record.turn)
            copies[turn] = copy = copies.get(turn, -1) + 1
            stream = streams.setdefault((record.conversation, copy), len(streams))
            self._stream[request.name] = stream
            turns[stream] = turns.get(stream, 0) + 1
        pieces = [h for request in load for h in request.record.prefix_hashes]
        #: whether any two prompts share something
        self.shared = any(n > 1 for n in turns.values()) or len(set(pieces)) < len(pieces)

    def of(self, request: LoadRequest) -> list[int]:
        """The token ids of one prompt, ``request.prompt_tokens`` of them."""
        ids = [WORD] * request.prompt_tokens
        hashes = request.record.prefix_hashes
        for start, piece in zip(range(0, len(ids), PIECE_TOKENS), hashes, strict=False):
            ids[start] = _PIECE + piece
        own = PIECE_TOKENS * len(hashes)
        if own < len(ids):
            ids[own] = _STREAM + self._stream[request.name]
        return ids
