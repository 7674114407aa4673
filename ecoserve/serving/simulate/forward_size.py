"""The profiling run for the target forward size, on a modelled machine: forwards of prompts alone, from small to large.

Rule: prompts of ``PROMPT_TOKENS`` each, without anything before them, as in
:mod:`~ecoserve.serving.forward_run`, which does the same on an engine.
"""

from __future__ import annotations

from typing import Any, Final

from ecoserve.errors import ConfigError
from ecoserve.serving.core.forward_size import ForwardSize, profile_sizes
from ecoserve.serving.core.forward_size import target_forward_size as knee
from ecoserve.serving.simulate.cost import StepCost, StepWork

#: Tokens of one prompt of the profile: long enough to be one, short enough that attention does not count.
PROMPT_TOKENS: Final = 512
#: The largest forward that is timed.
LARGEST: Final = 8192
#: A scheduler's knob that may be ``auto`` in simulations.
KNOB: Final = "target_forward_tokens"


def forward_times(
    cost: StepCost, *, depth: int = 1, largest: int = LARGEST, prompt_tokens: int = PROMPT_TOKENS
) -> list[tuple[int, float]]:
    """(tokens, seconds) of forwards: what a step takes, the host's part included where it is not hidden."""
    out = []
    for size in profile_sizes(largest):
        chunks = [(min(prompt_tokens, size - at), 0) for at in range(0, size, prompt_tokens)]
        work = StepWork(size, 0, size, chunks)
        gpu, host = cost.seconds(work), cost.host_s(work)
        out.append((size, gpu + host if depth == 1 else max(gpu, host)))
    return out


def target_forward_size(cost: StepCost, *, depth: int = 1, largest: int = LARGEST) -> ForwardSize:
    """The target forward size of a modelled machine with ``depth`` steps in flight."""
    return knee(forward_times(cost, depth=depth, largest=largest))


def resolved_knobs(knobs: dict[str, Any], cost: StepCost, depth: int, on_gpu: bool) -> dict[str, Any]:
    """A scheduler's knobs with ``target_forward_tokens: auto`` replaced by this machine's.

    Raises:
        ConfigError: for ``auto`` where no GPU is modelled: a linear cost never saturates.
    """
    if knobs.get(KNOB) != "auto":
        return knobs
    if not on_gpu:
        raise ConfigError(
            "auto needs a modelled GPU", where=f"scheduler setting {KNOB}", fix="name a GPU and a model, or a number"
        )
    return {**knobs, KNOB: target_forward_size(cost, depth=depth).tokens}
