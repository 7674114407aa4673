"""Splitting a trace so that nothing of ``dev`` was seen in ``train``.

A conversation is never cut in two, and near-duplicate prompts (:mod:`ecoserve.data.similarity`) stay on one side.
Compared are prompts that open a conversation, and later ones of at least :data:`_SUBSTANCE` words: two chats that go on
with "continue" are not the same. A trace whose rows all state their split is split so.
"""

from __future__ import annotations

import re
from typing import Final

import numpy as np

from ecoserve.data.records import ASSISTANT, Record, Trace
from ecoserve.data.similarity import Ints, near_duplicate_groups, renumbered, words
from ecoserve.errors import TraceError

#: Words from which a prompt within a conversation is compared.
_SUBSTANCE: Final = 8
# Published ShareGPT samples cut long conversations into pieces: seven characters, an underscore, the piece's start.
_PIECE: Final = re.compile(r"([A-Za-z0-9]{7})_\d+")


def split_trace(trace: Trace, *, dev: float = 0.2, seed: int = 0) -> dict[str, Trace]:
    """Split ``trace`` into ``{"train": ..., "dev": ...}``, each in the order of the trace.

    Where all rows have a ``split`` and there are rows of both kinds, ``train`` are those called so. Else whole groups
    go to either side by chance; a group with a row that is called something else than ``train`` goes to ``dev``.

    Args:
        trace: what to split.
        dev: share of the records that goes to ``dev``, 0 < dev < 1, met up to the size of a group.
        seed: which groups go to ``dev``; the same on every machine.

    Raises:
        TraceError: if ``dev`` is out of range, or all records are one group.
    """
    if not 0.0 < dev < 1.0:
        raise TraceError(f"a dev share of {dev} is not between 0 and 1", fix="give for example 0.2")
    names = {r.split for r in trace.records}
    if None not in names and "train" in names and len(names) > 1:
        in_dev = np.asarray([r.split != "train" for r in trace.records])
    else:
        in_dev = _by_group(trace, dev, seed)
    parts = {"train": ~in_dev, "dev": in_dev}
    return {
        name: trace.with_records(r for r, here in zip(trace.records, chosen, strict=True) if here)
        for name, chosen in parts.items()
    }


def _by_group(trace: Trace, dev: float, seed: int) -> np.ndarray:
    group = record_groups(trace.records)
    count = int(group.max()) + 1 if len(group) else 0
    if count < 2:
        what = f"{len(trace)} records make {count} group of conversations and near-duplicate prompts"
        raise TraceError(f"cannot be split, its {what}", where=trace.source, fix="give a larger trace")
    size = np.bincount(group)
    held_out = np.zeros(count, dtype=bool)
    held_out[[g for g, r in zip(group, trace.records, strict=True) if r.split not in (None, "train")]] = True
    room = max(1, round(dev * len(trace))) - int(size[held_out].sum())
    for g in np.random.default_rng(seed).permutation(count):
        if not held_out[g] and size[g] <= room:
            held_out[g] = True
            room -= int(size[g])
    if held_out.all() or not held_out.any():
        # One group outweighs everything: the largest trains, the others do not.
        held_out[:] = True
        held_out[int(size.argmax())] = False
    return np.asarray(held_out[group])


def record_groups(records: tuple[Record, ...]) -> Ints:
    """The group of each record, shape ``[len(records)]``: what has to stay on one side of any split."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    conversations: dict[str, int] = {}
    which = [conversations.setdefault(_whole_conversation(r.conversation), len(conversations)) for r in records]
    compared = [i for i, r in enumerate(records) if r.prompt is not None and _is_substantial(r)]
    same_prompt = near_duplicate_groups([records[i].prompt or "" for i in compared])
    # Two kinds of nodes, conversations and groups of prompts; a record joins its two.
    nodes = len(conversations) + len(compared)
    ends = (np.asarray([which[i] for i in compared], dtype=np.int64), len(conversations) + same_prompt)
    graph = coo_array((np.ones(len(compared), dtype=np.int8), ends), shape=(nodes, nodes))
    return renumbered(connected_components(graph, directed=False)[1][which])


def _whole_conversation(name: str) -> str:
    piece = _PIECE.fullmatch(name)
    if piece is None:
        return name
    # Ids at random, that is; "session_1" and "session_2" are two conversations.
    stem = piece[1]
    at_random = any(c.isdigit() for c in stem) or len({c.isupper() for c in stem[1:]}) == 2
    return stem if at_random else name


def _is_substantial(record: Record) -> bool:
    opening = not any(m.role == ASSISTANT for m in record.messages)
    return opening or len(words(record.prompt or "")) >= _SUBSTANCE
