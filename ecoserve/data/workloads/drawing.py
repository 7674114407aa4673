"""Drawing requests: prompt, answer and text of each.

One row of uniform numbers per request, and one for its text, so that words draw no other lengths. Prompt and
response length are tied by a Gaussian copula: normal variables with the given correlation decide at which quantile of
its own law each of the two lies (Nelsen 2006, section 2.3), so that either law stays what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from ecoserve.data.laws import LONGEST
from ecoserve.data.workloads.sources import Bools, Floats, Ints, Sources
from ecoserve.data.workloads.spec import FittedCorrelation, TrafficClass
from ecoserve.data.workloads.texts import Templates, tokens_of
from ecoserve.errors import TraceError

#: Uniform numbers of a request: prompt, response, and one for filler in a conversation.
_OWN_DRAWS: Final = 3
#: Quantiles are asked for between this and 1 minus it.
_EDGE: Final = 2.0**-53


@dataclass(frozen=True, slots=True)
class Drawn:
    """Requests of one class, arrays of shape ``[n]``: prompt and response in tokens, whether the answer was cut off,
    texts (``None`` without templates), and a spare uniform number for each.
    """

    prompt: Ints
    response: Ints
    cut: Bools
    texts: list[str] | None
    spare: Floats

    def __len__(self) -> int:
        return len(self.prompt)


class Drawer:
    """Requests of ``traffic``, as many at a time as are asked for: what comes does not depend on how it is cut up.

    Raises:
        TraceError: if a trace that it names cannot be used.
    """

    def __init__(self, traffic: TrafficClass, seed: int, sources: Sources) -> None:
        assert traffic.prompt is not None
        assert traffic.response is not None
        prompt, response = traffic.prompt, traffic.response
        self._where, self._max_tokens = sources.where, response.max_tokens
        self._numbers, self._words = (np.random.default_rng([seed, i]) for i in (0, 1))
        self._templates = Templates(prompt.templates, prompt.words) if prompt.templates else None
        self._correlation = _correlation(traffic, sources)
        self._prompt = sources.quantiles(prompt.tokens, "prompt") if prompt.tokens is not None else None
        self._response = sources.quantiles(response.tokens, "response")

    def take(self, n: int) -> Drawn:
        """The next ``n`` requests.

        Raises:
            TraceError: if a template cannot be rendered.
        """
        draws = self._numbers.random((n, _OWN_DRAWS))
        at_prompt, at_response = _tied(draws[:, 0], draws[:, 1], self._correlation)
        asked = self._prompt(at_prompt)[0] if self._prompt is not None else None
        wanted, cut = self._response(at_response)
        texts: list[str] | None = None
        if self._templates is not None:
            texts, factors = [], np.ones(n)
            for i, row in enumerate(self._words.random((n, self._templates.draws)).tolist()):
                try:
                    text, factors[i] = self._templates.render(row, None if asked is None else int(asked[i]))
                except ValueError as error:
                    raise TraceError(str(error), where=self._where) from None
                texts.append(text)
            asked = np.array([tokens_of(text) for text in texts], dtype=np.int64)
            wanted = np.clip(np.rint(wanted * factors), 1, LONGEST).astype(np.int64)
        assert asked is not None  # a prompt has tokens or templates
        if (most := self._max_tokens) is not None:
            cut = (cut & (wanted <= most)) | (wanted > most)
            wanted = np.minimum(wanted, most)
        return Drawn(asked, wanted, cut, texts, draws[:, 2])


def _correlation(traffic: TrafficClass, sources: Sources) -> float:
    given = traffic.correlation
    return sources.correlation(given.fitted) if isinstance(given, FittedCorrelation) else float(given)


def _tied(first: Floats, second: Floats, correlation: float) -> tuple[Floats, Floats]:
    """Two independent uniform variables as two whose normals have ``correlation``; the first one stays as it is."""
    from scipy import special

    first, second = np.clip(first, _EDGE, 1 - _EDGE), np.clip(second, _EDGE, 1 - _EDGE)
    if correlation:
        normal = correlation * special.ndtri(first) + np.sqrt(1 - correlation**2) * special.ndtri(second)
        second = np.clip(special.ndtr(normal), _EDGE, 1 - _EDGE)
    return first, second
