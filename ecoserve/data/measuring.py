"""How long prompts and answers are, in tokens.

Counts of the served model's tokenizer where it is given, else the trace's own, else characters / 4.0; never two sources
for the responses of one trace. The first :data:`DECIDING` exchanges decide which one it is, so that a file of any size
is read once. An answer that ended by itself is one token longer than its text: EOS.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ecoserve.data.hub import HUB_ID, require_hub
from ecoserve.data.records import ASSISTANT, USER, Message, Record, changed
from ecoserve.errors import TraceError

#: ``length_source`` of the trace's own counts.
OWN: Final = "trace"
#: No answer has more tokens than this; a length above it, or below 1, is dirt.
MAX_RESPONSE_TOKENS: Final = 2**20
#: Characters a token, where nothing better is known.
CHARACTERS_PER_TOKEN: Final = 4.0
BY_CHARACTERS: Final = f"characters/{CHARACTERS_PER_TOKEN}"
#: Exchanges that decide where lengths come from; fewer if their texts together reach this many characters.
DECIDING: Final = 10_000
DECIDING_CHARACTERS: Final = 1 << 25
#: What is noted where a trace that counts its prompts does not count this one.
ESTIMATED_PROMPT: Final = f"with a prompt estimated as {BY_CHARACTERS}"
#: Fewest lengths that distinguish a cap from chance.
_FEWEST: Final = 100
_BY_TOKENIZER: Final = "tokenizer:"
#: What stands around thinking in an answer's text.
THINK: Final = "<think>"
THOUGHT: Final = "</think>"
#: Finish reasons of answers that ended by themselves.
_ENDED: Final = frozenset(("stop", "end_turn", "eos", "stop_sequence", "tool_calls", "tool_use", "completed"))
#: What is noted where the tokens of thinking are not counted: its share of the answer's characters.
THINKING_BY_TEXT: Final = "with the tokens of thinking by its share of the text"
#: Texts tokenized at once.
_BATCH: Final = 512


def absurd(tokens: int | None) -> bool:
    """Whether ``tokens`` (``None``: not known) cannot be the length of an answer."""
    return tokens is not None and not 1 <= tokens <= MAX_RESPONSE_TOKENS


class Sources(NamedTuple):
    """Where lengths come from: ``"field:NAME"``, ``"tokenizer:NAME"``, ``"trace"`` or ``"characters/4.0"``."""

    response: str
    prompt: str

    def tokenizer(self) -> bool:
        return any(source.startswith(_BY_TOKENIZER) for source in self)


def decide(records: Sequence[Record], length_field: str | None, tokenizer: str | None) -> Sources:
    """Where the lengths of a trace come from that begins with ``records``."""
    if length_field is not None:
        response = f"field:{length_field}"
    elif tokenizer is not None and any(r.response is not None for r in records):
        response = _BY_TOKENIZER + tokenizer
    else:
        counted = sum(r.response_tokens is not None for r in records)
        response = OWN if counted * 2 > len(records) else BY_CHARACTERS
    if tokenizer is not None and any(r.prompt is not None for r in records):
        prompt = _BY_TOKENIZER + tokenizer
    else:
        prompt = OWN if all(r.prompt_tokens is not None or r.prompt is None for r in records) else BY_CHARACTERS
    return Sources(response, prompt)


def measure(record: Record, sources: Sources) -> tuple[Record, str | None, str | None]:
    """``record`` with its lengths, except those that a tokenizer counts; why it is dropped, and what is noted."""
    changes: dict[str, Any] = {}
    problem = note = None
    if sources.response == OWN:
        problem = "no length" if record.response_tokens is None else None
    elif record.response is None and not sources.response.startswith("field:"):
        problem = "no answer text to count"
    elif sources.response == BY_CHARACTERS:
        changes["response_tokens"] = estimated_tokens(record.response or "")
        problem = "absurd length" if absurd(changes["response_tokens"]) else None
    if record.prompt is not None:
        missing = sources.prompt == OWN and record.prompt_tokens is None
        if missing or sources.prompt == BY_CHARACTERS:
            changes["prompt_tokens"] = estimated_tokens("".join(m.content for m in record.chat()))
            note = ESTIMATED_PROMPT if missing else None
    if (thought := thinking_in(record.response)) is not None:
        tokens: int | None = changes.get("response_tokens", record.response_tokens)
        if not record.thinking_tokens and tokens is not None:
            # None counted, but some shown: vLLM counts from an opening mark, which models may not generate.
            changes["thinking_tokens"] = thinking_by_text(record.response or "", tokens)
            note = note or (THINKING_BY_TEXT if not sources.response.startswith(_BY_TOKENIZER) else None)
        if len(thought) == len(record.response or "") and record.finish_reason not in _ENDED:
            changes["censored"] = True
    return (changed(record, **changes) if changes else record), problem, note


def thinking_in(response: str | None) -> str | None:
    """The part of an answer's text in which it thinks: all of it if that did not end; ``None``: there is none."""
    if response is None or (THINK not in response[:64] and THOUGHT not in response):
        return None
    before, end, _ = response.partition(THOUGHT)
    return before + end


def thinking_by_text(response: str, tokens: int) -> int:
    """How many of an answer's ``tokens`` are thinking, by its share of the characters."""
    thought = thinking_in(response) or ""
    inner = len(thought.replace(THINK, "").replace(THOUGHT, "").strip())
    rest = len(response[len(thought) :].strip())
    return round(tokens * inner / max(1, inner + rest))


class TokenCounter:
    """Counts tokens as the tokenizer ``name`` (:func:`load_tokenizer`) makes them."""

    def __init__(self, name: str) -> None:
        self._tokenizer = load_tokenizer(name)
        self._fast = getattr(self._tokenizer, "backend_tokenizer", None)
        if self._fast is not None:
            # Encoders' tokenizer files cut and pad by themselves.
            self._fast.no_truncation()
            self._fast.no_padding()
        self._overhead = self._chat_overhead()

    def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, special tokens not counted."""
        lengths: dict[str, int] = {}
        distinct = list(dict.fromkeys(texts))
        # By length: a batch of equal texts wastes no padding and no thread.
        distinct.sort(key=len)
        for i in range(0, len(distinct), _BATCH):
            batch = distinct[i : i + _BATCH]
            lengths.update(zip(batch, self._lengths(batch), strict=True))
        return [lengths[t] for t in texts]

    def _lengths(self, batch: list[str]) -> list[int]:
        if self._fast is not None:
            # Half the time of the tokenizer's own call, which makes Python lists of all ids.
            return [len(e) for e in self._fast.encode_batch_fast(batch, add_special_tokens=False)]
        ids = self._tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [len(i) for i in ids["input_ids"]]

    def count_contexts(self, chats: Sequence[Sequence[Message]]) -> list[int]:
        """Tokens of each chat as a prompt: its contents, and what the tokenizer's chat template puts around them."""
        contents = iter(self.count([m.content for chat in chats for m in chat]))
        first, more = self._overhead
        return [sum(next(contents) for _ in chat) + round(first + more * (len(chat) - 1)) for chat in chats]

    def _chat_overhead(self) -> tuple[float, float]:
        """Tokens that a prompt has beyond its contents: of the first message, and of each further one.

        Measured on a chat of one and of three messages; without a template it is the tokenizer's special tokens.
        """
        plain = (float(self._tokenizer.num_special_tokens_to_add(pair=False)), 0.0)
        if not getattr(self._tokenizer, "chat_template", None):
            return plain
        word = "hello"
        content = len(self._tokenizer(word, add_special_tokens=False)["input_ids"])
        sizes = []
        for roles in ((USER,), (USER, ASSISTANT, USER)):
            chat = [{"role": r, "content": word} for r in roles]
            try:
                text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            except Exception:  # noqa: BLE001 - templates are programs of their authors and raise what they like
                return plain
            sizes.append(len(self._tokenizer(text, add_special_tokens=False)["input_ids"]) - content * len(roles))
        return float(sizes[0]), (sizes[1] - sizes[0]) / 2


def load_tokenizer(name: str) -> Any:
    """The Hugging Face tokenizer in the folder ``name`` or with that hub id; TraceError if it cannot be had."""
    where = f"tokenizer {name}"
    fix = "give a folder with tokenizer.json, or a hub id"
    if not Path(name).exists():
        if not HUB_ID.fullmatch(name):
            raise TraceError("no such folder", where=where, fix=fix)
        if not _is_cached(name):
            require_hub(where, fix="give a folder with tokenizer.json")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=Path(name).exists() or _is_cached(name))
    except Exception as e:
        # Whatever its files or its model's class make the library raise.
        reason = " ".join(str(e).split())[:120] or type(e).__name__
        raise TraceError(f"cannot be loaded ({reason})", where=where, fix=fix) from e


def _is_cached(name: str) -> bool:
    """Whether the hub's tokenizer ``name`` is in the local cache already."""
    from huggingface_hub import try_to_load_from_cache

    return any(isinstance(try_to_load_from_cache(name, f), str) for f in ("tokenizer.json", "tokenizer_config.json"))


def count_tokens(records: Sequence[Record], sources: Sources, counter: TokenCounter) -> list[Record]:
    """``records`` with the lengths that ``sources`` leaves to a tokenizer; those of answers may be absurd."""
    changes: list[dict[str, Any]] = [{} for _ in records]
    if sources.response.startswith(_BY_TOKENIZER):
        texts = [r.response for r in records]
        counts = iter(counter.count([t for t in texts if t is not None]))
        for record, change in zip(records, changes, strict=True):
            if record.response is not None:
                change["response_tokens"] = next(counts) + (not record.censored)
        thoughts = {i: t for i, r in enumerate(records) if (t := thinking_in(r.response)) is not None}
        for i, tokens in zip(thoughts, counter.count(list(thoughts.values())), strict=True):
            change = changes[i]
            change["thinking_tokens"] = min(tokens, change["response_tokens"])
    if sources.prompt.startswith(_BY_TOKENIZER):
        contexts = counter.count_contexts([r.chat() for r in records])
        for record, change, tokens in zip(records, changes, contexts, strict=True):
            if record.prompt is not None:
                change["prompt_tokens"] = tokens
    return [changed(r, **c) if c else r for r, c in zip(records, changes, strict=True)]


def estimated_tokens(text: str) -> int:
    return max(1, round(len(text) / CHARACTERS_PER_TOKEN))


class LengthHistogram:
    """How often each length (tokens) came: all that is needed to find a cap, in at most 8 MiB."""

    def __init__(self) -> None:
        self._counts: NDArray[np.int64] = np.zeros(MAX_RESPONSE_TOKENS + 1, dtype=np.int64)

    def add(self, lengths: Iterable[int]) -> None:
        counts = np.bincount(np.fromiter(lengths, dtype=np.int64))
        self._counts[: len(counts)] += counts

    def cap(self) -> int | None:
        """The limit at which answers were cut off, by where their lengths pile up; else ``None``.

        It is the smallest length c that nothing exceeds by more than 1 % (counts may include EOS or a special token)
        and that is at least 10 times, and by at least 10 answers, more frequent than those from 0.9 c to c on average.
        """
        counts = self._counts
        if counts.sum() < _FEWEST:
            return None
        top = int(counts.nonzero()[0][-1])
        for cap in range(max(2, int(top / 1.01)), top + 1):
            low = int(0.9 * cap)
            usual = float(counts[low:cap].sum()) / max(1, cap - low)
            if counts[cap] >= 10 + usual and counts[cap] >= 10 * usual:
                return cap
        return None


def mark_cut_off(records: Iterable[Record], cap: int | None) -> list[Record]:
    """Set ``censored`` where a length reached ``cap``; ``None``: there is no cap."""
    if cap is None:
        return list(records)
    return [changed(r, censored=True) if (r.response_tokens or 0) >= cap and not r.censored else r for r in records]
