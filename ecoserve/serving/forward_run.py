"""The target forward size: tokens in one forward at which throughput saturates; and the run that times forwards.

Prompts are free up to where computing a forward's tokens takes as long as reading the weights. Of forwards of prompts
alone, timed at several sizes, the target is the smallest size that gives ``SATURATION`` of the best throughput.
EcoServe (arXiv 2411.06364) fills prompts up to such a size; how it is found is ours. The times of one request on an
idle engine come with them, as a basis for SLOs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field

from ecoserve.errors import ConfigError
from ecoserve.serving.engine_run import EngineRunSettings, engine_arguments, start_engine, stop_engine

#: Share of the best throughput that counts as saturated.
SATURATION: Final = 0.9
#: If the largest size is better by this factor than the one before it, throughput has not saturated.
_RISING: Final = 1.03


@dataclass(frozen=True, slots=True)
class ForwardSize:
    """The target forward size, in ``tokens``, and the throughput at the best size.

    ``saturated``: False if throughput still rises at the largest size: the target is then too small.
    """

    tokens: int
    best_tokens_per_s: float
    saturated: bool


def profile_sizes(largest: int, smallest: int = 16) -> list[int]:
    """Sizes to time: powers of two and the middle between each two, up to ``largest``, which is the last."""
    out = []
    size = smallest
    while size < largest:
        out += [size, size + size // 2]
        size *= 2
    return [n for n in out if n < largest] + [largest]


def target_forward_size(times: Sequence[tuple[int, float]], saturation: float = SATURATION) -> ForwardSize:
    """The target forward size of a machine, from (tokens, seconds) of forwards, sizes ascending; at least two."""
    assert len(times) >= 2
    assert all(a[0] < b[0] for a, b in pairwise(times))
    rates = [n / s for n, s in times]
    best = max(rates)
    goal = saturation * best
    k = next(i for i, rate in enumerate(rates) if rate >= goal)
    tokens = float(times[k][0])
    if k > 0:
        (n0, s0), (n1, s1) = times[k - 1], times[k]
        slope = (s1 - s0) / (n1 - n0)
        # n / (s0 + slope (n - n0)) = goal
        tokens = min(float(n1), max(float(n0), goal * (s0 - slope * n0) / (1 - goal * slope)))
    return ForwardSize(max(1, round(tokens)), best, rates[-1] <= _RISING * max(rates[:-1]))


#: Progress: sizes done, sizes in all.
Progress = Callable[[int, int], None]

#: A size is timed this often, or until so many seconds have passed.
_REPEATS: Final = 5
_ENOUGH_S: Final = 3.0
#: Tokens after the first, of the request on an idle engine.
_FURTHER: Final = 32


class ForwardRunSettings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="folder or hub id of the served model")
    largest: int = Field(4096, ge=32, le=2**20, description="tokens of the largest forward")
    prompt_tokens: int = Field(512, ge=8, description="tokens of each prompt; fewer where the model's limit is lower")
    threads: int | None = Field(None, ge=1, description="threads of the model on a CPU; by default vLLM's choice")
    engine: dict[str, Any] = Field(default_factory=dict, description="further vLLM engine arguments")


@dataclass(frozen=True, slots=True)
class ForwardRun:
    """What was measured: (tokens, seconds) of forwards, sizes ascending, of prompts of ``prompt_tokens`` each.

    ``ttft_s``, ``tpot_s``: of a prompt of that length on an idle engine, and of its further tokens.
    """

    times: list[tuple[int, float]]
    prompt_tokens: int
    ttft_s: float
    tpot_s: float


def measure_forwards(settings: ForwardRunSettings, progress: Progress | None = None) -> ForwardRun:
    """Start an engine, time its forwards, and shut it down; ConfigError for a model that cannot be used."""
    arguments = engine_arguments(
        EngineRunSettings(
            model=settings.model,
            trace="-",
            policy="vllm",
            max_num_seqs=max(64, -(-settings.largest // settings.prompt_tokens)),
            max_num_batched_tokens=settings.largest,
            prefix_caching=False,
            engine={"logits_processors": None, **settings.engine},
        )
    )
    engine = start_engine(arguments, settings.threads)
    try:
        return time_forwards(engine, settings.largest, settings.prompt_tokens, progress)
    finally:
        stop_engine(engine)


def time_forwards(engine: Any, largest: int, prompt_tokens: int, progress: Progress | None = None) -> ForwardRun:
    """Time forwards of an idle ``LLMEngine``, no prefix shared; ConfigError if the KV cannot hold the largest."""
    scheduler = engine.engine_core.engine_core.scheduler
    prompt_tokens = min(prompt_tokens, int(engine.model_config.max_model_len) - 1)
    prompts = -(-largest // prompt_tokens)
    blocks = prompts * (-(-(prompt_tokens + 1) // int(scheduler.block_size)))
    if blocks > scheduler.usable_blocks or prompts > scheduler.max_num_running_reqs:
        raise ConfigError(
            f"a forward of {largest} tokens would be {prompts} prompts and {blocks} blocks of KV: more than there is",
            where="calibrate-forward",
            fix="a lower --largest",
        )
    asks = _Asks(engine)
    sizes = profile_sizes(largest)
    times = []
    for i, size in enumerate(sizes):
        asks.forward(size, prompt_tokens)
        seen: list[float] = []
        while not seen or (len(seen) < _REPEATS and sum(seen) < _ENOUGH_S):
            seen.append(asks.forward(size, prompt_tokens))
        times.append((size, median(seen)))
        if progress is not None:
            progress(i + 1, len(sizes))
    further = min(_FURTHER, int(engine.model_config.max_model_len) - prompt_tokens)
    asks.alone(prompt_tokens, further)
    alone = [asks.alone(prompt_tokens, further) for _ in range(3)]
    return ForwardRun(times, prompt_tokens, median(a[0] for a in alone), median(a[1] for a in alone))


#: Steps of decodes that are timed.
_DECODES: Final = 16


def time_decodes(engine: Any, batch: int, prompt_tokens: int) -> tuple[int, int, float] | None:
    """(``batch``, mean tokens of the contexts, seconds of a step) of decodes alone; None if they do not fit."""
    scheduler = engine.engine_core.engine_core.scheduler
    limit = int(engine.model_config.max_model_len)
    steps_before = -(-batch * prompt_tokens // scheduler.max_num_scheduled_tokens) + 2 * _DECODES
    longest = prompt_tokens + steps_before + _DECODES
    blocks = batch * -(-longest // int(scheduler.block_size))
    if longest > limit or batch > scheduler.max_num_running_reqs or blocks > scheduler.usable_blocks:
        return None
    asks = _Asks(engine)
    names = [asks.add(prompt_tokens, limit - prompt_tokens) for _ in range(batch)]
    waiting = set(names)
    while waiting:
        waiting -= {o.request_id for o in engine.step()}
    for _ in range(_DECODES // 2):
        engine.step()
    begun = time.perf_counter()
    for _ in range(_DECODES):
        engine.step()
    seconds = (time.perf_counter() - begun) / _DECODES
    context = sum(r.num_computed_tokens for r in scheduler.running) / batch
    engine.abort_request(names)
    return batch, round(context), seconds


class _Asks:
    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._scheduler = engine.engine_core.engine_core.scheduler
        self._words = max(2, int(engine.model_config.get_vocab_size()) - 10)
        self._number = 0

    def add(self, tokens: int, max_tokens: int) -> str:
        from vllm import SamplingParams, TokensPrompt

        self._number += 1
        prompt = [10 + (self._number * 31 + i * 7) % (self._words - 1) for i in range(tokens)]
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True, detokenize=False)
        name = f"forward-{self._number}"
        self._engine.add_request(name, TokensPrompt(prompt_token_ids=prompt), params)
        return name

    def forward(self, size: int, prompt_tokens: int) -> float:
        for at in range(0, size, prompt_tokens):
            self.add(min(prompt_tokens, size - at), 1)
        begun = time.perf_counter()
        while self._engine.has_unfinished_requests():
            self._engine.step()
        return time.perf_counter() - begun

    def alone(self, prompt_tokens: int, further: int) -> tuple[float, float]:
        """(seconds to the first token, seconds for each further one) of one request."""
        self.add(prompt_tokens, 1 + further)
        begun = time.perf_counter()
        first = None
        while self._engine.has_unfinished_requests():
            outputs = self._engine.step()
            if first is None and any(o.outputs and o.outputs[0].token_ids for o in outputs):
                first = time.perf_counter()
        assert first is not None
        return first - begun, (time.perf_counter() - first) / further
