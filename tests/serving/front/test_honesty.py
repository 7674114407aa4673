"""Forced lengths leak nothing into the scheduler's decisions."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from ecoserve.lengths import LengthDistribution
from ecoserve.serving.core import keys
from ecoserve.serving.engine_run import EngineRunSettings, engine_arguments, start_engine, stop_engine

pytestmark = [pytest.mark.engine, pytest.mark.filterwarnings("ignore")]


def decisions(model: Path, lengths: list[int]) -> list[dict[str, int]]:
    """What is scheduled in each step, up to the step whose output ends the first response."""
    from vllm import SamplingParams, TokensPrompt

    settings = EngineRunSettings(
        model=str(model),
        trace="-",
        blocks=31,
        block_size=32,
        max_num_seqs=16,
        max_model_len=512,
        threads=1,
    )
    engine = start_engine(engine_arguments(settings), settings.threads)
    steps: list[dict[str, int]] = []
    try:
        scheduler = engine.engine_core.engine_core.scheduler
        schedule = scheduler.schedule

        def noted(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            # vLLM adds eight random characters to every name.
            steps.append({name[:-9]: count for name, count in output.num_scheduled_tokens.items()})
            return output

        scheduler.schedule = noted
        rng = random.Random(0)
        for i, length in enumerate(lengths):
            predicted = LengthDistribution.lognormal(rng.randrange(20, 200), 0.6, 300)
            params = SamplingParams(
                temperature=0.0,
                max_tokens=300,
                detokenize=False,
                extra_args={keys.REPLAY_TOKENS: length, keys.LENGTHS: predicted.to_wire()},
            )
            prompt = [rng.randrange(10, 4000) for _ in range(rng.randrange(8, 60))]
            engine.add_request(f"q{i}", TokensPrompt(prompt_token_ids=prompt), params, arrival_time=float(i))
        while not any(output.finished for output in engine.step()):
            pass
        return steps
    finally:
        stop_engine(engine)


def test_permuted_lengths_change_no_decision_before_the_first_end(tiny_model: Path) -> None:
    """On an engine; adapter/test_honesty.py has the same for every policy, vLLM's own too, in virtual time."""
    lengths = [60 + 5 * i for i in range(40)]
    shuffled = list(lengths)
    random.Random(1).shuffle(shuffled)
    one, other = decisions(tiny_model, lengths), decisions(tiny_model, shuffled)
    common = min(len(one), len(other))
    assert common >= 60
    assert one[:common] == other[:common]
