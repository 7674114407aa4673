"""Telling equal exchanges of a trace of any size apart, in bounded memory.

Two exchanges are the same if their 64-bit keys are. The keys seen are kept in sorted arrays, 8 bytes each; while
two of these are merged, up to 16. With ten million exchanges the chance that any two different ones share a key is
3 in a million.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ecoserve.data.records import Record

#: Conversations whose turns are counted at the same time; one without a turn for longer starts again at 0.
CONVERSATIONS: Final = 1 << 18


def identity(record: Record, *, named: bool) -> int | None:
    """The key (64 bits) that ``record``, before its lengths are measured, shares with those equal to it.

    ``named``: conversation and turn are the file's own, so that they tell equal exchanges apart. ``None`` where there
    is no text to tell by.
    """
    if record.prompt is None and (record.response is None or not named):
        return None
    numbers = (record.response_tokens, record.sample_tokens, record.sample, record.arrival_s, named and record.turn)
    texts = [record.response, record.model, record.conversation if named else None]
    if record.messages:
        texts += [text for m in record.messages for text in (m.role, m.content)]
    else:
        texts.append(record.prompt)
    # With the texts' lengths, so that no two lists of texts become the same bytes.
    lengths = [-1 if t is None else len(t) for t in texts]
    data = f"{numbers}{lengths}".encode() + "".join(filter(None, texts)).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


class SeenKeys:
    """The set of all keys so far, which answers for many at a time."""

    def __init__(self) -> None:
        # Each at least twice as long as the next, so that there are few, and each key is merged a few times only.
        self._runs: list[NDArray[np.uint64]] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def first_seen(self, keys: Sequence[int | None]) -> list[bool]:
        """Whether each of ``keys`` is new, within them too; they are then seen. ``None`` always is."""
        fresh = np.ones(len(keys), dtype=bool)
        known = [i for i, key in enumerate(keys) if key is not None]
        values = np.array([keys[i] or 0 for i in known], dtype=np.uint64)
        distinct, firsts = np.unique(values, return_index=True)
        new = np.ones(len(distinct), dtype=bool)
        for run in self._runs:
            places = np.searchsorted(run, distinct)
            places[places == len(run)] = 0
            new &= run[places] != distinct
        found = np.zeros(len(known), dtype=bool)
        found[firsts[new]] = True
        fresh[known] = found
        if new.any():
            self._runs.append(distinct[new])
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            self._runs.append(np.sort(np.concatenate((self._runs.pop(), self._runs.pop()))))
        answer: list[bool] = fresh.tolist()
        return answer


class TurnCounter:
    """Numbers the turns of conversations that come mixed; the last :data:`CONVERSATIONS` are remembered."""

    def __init__(self, remembered: int = CONVERSATIONS) -> None:
        self._remembered = remembered
        self._turns: OrderedDict[str, int] = OrderedDict()

    def next(self, conversation: str) -> int:
        """The turn that comes now, 0-based."""
        turn = self._turns.pop(conversation, -1) + 1
        self._turns[conversation] = turn
        if len(self._turns) > self._remembered:
            self._turns.popitem(last=False)
        return turn
