"""What the prompt's length alone tells about the answer's.

Rule: a straight line through log lengths, and bands of prompt length, which take any shape; the error of a band's
median is taken on records that it was not learned from (odd rows from even ones, and the other way round).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from ecoserve.data.profiling.accuracy import tau
from ecoserve.data.profiling.groupings import explained
from ecoserve.data.profiling.model import PromptLength
from ecoserve.data.profiling.table import TraceTable

_BANDS: Final = 20
_FEWEST: Final = 100


@dataclass(frozen=True, slots=True)
class BandGuess:
    """What the prompt's length band says about each answer.

    Attributes:
        rows: shape ``[k]``, rows of the table whose prompt has a length.
        bands: shape ``[k]``, the band of each, 0 to at most 19.
        guess: shape ``[k]``, tokens: the median of the band, learned on the other half of the records.
        constant: shape ``[k]``, tokens: the median of all, learned so too.
    """

    rows: npt.NDArray[np.int64]
    bands: npt.NDArray[np.int64]
    guess: npt.NDArray[np.float64]
    constant: npt.NDArray[np.float64]


def guess_by_band(table: TraceTable) -> BandGuess | None:
    """Guesses by prompt length; ``None`` for fewer than 100 records with one, or where all are equal."""
    rows = np.flatnonzero(table.prompt > 0)
    prompt, response = table.prompt[rows], table.response[rows]
    if len(rows) < _FEWEST or np.ptp(prompt) == 0 or np.ptp(response) == 0:
        return None
    edges = np.unique(np.quantile(prompt, np.linspace(0, 1, _BANDS + 1)[1:-1], method="inverted_cdf"))
    bands = np.searchsorted(edges, prompt, side="left")
    guess, constant = np.zeros(len(rows)), np.zeros(len(rows))
    for here in (0, 1):
        test = np.zeros(len(rows), dtype=bool)
        test[here::2] = True
        constant[test] = np.median(response[~test])
        for band in range(int(bands.max()) + 1):
            learned = response[~test & (bands == band)]
            mine = test & (bands == band)
            guess[mine] = np.median(learned) if len(learned) else constant[mine]
    return BandGuess(rows, bands, guess, constant)


def prompt_length(table: TraceTable, by_band: BandGuess, seed: int) -> PromptLength:
    """What prompts' lengths tell."""
    from scipy.stats import rankdata

    prompt, response = table.prompt[by_band.rows], table.response[by_band.rows]
    line = np.corrcoef(np.log(prompt), np.log(response))[0, 1]
    ranks = np.corrcoef(rankdata(prompt), rankdata(response))[0, 1]
    return PromptLength(
        rows=len(prompt),
        spearman=float(ranks),
        kendall_tau=tau(prompt, response, seed),
        r2_log=float(line**2),
        r2_log_bands=explained(np.log(response), by_band.bands) or 0.0,
        mae_tokens=float(np.abs(response - by_band.guess).mean()),
        mae_constant_tokens=float(np.abs(response - by_band.constant).mean()),
    )
