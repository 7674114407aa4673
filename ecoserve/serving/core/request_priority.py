"""vLLM's request priority in level ``order``, where vLLM's own scheduler serves by ``--scheduling-policy priority``.

The rank of a request is the one that ``srpt`` gives it when it arrives (:mod:`ecoserve.serving.core.orderings`):
expected tokens, the prompt's cost, and linear ageing by its arrival. All requests age alike, so a rank never changes,
and a request is overtaken only by requests that arrive within a bounded time after it. Without a prediction the
expected tokens are those of a history that has seen nothing, up to the request's own limit. Deadlines do not count:
whether one can still be reached changes while a request waits, and vLLM's priorities do not.

A client's own priority comes first: the priority is ``client * RANKS + rank``. ``0 <= rank < RANKS``, so a request that
got no rank is served before all that have one and the same client priority.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Final

from ecoserve.lengths import MAX_LENGTH, LengthDistribution
from ecoserve.serving.core.history import LengthHistory
from ecoserve.serving.core.orderings import SRPT, Pace
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.tasks import Task

#: Ranks below one client priority. vLLM's priorities have 64 bits: clients' are cut to +-:data:`MOST_CLIENT`.
RANKS: Final = 2**44
MOST_CLIENT: Final = 2**18
#: Steps of a token, or of a second where more than a token ages in one: Unix time in seconds stays below RANKS / STEPS.
STEPS: Final = 4096
#: Tokens of the longest response where nothing is known: 1 in 10 million by the history that has seen nothing.
_LONGEST_UNKNOWN: Final = 32_768


class RequestPriority:
    """Ranks by ``settings``: ``ageing_tokens_per_s`` and ``ordering_quantile``."""

    def __init__(self, settings: SchedulerSettings | None = None) -> None:
        settings = settings or SchedulerSettings()
        self._ordering = SRPT(settings, Pace(1))
        self._unit = max(1.0, settings.ageing_tokens_per_s) / STEPS
        self._unknown = LengthHistory(settings.history_window, _LONGEST_UNKNOWN)

    def of(
        self,
        lengths: Sequence[LengthDistribution],
        prompt_tokens: float,
        arrival_s: float,
        *,
        limit: int | None = None,
        client: int = 0,
    ) -> int:
        """The priority of a request, lower first.

        Args:
            lengths: one distribution for each prompt of its body, whose mean counts; empty: not known.
            prompt_tokens: of one prompt. arrival_s: on one clock for all requests.
            limit: most tokens of a response. client: the client's own priority.
        """
        most = min(limit or MAX_LENGTH, MAX_LENGTH)
        known = [d.closed_at(most) for d in lengths] or [self._unknown.distribution(most)]
        rank = fmean(self._rank(d, round(prompt_tokens), arrival_s, most) for d in known)
        cut = max(-MOST_CLIENT, min(MOST_CLIENT, client))
        return cut * RANKS + max(0, min(RANKS - 1, int(rank / self._unit)))

    def _rank(self, lengths: LengthDistribution, prompt_tokens: int, arrival_s: float, limit: int) -> float:
        task = Task(
            request_id="",
            prompt_tokens=prompt_tokens,
            lengths=lengths,
            limit=limit,
            most_tokens=prompt_tokens + limit,
            predicted=True,
            arrival_s=arrival_s,
        )
        return self._ordering.rank(task, arrival_s, prompt=True)[0]
