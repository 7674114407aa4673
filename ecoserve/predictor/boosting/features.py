"""Features of a request for the trees, one row of numbers each.

Counts in the text: the prompt's length and layout, the kind of response it asks for, numbers in it ("write 500 words"),
earlier turns. Scores of the word model. The request's parameters, for predictors that have learned from them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from string import ascii_uppercase, digits
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.predictor.text import RequestView

#: What a prompt asks for, by words that are typical of it.
_ASKS: Final[dict[str, str]] = {
    "list": r"list|enumerate|bullet|name (?:\w+ )?(?:some|two|three|four|five|six|seven|eight|nine|ten|\d+)",
    "long_text": r"essay|article|blog|story|stories|letter|speech|poem|lyrics|script|review|report|email",
    "code": r"code|function|program|python|java|javascript|html|css|sql|c\+\+|regex|algorithm|query",
    "sentence": r"sentences?|headline|title|slogan|tweet|caption|tagline|name for",
    "word": r"words?|synonyms?|antonyms?|adjectives?|verbs?|nouns?",
    "classify": r"classify|categori[sz]e|identify|detect|determine|label|true or false|yes or no|which of",
    "explain": r"explain|describe|discuss|compare|contrast|analy[sz]e|elaborate",
    "why_how": r"why|how",
    "what_who": r"what|who|when|where|which",
    "rewrite": r"rewrite|rephrase|reword|edit|convert|translate|correct|replace|transform|paraphrase|fix|change",
    "summary": r"summari[sz]e|summary|tl;?dr|conclusion",
    "paragraph": r"paragraphs?|passage",
    "several": r"examples?|tips|ideas|ways|steps|reasons|benefits|advantages|recipes?|plan|questions",
    "single": r"one|single|a sentence|short|brief|briefly|concise|concisely|quick",
    "long": r"detailed|in detail|comprehensive|thorough|long|step[- ]by[- ]step|at least",
    "calculate": r"calculate|compute|solve|evaluate|sum|convert|equation|percentage|area|average",
    "extract": r"extract|find|select|pick|count|sort|fill in|complete",
    "make": r"write|generate|create|compose|design|develop|construct|make|suggest|propose|come up",
}
_PATTERNS = {name: re.compile(rf"\b(?:{p})\b") for name, p in _ASKS.items()}
_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\b\d{1,5}\b")

#: Features of the parameters, see :func:`_parameters_row`.
PARAMETER_NAMES: Final = ("max_tokens", "stop_strings", "stops_at_line_end", "tools", "thinking", "formatted")
#: Thinking from off to most; other words count as "on".
_THINKING: Final = {"off": 0, "minimal": 1, "low": 2, "on": 3, "medium": 3, "high": 4, "xhigh": 5, "max": 5}


def feature_rows(
    views: Sequence[RequestView], scores: npt.NDArray[np.float64], *, parameters: bool = False
) -> npt.NDArray[np.float64]:
    """All features of ``n`` requests with these word scores, shape ``[n, F]``."""
    parts = [request_features(views), scores]
    if parameters:
        rows = [_parameters_row(v) for v in views]
        parts.append(np.asarray(rows, dtype=np.float64).reshape(len(rows), len(PARAMETER_NAMES)))
    return np.hstack(parts)


def feature_names(scores: int, *, parameters: bool = False) -> list[str]:
    """Names of the columns of :func:`feature_rows` with ``scores`` word scores."""
    return [*NAMES, *(f"words_{i}" for i in range(scores)), *(PARAMETER_NAMES if parameters else ())]


def request_features(views: Sequence[RequestView]) -> npt.NDArray[np.float64]:
    """Features of ``n`` requests, shape ``[n, len(NAMES)]``; -1 where there is no number or no earlier answer."""
    return np.asarray([[*_row(v).values()] for v in views], dtype=np.float64).reshape(len(views), len(NAMES))


def _row(view: RequestView) -> dict[str, float]:
    prompt = view.prompt
    lower = prompt.lower()
    words = _WORD.findall(lower)
    numbers = [int(n) for n in _NUMBER.findall(prompt)]
    size = max(1, len(prompt))
    first = prompt.find("\n") if "\n" in prompt else len(prompt)
    answers = view.answer_words
    return {
        "characters": float(len(prompt)),
        "words": float(len(words)),
        "word_length": sum(map(len, words)) / max(1, len(words)),
        "lines": float(prompt.count("\n")),
        "first_line_characters": float(first),
        "after_first_line_characters": float(len(prompt) - first),
        "question_marks": float(prompt.count("?")),
        "commas": float(prompt.count(",")),
        "colons": float(prompt.count(":")),
        "quotes": float(prompt.count('"')),
        "brackets": float(sum(map(prompt.count, "{}[]()<>"))),
        "digits": float(_count(str.isdigit, digits, prompt)),
        "uppercase_share": _count(str.isupper, ascii_uppercase, prompt) / size,
        "other_script_share": 0.0 if prompt.isascii() else sum(ord(c) > 0x24F for c in prompt) / size,
        "numbers": float(len(numbers)),
        "largest_number": float(max(numbers, default=-1)),
        "ends_with_question": float(lower.rstrip().endswith("?")),
        "context_characters": float(len(view.context)),
        "turn": float(view.turn),
        "last_answer_words": float(answers[0]) if answers else -1.0,
        "mean_answer_words": sum(answers) / len(answers) if answers else -1.0,
        "system_characters": float(view.system_characters),
        **{f"asks_{name}": float(p.search(lower) is not None) for name, p in _PATTERNS.items()},
    }


def _parameters_row(view: RequestView) -> list[float]:
    """Numbers as they are, and whether something is set; -1 where a request does not say."""
    given = view.parameters
    return [
        float(-1 if given.max_tokens is None else given.max_tokens),
        float(len(given.stop)),
        # A stop string that is a line end means one paragraph; what others say is left to the words.
        float(any(not s.strip() and "\n" in s for s in given.stop)),
        float(given.tools),
        _thinking(given.thinking),
        float(given.response_format is not None),
    ]


def _thinking(said: str | None) -> float:
    """Thinking from off to most, -1 where a request does not say; a budget of 1,024 tokens is low, of 8,192 high."""
    if said is None:
        return -1.0
    return min(5.0, math.log2(1 + int(said[:7]) / 512)) if said.isdecimal() else float(_THINKING.get(said, 3))


def _count(kind: Callable[[str], bool], among_ascii: str, text: str) -> int:
    """How many characters of ``text`` are of a kind; ``among_ascii`` are those of ASCII, which are counted faster."""
    return sum(map(text.count, among_ascii)) if text.isascii() else sum(map(kind, text))


#: Names of the columns of :func:`request_features`.
NAMES: Final = tuple(_row(RequestView("")))
