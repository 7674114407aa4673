"""The settings of a simulated run, and the machine they describe: what a step costs and how much KV there is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from pydantic import Field

from ecoserve.errors import ConfigError
from ecoserve.serving.adapter.contract import vllm_version
from ecoserve.serving.forward_run import profile_sizes, target_forward_size
from ecoserve.serving.routing import RouterName
from ecoserve.serving.simulate.cost import LinearCost, StepCost, StepWork
from ecoserve.serving.simulate.engine import EngineLimits, layers_of
from ecoserve.serving.simulate.replica import Charge
from ecoserve.serving.workload import LoadSettings

if TYPE_CHECKING:
    from ecoserve.serving.simulate.gpu.model import GpuModel

#: The GPU that is none: :class:`~ecoserve.serving.simulate.cost.LinearCost`, with this many usable KV blocks.
LINEAR: Final = "linear"
LINEAR_BLOCKS: Final = 1800


class SimulateSettings(EngineLimits, LoadSettings):
    policy: str = Field("ecoserve", description="scheduling policy")
    requests: int = Field(400, ge=1, description="requests of a run")
    depth: int = Field(1, ge=1, le=2, description="steps in flight; 2 is vLLM's asynchronous scheduling")
    gpu: str = Field(LINEAR, description="a GPU, as h100_sxm; or linear: a step cost that is linear in its work")
    model: str | None = Field(
        None,
        description="served model on a GPU: a name or a folder with config.json",
        json_schema_extra={"metavar": "NAME|DIR"},
    )
    tp: int = Field(1, ge=1, description="GPUs of one replica (tensor parallel)")
    link: str | None = Field(
        None,
        description="way between GPUs: nvlink, pcie, pcie-host (through the host's memory), or MICROSECONDS:GB/S; "
        "by default the GPU's",
        json_schema_extra={"metavar": "KIND"},
    )
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="vLLM's share of the GPU's memory")
    blocks: int | None = Field(
        None,
        ge=2,
        description="usable KV blocks; by default as many as the GPU holds",
        json_schema_extra={"flag": "kv-blocks"},
    )
    max_tokens: int = Field(2000, ge=1, description="max_tokens of every request")
    runner: int | None = Field(None, ge=1, le=2, description="model runner whose rules hold; by default V2 at depth 2")
    charge_scheduler: Charge = Field(
        "model", description="time of scheduling: by the GPU's model, measured on this machine, or none"
    )
    slower: float = Field(0.0, ge=0, description="share by which every step takes longer than its cost; SLOs stay")
    replicas: int = Field(1, ge=1, description="engines behind a router")
    prefill_replicas: int = Field(1, ge=1, description="distserve: of the replicas, those that only compute prompts")
    prefill_tp: int | None = Field(None, ge=1, description="distserve: GPUs of one that computes prompts; None: tp")
    kv_link: str = Field(
        "nvlink",
        description="distserve: way of KV between engines: nvlink, pcie, network, or MICROSECONDS:GB/S of one GPU",
        json_schema_extra={"metavar": "KIND"},
    )
    router: RouterName = Field("least-work", description="how the router chooses a replica")
    router_stale_ms: float = Field(
        0.0, ge=0, le=60_000, description="greatest age of what the router knows of replicas"
    )
    slo_scale: float | None = Field(
        None, gt=0, description="SLO: a multiple of what an idle engine needs for the request"
    )
    slo_ttft_ms: float | None = Field(None, gt=0, description="SLO: time to first token")
    slo_tpot_ms: float | None = Field(None, gt=0, description="SLO: time per output token after the first")
    tell_slo: bool = Field(True, description="requests carry their SLO; otherwise it is only used for attainment")
    scheduler: dict[str, Any] = Field(default_factory=dict, description="scheduler settings of ecoserve's policies")
    cost: LinearCost = Field(LinearCost(), description="cost of the linear GPU")

    @property
    def on_gpu(self) -> bool:
        return self.gpu != LINEAR


#: Defaults of a simulation of a trace, where they are not those of a run; None: what the trace needs.
SIMULATION: Final = {"depth": 2, "prefix_caching": True, "max_model_len": None}
#: Tokens of one prompt of a profile of forwards: long enough to be one, short enough that attention does not count.
PROMPT_TOKENS: Final = 512
#: The largest forward of a profile.
LARGEST: Final = 8192
#: The scheduler setting that may be ``auto`` in simulations.
_FORWARD_SIZE: Final = "target_forward_tokens"


@dataclass(frozen=True, slots=True)
class Machine:
    """One replica's hardware: step cost, usable KV blocks, longest sequence of the model in tokens (None: no limit)."""

    cost: StepCost
    blocks: int
    max_model_len: int | None = None


def machine_of(settings: SimulateSettings) -> Machine:
    """The machine that the settings describe.

    ConfigError for a GPU or model that is unknown or does not fit, and where there is no vLLM, whose scheduler is run.
    """
    vllm_version()
    s = settings
    if not s.on_gpu:
        if s.model is not None or s.tp != 1 or s.link is not None:
            raise ConfigError(
                "model, tp and link need a GPU to run on", where="simulate", fix="name one by gpu, or leave them out"
            )
        return Machine(s.cost, LINEAR_BLOCKS if s.blocks is None else s.blocks)
    if s.model is None:
        raise ConfigError(
            f"gpu {s.gpu} needs a model to serve", where="simulate", fix=f"name one by model, or take gpu {LINEAR}"
        )
    gpu = _gpu_model(s.gpu, s.model, s.tp, s.link)
    blocks = s.blocks
    if blocks is None:
        blocks = gpu.kv_blocks(s.block_size, s.max_num_seqs, s.max_num_batched_tokens, s.gpu_memory_utilization)
        blocks *= len(layers_of(s))  # a block holds one group's layers only
    return Machine(gpu, blocks, gpu.shape.max_model_len)


@lru_cache(maxsize=8)
def _gpu_model(gpu: str, model: str, tp: int, link: str | None) -> GpuModel:
    from ecoserve.serving.simulate.gpu.model import gpu_model
    from ecoserve.serving.simulate.gpu.shapes import load_shape

    return gpu_model(gpu, load_shape(model), tp, link=link)


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

    Raises ConfigError for ``auto`` where no GPU is modelled: a linear cost never saturates.
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
