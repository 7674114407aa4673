"""Splitting a trace so that nothing of ``dev`` was seen in ``train``.

A conversation is never cut in two, and near-duplicate prompts stay on one side. Compared are prompts that open a
conversation, and later ones of at least :data:`_SUBSTANCE` words: two chats that go on with "continue" are not the
same. A trace whose rows all state their split is split so.

Two texts are near-duplicates when the Jaccard similarity of their sets of words and word pairs, without case,
punctuation and spacing, is at least :data:`THRESHOLD`. Every such pair is found: two sets of similarity t share one of
the first ``|x| - ceil(t |x|) + 1`` elements when elements are ordered from rare to frequent (the prefix filter of
Chaudhuri et al. 2006 and Bayardo et al. 2007), so that only texts that share a rare element are compared.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ecoserve.data.records import ASSISTANT, Record, Trace
from ecoserve.errors import TraceError

#: Words from which a prompt within a conversation is compared.
_SUBSTANCE: Final = 8
# Published ShareGPT samples cut long conversations into pieces: seven characters, an underscore, the piece's start.
_PIECE: Final = re.compile(r"([A-Za-z0-9]{7})_\d+")
THRESHOLD: Final = 0.6
#: Of a long text, its first and its last so many words are compared.
_WORDS_EACH_END: Final = 128
#: Candidate pairs held, and pairs compared, at once: together some 200 MiB.
_PAIRS: Final = 2_000_000
_COMPARED: Final = 100_000
# Scripts without spaces between words (kana, Han, Hangul, Thai) count each character as a word.
_WORD: Final = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")

Ints = npt.NDArray[np.int64]


def split_trace(trace: Trace, *, dev: float = 0.2, seed: int = 0) -> dict[str, Trace]:
    """Split ``trace`` into ``{"train": ..., "dev": ...}``, each in the order of the trace.

    Where all rows have a ``split`` and there are rows of both kinds, ``train`` are those called so. Else whole groups
    go to either side by chance (``seed``), up to the share ``dev``; a group with a row that is called something else
    than ``train`` goes to ``dev``. Raises TraceError if ``dev`` is out of range, or all records are one group.
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
    conversations: dict[str, int] = {}
    which = [conversations.setdefault(_whole_conversation(r.conversation), len(conversations)) for r in records]
    compared = [i for i, r in enumerate(records) if r.prompt is not None and _is_substantial(r)]
    same_prompt = near_duplicate_groups([records[i].prompt or "" for i in compared])
    # Two kinds of nodes, conversations and groups of prompts; a record joins its two.
    ends = np.stack(
        (np.asarray([which[i] for i in compared], dtype=np.int64), len(conversations) + same_prompt), axis=1
    )
    return _components(ends, len(conversations) + len(compared), which)


def _components(edges: Ints, nodes: int, which: Any) -> Ints:
    """The connected component of each node of ``which``, numbered from 0 in the order of first appearance."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(edges), dtype=np.int8), (edges[:, 0], edges[:, 1])), shape=(nodes, nodes))
    _, first, inverse = np.unique(
        connected_components(graph, directed=False)[1][which], return_index=True, return_inverse=True
    )
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return np.asarray(rank[inverse], dtype=np.int64)


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


def words(text: str) -> list[str]:
    found = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return found if len(found) <= 2 * _WORDS_EACH_END else found[:_WORDS_EACH_END] + found[-_WORDS_EACH_END:]


def shingles(text: str) -> frozenset[str]:
    """The set that stands for ``text``: its words and its pairs of neighbouring words; the text if it has none."""
    found = words(text)
    return frozenset((*found, *map(" ".join, pairwise(found)))) or frozenset((text.strip(),))


def near_duplicate_groups(texts: Sequence[str]) -> Ints:
    """A group for each text, numbered from 0 as they come; near-duplicates, and theirs in turn, have the same."""
    if not texts:
        return np.zeros(0, dtype=np.int64)
    distinct: dict[frozenset[str], int] = {}
    which = np.asarray([distinct.setdefault(shingles(t), len(distinct)) for t in texts], dtype=np.int64)
    edges = list(similar_pairs(list(distinct)))
    pairs = np.concatenate(edges) if edges else np.zeros((0, 2), dtype=np.int64)
    return _components(pairs, len(distinct), which)


def similar_pairs(sets: Sequence[frozenset[str]], threshold: float = THRESHOLD) -> Iterator[Ints]:
    """All pairs ``i < j`` of sets with a Jaccard similarity >= ``threshold``, in batches of shape ``[n, 2]``."""
    full, prefix, size = _matrices(sets, threshold)
    by_element = prefix.T.tocsr()
    # Pairs that a row may bring: how many rows share each element of its prefix.
    work = np.cumsum(prefix @ np.diff(by_element.indptr))
    start = 0
    while start < len(sets):
        done = work[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(work, done + _PAIRS, side="right")))
        shared = (prefix[start:end] @ by_element).tocoo()
        i, j = shared.row.astype(np.int64) + start, shared.col.astype(np.int64)
        small, large = np.minimum(size[i], size[j]), np.maximum(size[i], size[j])
        near = (i < j) & (small >= threshold * large - 1e-9)
        i, j = i[near], j[near]
        for at in range(0, len(i), _COMPARED):
            a, b = i[at : at + _COMPARED], j[at : at + _COMPARED]
            common = np.asarray((full[a] * full[b]).sum(axis=1)).ravel()
            same = common >= threshold * (size[a] + size[b] - common) - 1e-9
            yield np.stack([a[same], b[same]], axis=1)
        start = end


def _matrices(sets: Sequence[frozenset[str]], threshold: float) -> tuple[Any, Any, Ints]:
    """Sparse 0/1 matrices ``[sets, elements]`` of the sets and of their prefixes, and the sets' sizes."""
    from scipy.sparse import csr_array

    ids: dict[str, int] = {}
    size = np.asarray([len(s) for s in sets], dtype=np.int64)
    flat = np.fromiter((ids.setdefault(e, len(ids)) for s in sets for e in sorted(s)), np.int64, int(size.sum()))
    frequency = np.bincount(flat, minlength=len(ids))
    # Renamed so that a smaller number is a rarer element.
    rank = np.empty(len(ids), dtype=np.int64)
    rank[np.argsort(frequency, kind="stable")] = np.arange(len(ids))
    starts = np.concatenate([[0], np.cumsum(size)])
    row = np.repeat(np.arange(len(sets)), size)
    columns = rank[flat]
    columns = columns[np.lexsort((columns, row))]
    in_prefix = np.arange(len(flat)) - starts[row] < (size - np.ceil(threshold * size - 1e-9).astype(np.int64) + 1)[row]
    shape = (len(sets), len(ids))
    full = csr_array((np.ones(len(flat), dtype=np.int32), columns, starts), shape=shape)
    kept = np.concatenate([[0], np.cumsum(np.bincount(row[in_prefix], minlength=len(sets)))])
    prefix = csr_array((np.ones(int(kept[-1]), dtype=np.int32), columns[in_prefix], kept), shape=shape)
    return full, prefix, size
