"""The simulated machine: what a step costs and how much KV there is, from a GPU's and a model's name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from ecoserve.errors import ConfigError
from ecoserve.serving.core.forward_size import profile_sizes, target_forward_size
from ecoserve.serving.simulate.cost import StepCost, StepWork
from ecoserve.serving.simulate.settings import LINEAR, LINEAR_BLOCKS, SimulateSettings

if TYPE_CHECKING:
    from ecoserve.serving.simulate.gpu import GpuModel

#: Tokens of one prompt of a profile of forwards: long enough to be one, short enough that attention does not count.
PROMPT_TOKENS: Final = 512
#: The largest forward of a profile.
LARGEST: Final = 8192
#: The scheduler setting that may be ``auto`` in simulations.
_FORWARD_SIZE: Final = "target_forward_tokens"


@dataclass(frozen=True, slots=True)
class Machine:
    """One replica's hardware.

    Attributes:
        cost: seconds of a step.
        blocks: usable KV blocks.
        max_model_len: the model's longest sequence, tokens; None: no limit.
    """

    cost: StepCost
    blocks: int
    max_model_len: int | None = None


def machine_of(settings: SimulateSettings) -> Machine:
    """The machine that the settings describe; ``blocks`` that are not stated follow from GPU and model.

    Raises:
        ConfigError: for a GPU or model that is not known, or that do not go together.
    """
    s = settings
    if not s.on_gpu:
        if s.model is not None or s.tp != 1:
            raise ConfigError(
                "a model and tp need a GPU to run on", where="simulate", fix="name one by gpu, or leave them out"
            )
        return Machine(s.cost, LINEAR_BLOCKS if s.blocks is None else s.blocks)
    if s.model is None:
        raise ConfigError(
            f"gpu {s.gpu} needs a model to serve", where="simulate", fix=f"name one by model, or take gpu {LINEAR}"
        )
    gpu = _gpu_model(s.gpu, s.model, s.tp)
    blocks = s.blocks
    if blocks is None:
        blocks = gpu.kv_blocks(s.block_size, s.max_num_seqs, s.max_num_batched_tokens, s.gpu_memory_utilization)
    return Machine(gpu, blocks, gpu.shape.max_model_len)


@lru_cache(maxsize=8)
def _gpu_model(gpu: str, model: str, tp: int) -> GpuModel:
    from ecoserve.serving.simulate.gpu import gpu_model, load_shape

    return gpu_model(gpu, load_shape(model), tp)


def forward_times(
    cost: StepCost, *, depth: int = 1, largest: int = LARGEST, prompt_tokens: int = PROMPT_TOKENS
) -> list[tuple[int, float]]:
    """(tokens, seconds) of forwards of prompts alone, as :mod:`~ecoserve.serving.forward_run` measures on an engine."""
    out = []
    for size in profile_sizes(largest):
        chunks = [(min(prompt_tokens, size - at), 0) for at in range(0, size, prompt_tokens)]
        work = StepWork(size, 0, size, chunks)
        gpu, host = cost.seconds(work), cost.host_s(work)
        out.append((size, gpu + host if depth == 1 else max(gpu, host)))
    return out


def scheduler_settings(settings: SimulateSettings, cost: StepCost) -> dict[str, Any]:
    """The scheduler's settings, with ``target_forward_tokens: auto`` replaced by this machine's.

    Raises:
        ConfigError: for ``auto`` where no GPU is modelled: a linear cost never saturates.
    """
    if settings.scheduler.get(_FORWARD_SIZE) != "auto":
        return settings.scheduler
    if not settings.on_gpu:
        raise ConfigError(
            "auto needs a modelled GPU",
            where=f"scheduler setting {_FORWARD_SIZE}",
            fix="name a GPU and a model, or a number",
        )
    times = forward_times(cost, depth=settings.depth)
    return {**settings.scheduler, _FORWARD_SIZE: target_forward_size(times).tokens}
