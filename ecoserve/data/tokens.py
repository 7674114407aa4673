"""Counting tokens with a Hugging Face tokenizer.

Each distinct text is tokenized once, in batches; nothing is downloaded if the tokenizer is already here, and
no machine without a hub waits for one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ecoserve.data.hub import HUB_ID, require_hub
from ecoserve.data.records import ASSISTANT, USER, Message
from ecoserve.errors import TraceError

_BATCH: Final = 512


class TokenCounter:
    """Counts tokens as the tokenizer ``name`` (folder or hub id) makes them.

    Raises:
        TraceError: if the tokenizer cannot be loaded.
    """

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
        """Tokens of each chat as a prompt: its contents, and what the tokenizer's chat template puts around them.

        The template's part is measured on a chat of one and of three messages and taken to grow evenly, which is
        how templates work; without a template it is the tokenizer's special tokens.
        """
        contents = iter(self.count([m.content for chat in chats for m in chat]))
        first, more = self._overhead
        return [sum(next(contents) for _ in chat) + round(first + more * (len(chat) - 1)) for chat in chats]

    def _chat_overhead(self) -> tuple[float, float]:
        """Tokens that a prompt has beyond its contents: of the first message, and of each further one."""
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
    """The Hugging Face tokenizer in the folder ``name``, or with that hub id.

    Raises:
        TraceError: if it is not there, cannot be read, or the hub would be needed and cannot be reached.
    """
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
