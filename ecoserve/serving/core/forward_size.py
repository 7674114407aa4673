"""How many tokens the next forward may have: prompts beside decodes, which always have their place.

1. ``target_forward_tokens``, if it is set, or vLLM's own most (baselines), and nothing else.
2. *By deadline*: the step takes no longer than the running decodes can spare, by the learned time of a step
   (:mod:`~ecoserve.serving.core.step_time`): a low quantile of slack per remaining step. Decodes that are late in any
   case do not count.
3. *Spread*: prompts that wait are computed over as many steps as the square root of decodes per prompt. A prompt's
   tokens delay all decodes, and their wait only the prompts themselves (docs/log.md has what it brings).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np

from ecoserve.serving.core.forecast import Forecast
from ecoserve.serving.core.settings import SchedulerSettings
from ecoserve.serving.core.step_time import StepLoad, StepTime
from ecoserve.serving.core.tasks import Task, TaskState

#: The quantile of the decodes' slack per remaining token that a step may take, and the share of it that is used.
SLACK_QUANTILE: Final = 0.05
SLACK_GAIN: Final = 0.9
#: Prompt tokens of a step in any case.
LEAST_PROMPT_TOKENS: Final = 64


class ForwardSize:
    """The size of each forward.

    Args:
        most_tokens: vLLM's most tokens of a forward.
        chunked_prefill: without it every forward may have as many.
        least_chunk: tokens of which vLLM makes a prompt's chunks, whole ones only (states that are cached a block).
    """

    def __init__(
        self,
        settings: SchedulerSettings,
        most_tokens: int,
        forecast: Forecast,
        chunked_prefill: bool = True,
        least_chunk: int = 1,
    ) -> None:
        self._least_chunk = least_chunk
        self._chunked = chunked_prefill
        fixed = most_tokens if settings.parts.fixed_forward and chunked_prefill else None
        self._target = settings.target_forward_tokens or fixed
        self._most = most_tokens
        self._forecast = forecast
        self.step_time = StepTime()
        #: requests that wait for their prefill, with the tokens it has, and their sum
        self._waiting: dict[Task, int] = {}
        self._waiting_tokens = 0

    def waits(self, task: Task) -> None:
        """A request waits for its prefill."""
        self.waits_no_more(task)
        self._waiting[task] = tokens = task.prompt_tokens + task.generated
        self._waiting_tokens += tokens

    def waits_no_more(self, task: Task) -> None:
        self._waiting_tokens -= self._waiting.pop(task, 0)

    def tokens(self, running: Sequence[Task], free_tokens: int, now: float) -> int:
        """Most tokens of the next forward; ``free_tokens``: for which there is KV."""
        if not self._chunked:
            return self._most
        decodes = [t for t in running if t.state is TaskState.DECODE]
        theirs = sum(t.asks for t in decodes)
        if self._target is not None:
            return min(self._most, max(self._target, theirs + 1))
        prefills = [t for t in running if t.state is TaskState.PREFILL]
        prompts = len(prefills) + len(self._waiting)
        backlog = sum(t.known_tokens - t.written for t in prefills) + min(self._waiting_tokens, free_tokens)
        spread = max(1.0, math.sqrt(len(decodes) / max(1, prompts)))
        room = min(backlog / spread, self._by_deadline(decodes, prefills, now))
        chunks = -(-max(LEAST_PROMPT_TOKENS, int(room)) // self._least_chunk)
        return min(self._most, theirs + chunks * self._least_chunk)

    def _by_deadline(self, decodes: list[Task], prefills: list[Task], now: float) -> float:
        """Prompt tokens that the decodes' deadlines allow."""
        due = [t for t in decodes if t.has_slo()]
        if not due or not self.step_time.ready:
            return math.inf
        kv_tokens = sum(t.written for t in decodes if t.asks)
        theirs = sum(t.asks for t in decodes)
        base = self.step_time.seconds(StepLoad(0, theirs, kv_tokens))
        rests = self._forecast.rests(due)
        left = np.array([t.due_after(rest) for t, rest in zip(due, rests.tolist(), strict=True)]) - now
        slack = left / rests * self._forecast.tokens_per_step
        slack = np.sort(slack[(slack > base * 1.02) & np.isfinite(slack)])
        if not len(slack):
            return math.inf
        seconds = float(slack[int(SLACK_QUANTILE * len(slack))]) * SLACK_GAIN
        return self.step_time.prompt_tokens(seconds, theirs, kv_tokens, prefills[0].written if prefills else 0)
