"""Languages of a sample of prompts, by py3langid, after code, addresses and markup have been removed.

A text of fewer than 20 letters (5 in scripts that write a word in one or two characters) or a confidence below 0.7 is
``unclear``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

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
    """Languages of some rows: ``rows`` (ascending) and ``codes`` (indices into ``names``, ISO 639), both of shape
    ``[k]``.
    """

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
