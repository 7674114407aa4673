"""A trace as a compact table of NumPy columns, read in one pass.

Texts are not kept: a prompt becomes a hash of its whole context, and the beginnings of a seeded sample of prompts are
kept to recognise their languages (py3langid), after code, addresses and markup have been removed. A text of fewer than
20 letters (5 in scripts that write a word in one or two characters) or a confidence below 0.7 is ``unclear``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any, Final, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from ecoserve.data.laws import LONGEST
from ecoserve.data.loading import Reservoir
from ecoserve.data.records import LoadReport, Record, Trace
from ecoserve.data.streaming import CUT_OFF, TraceStream
from ecoserve.errors import TraceError

#: Prompts whose language is recognised, at most; 0.2 ms each.
LANGUAGE_SAMPLE: Final = 20_000
#: Confidence from which an answer is taken.
CONFIDENT: Final = 0.7
UNCLEAR: Final = "unclear"
_LETTERS: Final = 20
_DENSE_LETTERS: Final = 5
# Fenced and inline code, addresses, tags, and whatever holds no letters.
_NO_LANGUAGE: Final = re.compile(r"```.*?(?:```|$)|`[^`\n]*`|https?://\S+|<[^<>\n]{1,200}>", re.DOTALL)
# Chinese, Japanese, Korean: few characters say much.
_DENSE: Final = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]")
_CODE_LINE: Final = re.compile(r"[{};=<>\\|]|\w\(|^\s*(?:#|//|def |import |from \w+ import|class |return )")


@dataclass(frozen=True, slots=True)
class LanguageSample:
    """Languages of ``rows`` (ascending): ``codes`` are indices into ``names`` (ISO 639); both of shape ``[k]``."""

    rows: npt.NDArray[np.int64]
    codes: npt.NDArray[np.int64]
    names: tuple[str, ...]


def recognise(rows: npt.NDArray[np.int64], prompts: Sequence[str]) -> LanguageSample:
    found = [language(prompt) for prompt in prompts]
    names = tuple(dict.fromkeys(found))
    index = {name: i for i, name in enumerate(names)}
    return LanguageSample(rows, np.asarray([index[name] for name in found], dtype=np.int64), names)


def language(text: str) -> str:
    words = prose(text)
    letters = sum(c.isalpha() for c in words)
    dense = len(_DENSE.findall(words))
    if letters < _LETTERS and dense < _DENSE_LETTERS:
        return UNCLEAR
    code, confidence = _identifier().classify(words)
    # zxx: no linguistic content.
    return str(code) if confidence >= CONFIDENT and code != "zxx" else UNCLEAR


def prose(text: str) -> str:
    """``text`` without code, addresses and markup."""
    plain = _NO_LANGUAGE.sub(" ", text)
    lines = plain.splitlines()
    # A line is code by two marks, a line of up to three words by one.
    code = [len(_CODE_LINE.findall(line)) >= (2 if len(line.split()) > 3 else 1) for line in lines]
    return " ".join(line for line, marked in zip(lines, code, strict=True) if len(lines) == 1 or not marked)


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


#: Size of a record in the finished table: the sum of the columns' widths.
BYTES_PER_RECORD: Final = 49
#: A number that is not known.
UNKNOWN: Final = -1
_BATCH: Final = 4096
#: Characters of a prompt by which its language is recognised.
_CHARACTERS: Final = 1000
_LARGEST: Final = 2**31 - 1
#: of columns of 16 bits
_MOST: Final = 2**16 - 1


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a table's records come from."""

    source: str
    format: str
    sha256: str
    length_source: str
    prompt_length_source: str
    report: LoadReport


@dataclass(frozen=True, slots=True)
class TraceTable:
    """The columns, of shape ``[n]``; -1 stands for a number that is not known, NaN for an unknown arrival (s).

    ``prompt`` and ``prompt_hash`` are of the whole context (hash 0 without text); ``turn`` is 0-based; ``model`` and
    ``split`` index ``models`` and ``splits``; ``samples`` has the lengths of the ``sample_count`` other samples of each
    record's prompt, in the order of the records.
    """

    response: npt.NDArray[np.int32]
    prompt: npt.NDArray[np.int32]
    thinking: npt.NDArray[np.int32]
    turn: npt.NDArray[np.uint16]
    model: npt.NDArray[np.uint16]
    split: npt.NDArray[np.uint16]
    arrival: npt.NDArray[np.float64]
    censored: npt.NDArray[np.bool_]
    max_tokens: npt.NDArray[np.int32]
    prompt_hash: npt.NDArray[np.uint64]
    conversation: npt.NDArray[np.uint64]
    sample_count: npt.NDArray[np.uint16]
    samples: npt.NDArray[np.int32]
    models: tuple[str | None, ...]
    splits: tuple[str | None, ...]
    origin: Origin
    languages: LanguageSample

    def __len__(self) -> int:
        return len(self.response)

    def thinned(self, most: int) -> TraceTable:
        """About ``most`` of the rows: all answers to some of the prompts (of the conversations, without text)."""
        if len(self) <= most:
            return self
        rows = chosen(np.where(self.prompt_hash != 0, self.prompt_hash, self.conversation), most / len(self))
        kept = np.repeat(rows, self.sample_count)
        place = np.searchsorted(np.flatnonzero(rows), self.languages.rows)
        here = rows[self.languages.rows]
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in _COLUMNS}
        return replace(
            self,
            **columns,
            samples=self.samples[kept],
            languages=replace(self.languages, rows=place[here], codes=self.languages.codes[here]),
        )

    @property
    def nbytes(self) -> int:
        return sum(int(getattr(self, name).nbytes) for name in [*_COLUMNS, "samples"])


#: Column of a record -> its NumPy type.
_COLUMNS: Final[dict[str, Any]] = {
    name: get_args(get_args(kind)[1])[0]
    for name, kind in get_type_hints(TraceTable).items()
    if get_origin(kind) is np.ndarray and name != "samples"
}


def read_table(source: Trace | TraceStream, *, seed: int = 0, language_sample: int = LANGUAGE_SAMPLE) -> TraceTable:
    """Read a trace or a stream to its end; ``language_sample``: prompts whose language is recognised."""
    builder = _Builder(seed, language_sample)
    if isinstance(source, Trace):
        for i in range(0, len(source.records), _BATCH):
            builder.add(source.records[i : i + _BATCH])
    else:
        for batch in source.batches():
            builder.add(batch)
    if not builder.rows:
        raise TraceError("no record has a response length", where=source.source)
    return builder.finish(source)


class _Codes(dict[str | None, int]):
    """Name -> a number in the order of first appearance; past 65,535 names all further ones share the last."""

    def __missing__(self, name: str | None) -> int:
        code = min(len(self), _MOST)
        if len(self) <= code:
            self[name] = code
        return code


class _Builder:
    def __init__(self, seed: int, language_sample: int) -> None:
        self.rows = 0
        self._blocks: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in [*_COLUMNS, "samples"]}
        self._models, self._splits = _Codes(), _Codes()
        self._prompts = Reservoir[tuple[int, str]](language_sample, seed) if language_sample else None

    def add(self, batch: Sequence[Record]) -> None:
        batch = [r for r in batch if _possible(r.response_tokens)]
        n = len(batch)
        values: dict[str, Iterable[Any]] = {
            "response": (r.response_tokens for r in batch),
            "prompt": (_whole(r.prompt_tokens) for r in batch),
            "thinking": (_whole(r.thinking_tokens) for r in batch),
            "turn": (min(r.turn, _MOST) for r in batch),
            "model": (self._models[r.model] for r in batch),
            "split": (self._splits[r.split] for r in batch),
            "arrival": (np.nan if r.arrival_s is None else r.arrival_s for r in batch),
            "censored": (r.censored for r in batch),
            "max_tokens": (_whole(r.max_tokens) for r in batch),
            "prompt_hash": (prompt_hash(r) for r in batch),
            "conversation": (text_hash(r.conversation) for r in batch),
            "sample_count": (len(_samples(r)) for r in batch),
        }
        for name, column in values.items():
            self._blocks[name].append(np.fromiter(column, _COLUMNS[name], n))
        others = [t for r in batch for t in _samples(r)]
        self._blocks["samples"].append(np.asarray(others, dtype=np.int32))
        if self._prompts is not None:
            texts = ((i, r.prompt) for i, r in enumerate(batch, self.rows))
            self._prompts.add([(i, text[:_CHARACTERS]) for i, text in texts if text is not None])
        self.rows += n

    def finish(self, source: Trace | TraceStream) -> TraceTable:
        """The table; the blocks are gone afterwards."""
        columns: dict[str, Any] = {}
        for name in list(self._blocks):
            # Column by column, so that only one column is in memory twice.
            blocks = self._blocks.pop(name)
            columns[name] = np.concatenate(blocks)
            blocks.clear()
        if not isinstance(source, Trace) and (cap := source.cap()) is not None:
            columns["censored"] |= columns["response"] >= cap
            source.report.noted[CUT_OFF] = int(columns["censored"].sum())
        origin = Origin(*(getattr(source, f.name) for f in fields(Origin)))
        prompts = self._prompts.items() if self._prompts is not None else []
        return TraceTable(
            **columns,
            models=tuple(self._models),
            splits=tuple(self._splits),
            origin=origin,
            languages=recognise(np.asarray([row for row, _ in prompts], np.int64), [text for _, text in prompts]),
        )


def _possible(tokens: int | None) -> bool:
    """Whether an answer can have this length; records made in a program may have any."""
    return tokens is not None and 1 <= tokens <= LONGEST


def _samples(record: Record) -> list[int]:
    return [n for n in record.sample_tokens if _possible(n)][:_MOST]


def _whole(value: int | None) -> int:
    return UNKNOWN if value is None else min(value, _LARGEST)


def text_hash(text: str) -> int:
    """64 bits of a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def prompt_hash(record: Record) -> int:
    """64 bits of a record's whole context; of its pieces' ids where it has no text; 0 where it has neither."""
    if record.messages:
        digest = hashlib.blake2b(digest_size=8)
        for message in record.messages:
            digest.update(f"{message.role}\x1f{message.content}\x1e".encode("utf-8", "surrogatepass"))
        return int.from_bytes(digest.digest(), "little") or 1
    if record.prompt is not None:
        return text_hash(f"user\x1f{record.prompt}\x1e") or 1
    if record.prefix_hashes:
        return text_hash(f"{record.prefix_hashes} {record.prompt_tokens}") or 1
    return 0


def chosen(hashes: npt.NDArray[np.uint64], part: float) -> npt.NDArray[np.bool_]:
    """Which of ``hashes`` (shape ``[n]``) belong to a share ``part`` of all there can be; equal ones all or none."""
    # Multiplied, so that what is chosen here is not also what another use of the same hashes chooses.
    mixed = hashes * np.uint64(0x9E3779B97F4A7C15)
    mixed >>= np.uint64(32)
    return np.asarray(mixed < np.uint64(min(1.0, part) * 2**32))


def cap_of(table: TraceTable) -> int | None:
    """The limit at which answers were cut off: the length that at least half of those have, else ``None``."""
    cut = table.response[table.censored]
    if not len(cut):
        return None
    lengths, counts = np.unique(cut, return_counts=True)
    return int(lengths[counts.argmax()]) if counts.max() * 2 >= len(cut) else None
