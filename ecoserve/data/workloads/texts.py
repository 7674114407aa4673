"""Texts of prompts: templates with words put in, filled up to a length.

Templates run in Jinja's sandbox and use only the words of the file; another is an error when the file is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

from ecoserve.data.measuring import CHARACTERS_PER_TOKEN, estimated_tokens

if TYPE_CHECKING:
    from jinja2 import Environment, Template

FILLER: Final = "filler"
#: Stands where filler goes; templates are YAML text, which cannot hold it.
_PLACE: Final = "\x00"
_FILLER_CHARACTERS: Final = 2**18

#: Words without a meaning.
_WORDS: Final = (
    "the a of to and in that it is was for on are with as his they at be this from have or by one had not but "
    "what all were when we there can an your which their said if do will each about how up out them then she many "
    "some so these would other into has more her two like him see time could no make than first been its who now "
    "people my made over did down only way find use may water long little very after words called just where most "
    "know get through back much before go good new write our used me man too any day same right look think also "
    "around another came come work three word must because does part even place well such here take why things "
    "help put years different away again "
)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import SandboxedEnvironment

    return SandboxedEnvironment(undefined=StrictUndefined)


def check_templates(templates: Sequence[str], words: set[str], *, filled: bool) -> None:
    """Refuse templates that are none, or that use what ``words`` does not name; ``filled``: filler may be used too."""
    from jinja2 import TemplateError, meta

    if FILLER in words:
        raise ValueError(f"{FILLER!r} is no name for words: it stands for what fills a text up")
    known = {*words, FILLER} if filled else words
    used: set[str] = set()
    for number, text in enumerate(templates, 1):
        try:
            names = meta.find_undeclared_variables(_environment().parse(text))
        except TemplateError as error:
            raise ValueError(f"template {number} is none ({error})") from None
        unknown = sorted(names - known)
        if unknown:
            there = f"there is only {', '.join(sorted(known))}" if known else "there are no words"
            raise ValueError(f"template {number} uses {{{{ {unknown[0]} }}}}, but {there}")
        used |= names
    if words - used:
        raise ValueError(f"no template uses the words {sorted(words - used)[0]!r}")


@lru_cache(maxsize=1)
def _long_filler() -> str:
    rng = np.random.default_rng(20241125)
    words = rng.choice(_WORDS.split(), size=_FILLER_CHARACTERS // 3)
    return " ".join(words.tolist())[:_FILLER_CHARACTERS]


def filler(tokens: int, at: float) -> str:
    """Words without a meaning that count as ``tokens`` tokens; ``at`` (0 to 1) chooses which."""
    size = round(tokens * CHARACTERS_PER_TOKEN)
    text = _long_filler()
    start = text.index(" ", int(at * (len(text) // 2))) + 1
    while len(text) - start < size:
        text += " " + text
    cut = text[start : start + size]
    return cut[:-1] + "." if cut.endswith(" ") else cut


class Templates:
    """Compiled templates and the words they draw from."""

    def __init__(self, templates: Sequence[str], words: dict[str, dict[str, float]]) -> None:
        self._templates: list[Template] = [_environment().from_string(text) for text in templates]
        self._words = {name: list(weights.items()) for name, weights in words.items()}
        #: uniform draws that one text needs
        self.draws = 2 + len(self._words)

    def render(self, draw: Sequence[float], tokens: int | None) -> tuple[str, float]:
        """A text of about ``tokens`` tokens (``None``: as long as it is), and the product of its words' factors.

        ``draw``: :attr:`draws` uniform numbers below 1. A text that is empty or cannot be rendered is a ``ValueError``.
        """
        from jinja2 import TemplateError

        factor, chosen = 1.0, {}
        for u, (name, words) in zip(draw[2:], self._words.items(), strict=True):
            chosen[name], weight = words[int(u * len(words))]
            factor *= weight
        index = int(draw[0] * len(self._templates))
        try:
            text = self._templates[index].render(chosen, filler=_PLACE)
        except (TemplateError, ArithmeticError, TypeError, ValueError) as error:
            raise ValueError(f"template {index + 1} cannot be rendered ({error})") from error
        missing = 0 if tokens is None else tokens - estimated_tokens(text.replace(_PLACE, ""))
        if _PLACE in text:
            text = text.replace(_PLACE, filler(max(0, missing), draw[1]), 1).replace(_PLACE, "")
        elif missing > 0:
            text = f"{text}\n\n{filler(missing, draw[1])}"[: round((tokens or 0) * CHARACTERS_PER_TOKEN)]
        if not text.strip():
            raise ValueError(f"template {index + 1} gives an empty text")
        return text, factor
