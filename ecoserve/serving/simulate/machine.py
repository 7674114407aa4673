"""The simulated machine: what a step costs and how much KV there is, from a GPU's and a model's name.

Rule: what the settings state is taken (``blocks``), what they do not state follows from the GPU and the model. Without
a GPU the linear cost stands in, with a number of blocks that is nobody's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from ecoserve.errors import ConfigError
from ecoserve.serving.simulate.cost import ModelledCost, StepCost
from ecoserve.serving.simulate.settings import LINEAR, LINEAR_BLOCKS, SimulateSettings


@dataclass(frozen=True, slots=True)
class Machine:
    """One replica's hardware.

    Attributes:
        cost: seconds of a step.
        blocks: usable KV blocks.
        max_model_len: the most tokens the model can have in one sequence; None: nobody asks.
    """

    cost: StepCost
    blocks: int
    max_model_len: int | None = None


def machine_of(settings: SimulateSettings) -> Machine:
    """The machine that the settings describe.

    Raises:
        ConfigError: for a GPU or model that is not known, or that do not go together.
    """
    if not settings.on_gpu:
        if settings.model is not None or settings.tp != 1:
            raise ConfigError(
                "a model and tp need a GPU to run on", where="simulate", fix="name one by gpu, or leave them out"
            )
        return Machine(settings.cost, LINEAR_BLOCKS if settings.blocks is None else settings.blocks)
    if settings.model is None:
        raise ConfigError(
            f"gpu {settings.gpu} needs a model to serve",
            where="simulate",
            fix=f"name one by model, or take gpu {LINEAR}",
        )
    return _on_gpu(
        settings.gpu,
        settings.model,
        settings.tp,
        settings.blocks,
        settings.block_size,
        settings.max_num_seqs,
        settings.max_num_batched_tokens,
        settings.gpu_memory_utilization,
    )


@lru_cache(maxsize=8)
def _on_gpu(
    gpu: str,
    model: str,
    tp: int,
    blocks: int | None,
    block_size: int,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    gpu_memory_utilization: float,
) -> Machine:
    from ecoserve.serving.simulate.gpu import gpu_model, load_shape

    shape = load_shape(model)
    made = gpu_model(gpu, shape, tp)
    if blocks is None:
        blocks = made.kv_blocks(block_size, max_num_seqs, max_num_batched_tokens, gpu_memory_utilization)
    return Machine(ModelledCost(made), blocks, shape.max_model_len)
