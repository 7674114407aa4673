"""Features of a request's parameters, for predictors that have learned from them.

Rule: numbers as they are, and whether something is there at all. What a stop string says is left to the words of the
request, but one that is a line end means one paragraph, which is a feature of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.predictor.text import RequestView

PARAMETER_FEATURES: Final = ("max_tokens", "stop_strings", "stops_at_line_end", "tools", "thinking", "formatted")
#: Thinking from off to most; what is said in other words lies between.
_THINKING: Final = {
    "off": 0.0,
    "minimal": 1.0,
    "low": 2.0,
    "on": 3.0,
    "medium": 3.0,
    "high": 4.0,
    "xhigh": 5.0,
    "max": 5.0,
}


def parameter_features(views: Sequence[RequestView]) -> npt.NDArray[np.float64]:
    """Shape ``[n, len(PARAMETER_FEATURES)]``; -1 where a request says nothing."""
    rows = [_row(v) for v in views]
    return np.asarray(rows, dtype=np.float64).reshape(len(rows), len(PARAMETER_FEATURES))


def _row(view: RequestView) -> list[float]:
    said = view.parameters
    return [
        float(-1 if said.max_tokens is None else said.max_tokens),
        float(len(said.stop)),
        float(any(not s.strip() and "\n" in s for s in said.stop)),
        float(said.tools),
        -1.0 if said.thinking is None else _THINKING.get(said.thinking, 3.0),
        float(said.response_format is not None),
    ]
