"""Token ids of a load's prompts: its chats by the served model's chat template, as an API server would make them.

Of traces with lengths only, random words of the right number, the same for the same seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ecoserve.errors import ConfigError, RunError
from ecoserve.serving.workload import LoadRequest


class Prompts:
    """Token ids of a load's prompts.

    Args:
        tokenizer: the served model's.
        longest: prompts of more tokens are cut there, so that every response has its room.
        seed: of the random tokens that stand for prompts of which only the length is known.
    """

    def __init__(self, tokenizer: Any, longest: int, seed: int) -> None:
        if longest < 1:
            raise ConfigError("max_tokens leaves no room for a prompt", fix="lower it, or raise max_model_len")
        self._tokenizer = tokenizer
        self._longest = longest
        self._rng = np.random.default_rng(seed)
        special = set(tokenizer.all_special_ids)
        self._words = np.array([i for i in range(len(tokenizer)) if i not in special])

    def of(self, request: LoadRequest) -> list[int]:
        """The prompt of one request: its chat by the model's template, its text, or random words of its length."""
        chat = request.messages
        if not chat:
            count = min(request.prompt_tokens, self._longest)
            return [int(i) for i in self._rng.choice(self._words, count)]
        if getattr(self._tokenizer, "chat_template", None):
            text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            ids = self._tokenizer.encode(text, add_special_tokens=False)
        else:
            ids = self._tokenizer.encode("\n".join(m["content"] for m in chat))
        if not ids:
            raise RunError(f"the tokenizer makes nothing of the prompt of {request.name}")
        return list(ids[: self._longest])
